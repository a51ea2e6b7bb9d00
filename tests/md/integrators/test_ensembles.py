"""Every thermostat and barostat samples its ensemble: kinetic energies, two temperatures, two pressures.

The tests of M. R. Shirts, J. Chem. Theory Comput. 9, 909 (2013), which need neither the free energy nor the density
of states. The short forms have exact or cheap systems, the long ones Lennard-Jones argon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from e2former_calc.analysis.ensembles import ensemble_check, kinetic_energy_test
from e2former_calc.md.integrators import Bussi, Langevin, MonteCarloBarostat, NoseHooverChain, StochasticCellRescaling
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.units import BAR, BOLTZMANN

COLD, HOT, LOW, HIGH = 55.0, 65.0, 50.0, 350.0
"""Temperatures (K) and pressures (bar) at which the distributions of 32 argon atoms overlap by a half."""

THERMOSTATS: dict[str, Callable[[Any], Any]] = {
    "Langevin": lambda T: Langevin(5.0, T, 5.0),
    "Bussi": lambda T: Bussi(5.0, T, 50.0),
    "Nose-Hoover": lambda T: NoseHooverChain(5.0, T, 50.0),
}
RESCALING: dict[str, Any] = {"friction_per_ps": 5.0, "pressure_relaxation_time_fs": 300.0}
BAROSTATS: dict[str, Callable[[Any, Any], Any]] = {
    "isotropic rescaling": lambda T, P: StochasticCellRescaling(5.0, T, P, **RESCALING),
    "anisotropic rescaling": lambda T, P: AnisotropicCellRescaling(5.0, T, P, **RESCALING),
    "Monte Carlo, Langevin": lambda T, P: MonteCarloBarostat(Langevin(5.0, T, 5.0), P, 5, 0.04),
    "Monte Carlo, Bussi": lambda T, P: MonteCarloBarostat(Bussi(5.0, T, 50.0), P, 5, 0.04),
    "Monte Carlo, Nose-Hoover": lambda T, P: MonteCarloBarostat(NoseHooverChain(5.0, T, 50.0), P, 5, 0.04),
}


@dataclass(frozen=True)
class Samples:
    """Rows are samples, columns replicas: kinetic energy (eV) as sampled, potential energy (eV), volume (Å^3)."""

    kinetic: np.ndarray
    potential: np.ndarray
    volume: np.ndarray
    degrees_of_freedom: int


def sampled(simulation: Simulation, *, warm: int, steps: int, every: int) -> Samples:
    rows: list[tuple[Any, ...]] = []
    number = simulation.dynamics.degrees_of_freedom

    def record(s: Simulation) -> None:
        seen = s.observables()
        rows.append((0.5 * number * BOLTZMANN * seen.temperature_K, seen.potential_energy, seen.volume))

    simulation.run(warm)
    simulation.run(steps, observers=[Observer(record, every=every)])
    return Samples(*(torch.stack(x).numpy() for x in zip(*rows, strict=True)), int(number[0]))


def check_two_temperatures(energies: np.ndarray, temperatures: tuple[float, float]) -> None:
    """The first half of the columns is at the first temperature, the second half at the second."""
    first, second = (half.ravel() for half in np.hsplit(energies, 2))
    found = ensemble_check((first, second), temperatures, np.random.default_rng(1))
    assert found.deviation < 4.0
    assert found.slope_error < 0.25 * abs(found.expected_slope_per_eV)


def check_two_pressures(volumes: np.ndarray, temperature: float, pressures: tuple[float, float]) -> None:
    """ln[P2(V) / P1(V)] has the slope (p1 - p2) / k T; 2 (p1 - p2) V stands for an energy at T and 2 T."""
    columns = np.hsplit(2.0 * BAR * (pressures[0] - pressures[1]) * volumes, 2)
    found = ensemble_check(
        (columns[0].ravel(), columns[1].ravel()), (temperature, 2.0 * temperature), np.random.default_rng(1)
    )
    assert found.deviation < 4.0
    assert found.slope_error < 0.25 * found.expected_slope_per_eV


def canonical_springs(springs: Callable[..., Any], temperatures: tuple[float, float]) -> tuple[list[Atoms], Any]:
    """300 replicas of ten oscillators at each temperature, displaced as they are in equilibrium."""
    atoms, potential = springs(10, 0.1)
    rng, images = np.random.default_rng(2), []
    for temperature in np.repeat(temperatures, 300):
        image = atoms.copy()
        image.positions += rng.normal(size=(10, 3)) * np.sqrt(BOLTZMANN * temperature / potential.stiffness)
        images.append(image)
    return images, potential


@pytest.mark.parametrize("thermostat", [lambda T: Langevin(1.0, T, 50.0), lambda T: Bussi(1.0, T, 20.0)])
def test_oscillators_at_two_temperatures_have_boltzmann_weights(springs: Callable[..., Any], thermostat: Any) -> None:
    images, potential = canonical_springs(springs, (300.0, 360.0))
    integrator = thermostat((300.0,) * 300 + (360.0,) * 300)
    simulation = Simulation(images, potential, integrator, seed=3, options=SimulationOptions(external_field=True))
    found = sampled(simulation, warm=100, steps=100, every=100)
    check_two_temperatures(found.potential, (300.0, 360.0))
    kinetic = kinetic_energy_test(found.kinetic[:, :300].ravel(), 30, 300.0, np.random.default_rng(1))
    assert max(kinetic.deviation_mean, kinetic.deviation_width) < 4.0


def test_a_chain_gives_argon_at_two_temperatures_boltzmann_weights(potentials: Any) -> None:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True)
    integrator = NoseHooverChain(5.0, (45.0,) * 60 + (75.0,) * 60, 50.0)
    found = sampled(
        Simulation([atoms] * 120, potentials.LennardJones(), integrator, seed=6), warm=200, steps=200, every=50
    )
    check_two_temperatures(found.potential, (45.0, 75.0))


@cache
def ideal_gas_samples(name: str, potential: Any) -> Samples:
    """150 replicas at each of 300 K and 1500 bar, 360 K and 1500 bar, 300 K and 2500 bar."""
    positions = 6.0 * np.random.default_rng(1).random((8, 3))
    atoms = Atoms("Ar8", positions=positions, cell=[6.0] * 3, pbc=True)
    temperatures = tuple(np.repeat([300.0, 360.0, 300.0], 150).tolist())
    pressures = tuple(np.repeat([1500.0, 1500.0, 2500.0], 150).tolist())
    if name == "Monte Carlo":
        thermostat = Langevin(4.0, temperatures, 50.0)
        integrator: Any = MonteCarloBarostat(thermostat, pressures, 1, 1.0, rigid_molecules=False)
    else:
        kind = AnisotropicCellRescaling if name == "anisotropic" else StochasticCellRescaling
        options = {"pressure_relaxation_time_fs": 150.0, "compressibility_per_bar": 5e-4}
        integrator = kind(4.0, temperatures, pressures, 50.0, **options)
    return sampled(Simulation([atoms] * 450, potential, integrator, seed=4), warm=150, steps=300, every=50)


by_barostat = pytest.mark.parametrize("barostat", ["isotropic", "anisotropic", "Monte Carlo"])


@by_barostat
def test_ideal_gases_at_two_temperatures_have_boltzmann_weights(potentials: Any, barostat: str) -> None:
    found = ideal_gas_samples(barostat, potentials.Free())
    check_two_temperatures(1500.0 * BAR * found.volume[:, :300], (300.0, 360.0))


@by_barostat
def test_ideal_gases_at_two_pressures_have_boltzmann_weights(potentials: Any, barostat: str) -> None:
    volumes = np.delete(ideal_gas_samples(barostat, potentials.Free()).volume, np.s_[150:300], axis=1)
    check_two_pressures(volumes, 300.0, (1500.0, 2500.0))


@by_barostat
def test_kinetic_energy_of_an_ideal_gas_is_canonical(potentials: Any, barostat: str) -> None:
    kinetic = ideal_gas_samples(barostat, potentials.Free()).kinetic[:, :150].ravel()
    found = kinetic_energy_test(kinetic, 24, 300.0, np.random.default_rng(1))
    assert max(found.deviation_mean, found.deviation_width) < 4.0


@cache
def argon_samples(name: str, potential: Any) -> Samples:
    """Six replicas at low and six at high temperature, 10 ps; with a barostat at low pressure, and six at high."""
    atoms = bulk("Ar", "fcc", a=5.5, cubic=True).repeat(2)
    if name in THERMOSTATS:
        replicas, integrator = 12, THERMOSTATS[name]((COLD,) * 6 + (HOT,) * 6)
    else:
        replicas, integrator = 18, BAROSTATS[name]((COLD,) * 6 + (HOT,) * 6 + (COLD,) * 6, (LOW,) * 12 + (HIGH,) * 6)
    return sampled(Simulation([atoms] * replicas, potential, integrator, seed=5), warm=400, steps=2000, every=80)


by_name = pytest.mark.parametrize("name", [*THERMOSTATS, *BAROSTATS])


@pytest.mark.physics
@by_name
def test_argon_at_two_temperatures_has_boltzmann_weights(potentials: Any, name: str) -> None:
    found = argon_samples(name, potentials.LennardJones())
    work = LOW * BAR * found.volume if name in BAROSTATS else 0.0
    check_two_temperatures((found.potential + work)[:, :12], (COLD, HOT))


@pytest.mark.physics
@by_name
def test_kinetic_energy_of_argon_is_canonical(potentials: Any, name: str) -> None:
    found = argon_samples(name, potentials.LennardJones())
    kinetic = found.kinetic[:, :6].ravel()
    result = kinetic_energy_test(kinetic, found.degrees_of_freedom, COLD, np.random.default_rng(1))
    assert result.deviation_mean < 4.0
    assert result.deviation_width < 4.0
    assert result.ks_p_value > 1e-4


@pytest.mark.physics
@pytest.mark.parametrize("name", BAROSTATS)
def test_argon_at_two_pressures_has_boltzmann_weights(potentials: Any, name: str) -> None:
    volumes = np.delete(argon_samples(name, potentials.LennardJones()).volume, np.s_[6:12], axis=1)
    check_two_pressures(volumes, COLD, (LOW, HIGH))
