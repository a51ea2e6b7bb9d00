"""Laws of velocity Verlet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet as AseVelocityVerlet

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.md.integrators import VelocityVerlet
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities

WARM = InitialVelocities(30.0, exact=True)


def test_trajectory_agrees_with_ase(potentials: Any, argon: Atoms) -> None:
    potential = potentials.LennardJones()
    simulation = Simulation(argon, potential, VelocityVerlet(5.0), seed=1, velocities=WARM)
    reference = simulation.atoms()
    reference.calc = E2FormerCalculator(potential)
    AseVelocityVerlet(reference, 5.0 * units.fs).run(100)
    simulation.run(100)
    assert np.abs(simulation.atoms().positions - reference.positions).max() < 1e-9
    assert np.abs(reference.positions - argon.positions).max() > 0.2


def test_reversed_velocities_lead_back_to_the_start(potentials: Any, argon: Atoms) -> None:
    forth = Simulation(argon, potentials.LennardJones(), VelocityVerlet(2.0), seed=1, velocities=WARM)
    forth.run(500)
    turned = forth.atoms()
    turned.set_velocities(-turned.get_velocities())
    back = Simulation(turned, potentials.LennardJones(), VelocityVerlet(2.0), seed=1)
    back.run(500)
    assert np.abs(back.atoms().positions - argon.positions).max() < 1e-8


def test_linear_and_angular_momentum_are_conserved(potentials: Any, cluster: Atoms) -> None:
    cluster.set_velocities(np.random.default_rng(2).normal(size=(13, 3)) * 0.02)
    simulation = Simulation(cluster, potentials.LennardJones(), VelocityVerlet(2.0), seed=1)
    simulation.run(500)
    after = simulation.atoms()
    assert np.allclose(after.get_momenta().sum(0), cluster.get_momenta().sum(0), rtol=1e-10, atol=0)
    assert np.allclose(after.get_angular_momentum(), cluster.get_angular_momentum(), rtol=1e-10, atol=0)


def test_one_step_is_symplectic(springs: Callable[..., Any]) -> None:
    atoms, potential = springs(2, 0.7)
    columns = []
    for index in range(12):
        point = np.zeros(12)
        point[index] = 0.01
        moved = atoms.copy()
        moved.positions += point[:6].reshape(2, 3)
        moved.set_momenta(point[6:].reshape(2, 3))
        simulation = Simulation(moved, potential, VelocityVerlet(1.0), seed=1)
        simulation.run(1)
        end = simulation.atoms()
        columns.append(np.concatenate([(end.positions - atoms.positions).ravel(), end.get_momenta().ravel()]))
    jacobian, omega = np.array(columns).T / 0.01, np.kron([[0, 1], [-1, 0]], np.eye(6))
    assert np.abs(jacobian.T @ omega @ jacobian - omega).max() < 1e-10


def energies(atoms: Atoms, potential: Any, timestep_fs: float, time_fs: float) -> torch.Tensor:
    found: list[torch.Tensor] = []
    simulation = Simulation(
        atoms, potential, VelocityVerlet(timestep_fs), seed=1, velocities=WARM, options=SimulationOptions(skin=1.0)
    )
    every = round(4.0 / timestep_fs)
    record = Observer(lambda s: found.append(s.observables().conserved_energy), every=every)
    simulation.run(round(time_fs / timestep_fs), observers=[record])
    return torch.cat(found)


def test_energy_fluctuation_is_of_second_order(potentials: Any, cluster: Atoms) -> None:
    spread = [float(energies(cluster, potentials.LennardJones(), dt, 800.0).std()) for dt in (4.0, 2.0, 1.0)]
    assert spread[0] / spread[1] == pytest.approx(4.0, abs=0.2)
    assert spread[1] / spread[2] == pytest.approx(4.0, abs=0.2)


def test_energy_does_not_drift(potentials: Any, argon: Atoms) -> None:
    total = energies(argon, potentials.LennardJones(), 4.0, 4000.0)
    time_ps = torch.arange(len(total), dtype=torch.float64) * 4e-3
    centred = time_ps - time_ps.mean()
    slope = float((centred * total).sum() / (centred**2).sum()) / len(argon)
    assert abs(slope) < 1e-6


def test_oscillator_follows_the_exact_discrete_solution(springs: Callable[..., Any]) -> None:
    atoms, potential = springs(1, 0.5)
    atoms.positions[0, 0] += 0.1
    simulation = Simulation(
        atoms, potential, VelocityVerlet(1.0), seed=1, options=SimulationOptions(external_field=True)
    )
    simulation.run(57)
    phase = 57 * np.arccos(1.0 - 0.5**2 / 2.0)
    assert simulation.frame().positions[0, 0] == pytest.approx(0.1 * np.cos(phase), abs=1e-13)


@pytest.mark.parametrize("timestep_fs", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_time_steps_are_refused(timestep_fs: float) -> None:
    with pytest.raises(ValueError, match="`timestep_fs` must be positive and finite"):
        VelocityVerlet(timestep_fs)
