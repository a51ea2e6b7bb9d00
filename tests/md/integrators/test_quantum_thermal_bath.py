"""Laws of the quantum thermal bath: oscillators have their quantum energy, classical if the temperature is high."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixCom

from e2former_calc.md.integrators import AdaptiveQuantumThermalBath, QuantumThermalBath
from e2former_calc.md.integrators.coloured_noise import (
    ANGULAR_FREQUENCY,
    bath_segment,
    oscillator_energy,
    power_spectrum,
)
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.stopping import StoppingRules
from e2former_calc.md.units import ACCELERATION, BOLTZMANN
from e2former_calc.md.velocities import InitialVelocities

FREE = SimulationOptions(external_field=True, stopping=StoppingRules(max_force=None))
T = 300.0
SMALL = {"segment_steps": 64}
BOTH = [
    QuantumThermalBath(2.0, LinearRamp(60.0, 90.0, 700), 20.0, **SMALL),
    AdaptiveQuantumThermalBath(2.0, 60.0, 20.0, adaptation_time_ps=0.5, **SMALL),
]
by_name = pytest.mark.parametrize("integrator", BOTH, ids=lambda i: type(i).__name__)


def energies(springs: Callable[..., Any], wavenumber: float, integrator: Any, steps: int) -> tuple[float, float]:
    """Potential energy and kinetic energy of oscillators divided by half of theta; start in equilibrium."""
    frequency = ANGULAR_FREQUENCY * wavenumber
    atoms, potential = springs(1000, frequency)
    theta = float(oscillator_energy(np.array([frequency]), integrator.temperature_K)[0])
    random = np.random.default_rng(2).normal(size=(2, 1000, 3))
    atoms.positions += random[0] * math.sqrt(theta / potential.stiffness)
    start = InitialVelocities(theta / BOLTZMANN)
    simulation = Simulation(atoms, potential, integrator, seed=11, velocities=start, options=FREE)
    simulation.run(round(5e3 / integrator.friction_per_ps / integrator.timestep_fs))
    rows: list[tuple[float, float]] = []

    def record(s: Simulation) -> None:
        seen = s.observables()
        rows.append((float(seen.potential_energy) / (1500 * theta), float(seen.temperature_K) * BOLTZMANN / theta))

    simulation.run(steps, observers=[Observer(record, every=5)])
    mean = np.mean(rows, axis=0)
    return float(mean[0]), float(mean[1])


@pytest.mark.parametrize(("wavenumber", "temperature"), [(3700.0, T), (1000.0, T), (1000.0, 0.0)])
def test_oscillators_have_the_potential_energy_of_quantum_mechanics(
    springs: Callable[..., Any], wavenumber: float, temperature: float
) -> None:
    found, _ = energies(springs, wavenumber, QuantumThermalBath(0.5, temperature, 50.0, segment_steps=256), 300)
    assert found == pytest.approx(1.0, abs=0.06)


def test_with_little_friction_the_whole_energy_is_that_of_quantum_mechanics(springs: Callable[..., Any]) -> None:
    potential, kinetic = energies(springs, 1600.0, QuantumThermalBath(1.0, T, 5.0, segment_steps=256), 300)
    assert 0.5 * (potential + kinetic) == pytest.approx(1.0, abs=0.09)


@pytest.mark.physics
@pytest.mark.parametrize("temperature", [0.0, 100.0, T])
@pytest.mark.parametrize("wavenumber", [500.0, 1600.0, 3700.0])
def test_oscillators_have_the_potential_energy_of_quantum_mechanics_closely(
    springs: Callable[..., Any], wavenumber: float, temperature: float
) -> None:
    found, _ = energies(springs, wavenumber, QuantumThermalBath(0.5, temperature, 20.0), 20_000)
    assert found == pytest.approx(1.0, abs=0.012)


@pytest.mark.physics
def test_with_little_friction_the_whole_energy_is_that_of_quantum_mechanics_closely(
    springs: Callable[..., Any],
) -> None:
    potential, kinetic = energies(springs, 1600.0, QuantumThermalBath(1.0, T, 2.0), 40_000)
    assert 0.5 * (potential + kinetic) == pytest.approx(1.0, abs=0.02)


def test_at_high_temperature_the_noise_is_white(potentials: Any) -> None:
    atoms = Atoms("Ar3", positions=np.zeros((3, 3)))
    integrator = QuantumThermalBath(2.0, 1e6, 0.5, segment_steps=256)
    simulation = Simulation(atoms, potentials.Free(), integrator, seed=3, options=FREE)
    noise = bath_segment(simulation.dynamics, integrator.bath, integrator.temperature_K, 300)[300 - 256]
    white = simulation.dynamics.noise.normals(300 + 128, Purpose.COLOURED)
    assert torch.allclose(noise, white * math.sqrt(BOLTZMANN * 1e6), rtol=1e-3, atol=1e-3)


def test_slow_oscillators_are_classical(springs: Callable[..., Any]) -> None:
    found, _ = energies(springs, 150.0, QuantumThermalBath(2.0, 2000.0, 20.0, segment_steps=256), 300)
    assert found == pytest.approx(1.0, abs=0.07)


def test_kinetic_temperature_holds_the_zero_point_energy(springs: Callable[..., Any]) -> None:
    integrator = QuantumThermalBath(0.5, 10.0, 50.0, segment_steps=256)
    _, kinetic = energies(springs, 2000.0, integrator, 200)
    zero_point = oscillator_energy(np.array([2000.0 * ANGULAR_FREQUENCY]), 0.0)[0]
    assert kinetic * zero_point / BOLTZMANN > 1300.0
    assert integrator.target_temperature == 10.0


def test_replicas_have_their_own_temperature(potentials: Any) -> None:
    atoms = Atoms("Ar100", positions=np.zeros((100, 3)))
    integrator = QuantumThermalBath(2.0, (T, 10 * T), 20.0, **SMALL)
    simulation = Simulation([atoms, atoms], potentials.Free(), integrator, seed=3, options=FREE)
    segment = bath_segment(simulation.dynamics, integrator.bath, integrator.temperature_K, 0)
    found = segment.reshape(64, 2, 300).square().mean((0, 2))
    expected = [power_spectrum(integrator.bath, temperature).mean() for temperature in integrator.temperature_K]
    assert found.tolist() == pytest.approx(expected, rel=0.06)


def test_temperature_ramps_go_in_stairs(potentials: Any) -> None:
    atoms = Atoms("Ar2", positions=np.zeros((2, 3)))
    ramp = LinearRamp(100.0, 500.0, 256)
    integrator = QuantumThermalBath(2.0, ramp, 20.0, **SMALL)
    simulation = Simulation(atoms, potentials.Free(), integrator, seed=3, options=FREE)
    rising = bath_segment(simulation.dynamics, integrator.bath, ramp, 100)
    constant = bath_segment(simulation.dynamics, integrator.bath, ramp.at(64), 100)
    assert torch.equal(rising, constant)


@by_name
def test_500_and_500_steps_equal_1000(potentials: Any, integrator: Integrator, tmp_path: Path) -> None:
    small = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((2, 1, 1))
    small.numbers[::3] = 10
    images = [small, small[:6]]
    runs = [Simulation(images, potentials.LennardJones(), integrator, seed=5) for _ in range(3)]
    runs[0].run(1000)
    runs[1].run(500)
    runs[1].save(tmp_path / "a.restart")
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(500)
    one, other = runs[0].state.tensors(), runs[2].state.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)


@by_name
def test_a_replica_alone_equals_the_same_replica_in_a_batch(potentials: Any, argon: Atoms, integrator: Any) -> None:
    mixed = argon.copy()[:-1]
    mixed.numbers[5:9], mixed.numbers[20] = 10, 36
    images, ids = [mixed, argon, argon[:9]], (4, 1, 9)
    options = SimulationOptions(replica_ids=ids)
    batch = Simulation(images, potentials.LennardJones(), integrator, seed=3, options=options)
    batch.run(150)
    for index, image in enumerate(images):
        options = SimulationOptions(replica_ids=(ids[index],), skin=0.2)
        alone = Simulation(image, potentials.LennardJones(), integrator, seed=3, options=options)
        alone.run(150)
        assert np.array_equal(alone.frame().positions, batch.frame(index).positions)
        assert np.array_equal(alone.frame().velocities, batch.frame(index).velocities)
        assert alone.observables().temperature_K[0] == batch.observables().temperature_K[index]


@by_name
def test_states_are_never_changed_in_place(potentials: Any, cluster: Atoms, integrator: Integrator) -> None:
    simulation = Simulation(cluster, potentials.LennardJones(), integrator, seed=1)
    simulation.run(62)
    for _ in range(3):
        before = simulation.state
        copies = {name: tensor.clone() for name, tensor in before.tensors().items()}
        simulation.run(1)
        assert all(torch.equal(copies[name].nan_to_num(), t.nan_to_num()) for name, t in before.tensors().items())


@by_name
def test_a_stopped_replica_does_not_disturb_the_others(potentials: Any, cluster: Atoms, integrator: Integrator) -> None:
    failing = potentials.Failing(inner=potentials.LennardJones(), row=0, after=20, cutoff=6.5, calls=([],))
    with_failure = Simulation([cluster] * 2, failing, integrator, seed=1)
    without = Simulation([cluster] * 2, potentials.LennardJones(), integrator, seed=1)
    with_failure.run(140)
    without.run(140)
    assert with_failure.stops()[0] is not None
    assert np.array_equal(with_failure.frame(1).positions, without.frame(1).positions)


@by_name
def test_energy_minus_heat_is_conserved(potentials: Any, argon: Atoms, integrator: Integrator) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1)
    start = simulation.observables()
    simulation.run(150)
    end = simulation.observables()
    assert float(end.conserved_energy - start.conserved_energy) == pytest.approx(0.0, abs=5e-4)
    assert abs(float(end.kinetic_energy - start.kinetic_energy)) > 0.02


@by_name
def test_constraints_hold(potentials: Any, cluster: Atoms, integrator: Integrator) -> None:
    fixed, centred = cluster.copy(), cluster.copy()
    fixed.set_constraint(FixAtoms([0, 3]))
    centred.set_constraint(FixCom())
    simulation = Simulation([fixed, centred], potentials.LennardJones(), integrator, seed=1)
    simulation.run(70)
    assert np.array_equal(simulation.frame(0).positions[[0, 3]], cluster.positions[[0, 3]])
    moved = simulation.atoms(1).get_center_of_mass() - cluster.get_center_of_mass()
    assert np.abs(moved).max() < 1e-12


def test_noise_on_velocities_goes_with_the_root_of_the_mass(potentials: Any) -> None:
    atoms = Atoms("H2000O2000", positions=np.zeros((4000, 3)))
    rest = InitialVelocities(0.0)
    integrator = QuantumThermalBath(0.5, T, 20.0, **SMALL)
    simulation = Simulation(atoms, potentials.Free(), integrator, seed=3, velocities=rest, options=FREE)
    simulation.run(30)
    energy = atoms.get_masses()[:, None] * simulation.frame().velocities ** 2 / ACCELERATION
    assert energy[:2000].mean() / energy[2000:].mean() == pytest.approx(1.0, abs=4 * math.sqrt(4 / 6000))


@pytest.mark.parametrize("kind", [QuantumThermalBath, AdaptiveQuantumThermalBath])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep_fs": 0.0}, "`timestep_fs` must be positive and finite, got 0.0 fs"),
        ({"temperature_K": -5.0}, "`temperature_K` must be at least 0 K and finite, got -5.0"),
        ({"friction_per_ps": 0.0}, "`friction_per_ps` must be positive and finite, got 0.0 1/ps"),
        ({"cutoff_per_cm": math.inf}, "`cutoff_per_cm` must be positive and finite, got inf 1/cm"),
        ({"segment_steps": 1000}, "`segment_steps` must be a power of two from 64 to 8192, got 1000"),
        ({"segment_steps": 32}, "`segment_steps` must be a power of two from 64 to 8192, got 32"),
        ({"segment_steps": 16384}, "`segment_steps` must be a power of two from 64 to 8192, got 16384"),
    ],
)
def test_bad_parameters_are_refused(kind: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"timestep_fs": 0.5, "temperature_K": T, "friction_per_ps": 20.0, **change})
