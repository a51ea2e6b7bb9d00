"""Laws of BAOAB: exact results for oscillators and for free particles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units

from e2former_calc.md.integrators import Langevin
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.units import ACCELERATION, BOLTZMANN
from e2former_calc.md.velocities import InitialVelocities

EXTERNAL = SimulationOptions(external_field=True)
T = 300.0


def oscillator_moments(springs: Callable[..., Any], omega_dt: float, steps: int) -> tuple[float, float, float]:
    """<x^2>, <p^2> at whole steps and kinetic energy at half steps, divided by their canonical values."""
    atoms, potential = springs(1000, omega_dt)
    simulation = Simulation(atoms, potential, Langevin(1.0, T, 500.0), seed=11, options=EXTERNAL)
    simulation.run(40)
    rows: list[tuple[float, float, float]] = []

    def record(s: Simulation) -> None:
        seen = s.observables()
        number = 1.5 * len(atoms) * BOLTZMANN * T
        potential_energy, kinetic = float(seen.potential_energy) / number, float(seen.kinetic_energy) / number
        rows.append((potential_energy, kinetic, float(seen.temperature_K) / T))

    simulation.run(steps, observers=[Observer(record, every=2)])
    x2, p2, half = np.mean(rows, axis=0)
    return float(x2), float(p2), float(half)


@pytest.mark.parametrize("omega_dt", [0.25, 0.5, 1.0, 1.5])
def test_oscillator_moments_follow_the_exact_formulas(springs: Callable[..., Any], omega_dt: float) -> None:
    x2, p2, half = oscillator_moments(springs, omega_dt, 400)
    assert x2 == pytest.approx(1.0, abs=0.012)
    assert p2 == pytest.approx(1.0 - omega_dt**2 / 4.0, abs=0.012)
    assert half == pytest.approx(1.0, abs=0.012)


@pytest.mark.physics
@pytest.mark.parametrize("omega_dt", [0.25, 0.5, 1.0, 1.5])
def test_oscillator_moments_follow_the_exact_formulas_closely(springs: Callable[..., Any], omega_dt: float) -> None:
    x2, p2, half = oscillator_moments(springs, omega_dt, 10_000)
    assert x2 == pytest.approx(1.0, abs=0.0025)
    assert p2 == pytest.approx(1.0 - omega_dt**2 / 4.0, abs=0.0025)
    assert half == pytest.approx(1.0, abs=0.0025)


def free(n: int, integrator: Langevin, potentials: Any, velocities: InitialVelocities | None = None) -> Simulation:
    atoms = Atoms("Ar" * n, positions=np.zeros((n, 3)))
    return Simulation(atoms, potentials.Free(), integrator, seed=3, velocities=velocities, options=EXTERNAL)


def test_free_velocities_forget_exponentially(potentials: Any) -> None:
    simulation = free(20_000, Langevin(10.0, T, 20.0), potentials)
    start = simulation.frame().velocities
    simulation.run(5)
    now = simulation.frame().velocities
    variance = ACCELERATION * BOLTZMANN * T / 39.948
    assert (start * now).mean() / variance == pytest.approx(math.exp(-1.0), abs=4 / math.sqrt(60_000))
    assert (now * now).mean() / variance == pytest.approx(1.0, abs=4 * math.sqrt(2 / 60_000))


def test_free_particles_diffuse_with_einsteins_constant(potentials: Any) -> None:
    friction_per_ps, steps = 50.0, 200
    simulation = free(6000, Langevin(10.0, T, friction_per_ps), potentials)
    simulation.run(steps)
    time_fs, gamma = 10.0 * steps, 1e-3 * friction_per_ps
    diffusion = ACCELERATION * BOLTZMANN * T / (39.948 * gamma)
    memory = time_fs - (1.0 - math.exp(-gamma * time_fs)) / gamma
    expected = 2.0 * diffusion * memory
    assert (simulation.frame().positions ** 2).mean() / expected == pytest.approx(1.0, abs=4 * math.sqrt(2 / 18_000))


def test_configurational_temperature_is_the_target_at_any_step(potentials: Any, springs: Callable[..., Any]) -> None:
    for omega_dt in (0.3, 1.2):
        atoms, potential = springs(1000, omega_dt)
        simulation = Simulation(atoms, potential, Langevin(1.0, T, 500.0), seed=5, options=EXTERNAL)
        simulation.run(40)
        found = []
        for _ in range(100):
            simulation.run(2)
            found.append((simulation.frame().forces ** 2).mean() / potential.stiffness / units.kB)
        assert np.mean(found) == pytest.approx(T, rel=0.015)


def test_energy_minus_heat_is_conserved(potentials: Any, argon: Atoms) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), Langevin(2.0, 50.0, 5.0), seed=1)
    start = simulation.observables()
    simulation.run(300)
    end = simulation.observables()
    assert float(end.conserved_energy - start.conserved_energy) == pytest.approx(0.0, abs=2e-4)
    assert abs(float(end.potential_energy - start.potential_energy)) > 0.02


def test_without_friction_it_is_velocity_verlet(potentials: Any, argon: Atoms) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), Langevin(2.0, 50.0, 0.0), seed=1)
    start = float(simulation.observables().potential_energy + simulation.observables().kinetic_energy)
    simulation.run(100)
    seen = simulation.observables()
    assert float(seen.potential_energy + seen.kinetic_energy) == pytest.approx(start, abs=1e-4)


def test_temperature_follows_a_ramp(potentials: Any) -> None:
    ramp = LinearRamp(100.0, 500.0, 100)
    simulation = free(5000, Langevin(10.0, ramp, 1000.0), potentials)
    simulation.run(51)
    assert float(simulation.observables().temperature_K) == pytest.approx(ramp.at(50), rel=0.04)


def test_replicas_have_their_own_temperature(potentials: Any) -> None:
    atoms = Atoms("Ar2000", positions=np.zeros((2000, 3)))
    integrator = Langevin(10.0, (100.0, 400.0), 1000.0)
    simulation = Simulation([atoms, atoms], potentials.Free(), integrator, seed=3, options=EXTERNAL)
    simulation.run(5)
    assert simulation.observables().temperature_K.tolist() == pytest.approx([100.0, 400.0], rel=0.06)


def test_every_element_has_the_same_temperature(potentials: Any) -> None:
    atoms = Atoms("H2000O2000", positions=np.zeros((4000, 3)))
    simulation = Simulation(atoms, potentials.Free(), Langevin(1.0, T, 100.0), seed=3, options=EXTERNAL)
    simulation.run(20)
    velocities = simulation.frame().velocities / units.fs
    twice = atoms.get_masses()[:, None] * velocities**2 / (units.kB * T)
    assert twice[:2000].mean() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 6000))
    assert twice[2000:].mean() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 6000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, -5.0, 1.0), "`temperature_K` must be at least 0 K and finite, got -5.0"),
        ((1.0, 5.0, -1.0), "`friction_per_ps` must be at least 0 1/ps and finite, got -1.0"),
        ((0.0, 5.0, 1.0), "`timestep_fs` must be positive and finite, got 0.0 fs"),
    ],
)
def test_bad_parameters_are_refused(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Langevin(*arguments)
