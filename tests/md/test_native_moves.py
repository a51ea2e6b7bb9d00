"""Native moves are the moves of torch to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCom

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators import (
    Bussi,
    Langevin,
    NoseHooverChain,
    QuantumThermalBath,
    StochasticCellRescaling,
    VelocityVerlet,
)
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Simulation
from e2former_calc.md.state import State

INTEGRATORS = [
    VelocityVerlet(2.0), Langevin(2.0, LinearRamp(60.0, 90.0, 10), 5.0), Bussi(2.0, 60.0), NoseHooverChain(2.0, 60.0),
    StochasticCellRescaling(2.0, 60.0, 100.0, 5.0), QuantumThermalBath(2.0, 60.0, 5.0, segment_steps=64),
]  # fmt: skip

MOVES: dict[str, Callable[[Dynamics, State], Any]] = {
    "kick": lambda d, s: d.kick(s, 0.7).velocities,
    "drift": lambda d, s: d.drift(s, 0.7).positions,
    "positions after both": lambda d, s: d.kick_and_drift(s, 0.7, 0.3).positions,
    "velocities after both": lambda d, s: d.kick_and_drift(s, 0.7, 0.3).velocities,
    "new velocities": lambda d, s: d.renew_velocities(s, s.positions, d.masses, keep=0.6, renew=0.8)[0].velocities,
    "energy": lambda d, s: d.renew_velocities(s, s.positions, d.masses, keep=0.6, renew=0.8)[1],
    "heat": lambda d, s: d.renew_velocities(s, s.positions, d.masses, keep=0.6, renew=0.8)[2],
    "scaled velocities": lambda d, s: d.scale_velocities(s, 0.1 * d.degrees_of_freedom).velocities,
    "kinetic energy": lambda d, s: d.kinetic_energy(s.velocities),
    "squares": lambda d, s: d.sum_of_counted_squares(s.positions),
}


def images(constraint: Any = None) -> list[Atoms]:
    """Structures of 5, 1 and 37 atoms far apart from each other."""
    rng = np.random.default_rng(2)
    made = [
        Atoms(numbers=rng.integers(1, 30, n), positions=9.0 * rng.permutation(n)[:, None] * [1, 0.3, 0])
        for n in (5, 1, 37)
    ]
    for atoms in made:
        atoms.set_velocities(rng.normal(size=(len(atoms), 3)))
    made[2].set_constraint(constraint)
    return made


@pytest.mark.parametrize("constraint", [None, FixAtoms([1, 4]), FixCom()], ids=["free", "fixed atoms", "fixed centre"])
@pytest.mark.parametrize("move", MOVES)
def test_moves_are_equal(potentials: Any, move: str, constraint: Any) -> None:
    simulation = Simulation(images(constraint), potentials.LennardJones(), VelocityVerlet(1.0), seed=1)
    generator = torch.Generator().manual_seed(3)
    state = simulation.state.changed(forces=torch.randn(43, 3, dtype=torch.float64, generator=generator))
    plain = replace(simulation.dynamics, native=False)
    assert torch.equal(MOVES[move](simulation.dynamics, state), MOVES[move](plain, state))


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_trajectories_are_equal(potentials: Any, argon: Atoms, integrator: Integrator) -> None:
    runs = [Simulation([argon, argon], potentials.LennardJones(), integrator, seed=4) for _ in "ab"]
    runs[1].dynamics = replace(runs[1].dynamics, native=False)
    for run in runs:
        run.run(20)
    for name, tensor in runs[0].state.tensors().items():
        assert torch.equal(tensor.nan_to_num(), runs[1].state.tensors()[name].nan_to_num()), name


def test_moves_are_equal_while_a_replica_is_held(potentials: Any) -> None:
    simulation = Simulation(images(), potentials.LennardJones(), VelocityVerlet(1.0), seed=1)
    state, moves = simulation.state, []
    for native in (True, False):
        dynamics = replace(simulation.dynamics, native=native, held=torch.tensor([False, False, True]))
        moves.append(dynamics.kick_and_drift(state, 0.5, 0.5))
    assert torch.equal(moves[0].positions, moves[1].positions)
    assert torch.equal(moves[0].positions[6:], state.positions[6:])


def test_forces_may_lie_in_memory_in_any_order(potentials: Any) -> None:
    simulation = Simulation(images(), potentials.LennardJones(), VelocityVerlet(1.0), seed=1)
    state, dynamics = simulation.state, simulation.dynamics
    forces = simulation.dynamics.noise.normals(0, Purpose.THERMOSTAT)
    turned = forces.T.contiguous().T
    pushed = [dynamics.kick(state.changed(forces=f), 0.5).velocities for f in (forces, turned)]
    assert torch.equal(*pushed)
