"""Stopped replicas cost nothing, and the others do not notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.units import fs

from e2former_calc.md.forces import PotentialForces
from e2former_calc.md.integrators import Bussi, Langevin, MonteCarloBarostat, NoseHooverChain, VelocityVerlet
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.running_forces import RunningForces, selected_structures
from e2former_calc.md.simulation import Simulation
from e2former_calc.md.stopping import StopReason
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.system import System

LANGEVIN = Langevin(2.0, 60.0, 5.0)
INTEGRATORS = [
    VelocityVerlet(2.0), LANGEVIN, Bussi(2.0, 60.0), NoseHooverChain(2.0, 60.0),
    MonteCarloBarostat(LANGEVIN, 100.0, every=3, max_log_volume_change=0.03),
]  # fmt: skip


@pytest.fixture
def argons(argon: Atoms) -> list[Atoms]:
    """Structures of 31, 32 and 30 atoms."""
    return [argon[:-1], argon, argon[:-2]]


@pytest.fixture
def counting(potentials: Any) -> Any:
    """Lennard-Jones argon that notes the number of atoms of every evaluation."""

    @dataclass(frozen=True)
    class Counting(potentials.LennardJones):  # type: ignore[misc, name-defined]
        seen: tuple[list[int], ...] = ([],)

        def __call__(self, system: System, **rest: Any) -> Any:
            self.seen[0].append(system.n_atoms)
            return super().__call__(system, **rest)

    return Counting(seen=([],))


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_a_stopped_replica_is_not_evaluated(
    potentials: Any, counting: Any, argons: list[Atoms], integrator: Any
) -> None:
    bad = potentials.Failing(cutoff=6.5, inner=counting, row=1, after=11, calls=([],))
    hurt = Simulation(argons, bad, integrator, seed=2, velocities=InitialVelocities(60.0))
    hurt.run(40)
    stop = hurt.stops()[1]
    assert stop is not None
    # A volume move whose trial is not finite is refused and does not stop the replica.
    stopped_at = counting.seen[0].index(61)
    assert counting.seen[0][:stopped_at] == [93] * stopped_at
    assert set(counting.seen[0][stopped_at:]) == {61}


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_the_others_do_not_change_by_a_bit(potentials: Any, argons: list[Atoms], integrator: Any) -> None:
    inner = potentials.LennardJones()
    bad = potentials.Failing(cutoff=6.5, inner=inner, row=1, after=11, calls=([],))
    runs = [Simulation(argons, p, integrator, seed=2, velocities=InitialVelocities(300.0)) for p in (inner, bad)]
    for run in runs:
        run.run(80)
    assert [stop is None for stop in runs[1].stops()] == [True, False, True]
    for replica in (0, 2):
        for name in ("positions", "velocities", "forces"):
            assert np.array_equal(*(getattr(run.frame(replica), name) for run in runs))
        assert runs[0].frame(replica).energy == runs[1].frame(replica).energy


def crashes(*speeds_per_fs: float) -> list[Atoms]:
    """Pairs 4 Å apart, whose atoms run into each other."""
    pairs = []
    for speed in speeds_per_fs:
        pair = Atoms("Ar2", positions=[[0, 0, 0], [4, 0, 0]])
        pair.set_velocities([[speed / fs, 0, 0], [-speed / fs, 0, 0]])
        pairs.append(pair)
    return pairs


class Touchy(AseLennardJones):  # type: ignore[misc]
    """A calculator that gives up when atoms come close."""

    def calculate(self, atoms: Atoms, *rest: Any) -> None:
        Calculator.calculate(self, atoms, *rest)
        if atoms.get_distance(0, 1) < 1.0:
            raise CalculatorError("did not converge")
        self.results = {"energy": 0.0, "forces": np.zeros((2, 3))}


@pytest.mark.parametrize("host", [False, True])
def test_replicas_that_break_one_after_the_other_all_stop(potentials: Any, host: bool) -> None:
    potential = Touchy() if host else potentials.LennardJones(epsilon=1e-12)
    simulation = Simulation(crashes(1.0, 2.0 / 3.0, 0.5, 0.0), potential, VelocityVerlet(1.0), seed=1)
    simulation.run(10)
    stops = simulation.stops()
    assert [stop and stop.reason for stop in stops] == [StopReason.NOT_FINITE] * 3 + [None]
    assert [stop.step for stop in stops if stop] == [2, 3, 4]
    assert all(("converge" if host else "overlap") in stop.message for stop in stops if stop)


def test_a_run_with_a_stopped_replica_continues_bit_for_bit(
    potentials: Any, argons: list[Atoms], tmp_path: Path
) -> None:
    for atoms in argons:
        atoms.set_velocities(np.random.default_rng(1).normal(size=(len(atoms), 3)) * 0.03)
    argons[1].set_velocities(np.random.default_rng(1).normal(size=(32, 3)) * 3.0)
    runs = [Simulation(argons, potentials.LennardJones(), LANGEVIN, seed=5) for _ in "abc"]
    runs[0].run(200)
    runs[1].run(90)
    assert runs[1].stops()[1] is not None
    runs[1].save(tmp_path / "a.restart")
    runs[2].run(3)
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(110)
    assert [stop is None for stop in runs[0].stops()] == [True, False, True]
    assert runs[0].list_rebuilds == runs[2].list_rebuilds > 5
    for name, tensor in runs[0].state.tensors().items():
        assert torch.equal(tensor.nan_to_num(), runs[2].state.tensors()[name].nan_to_num())


def system_of(*images: Atoms) -> System:
    return System.stack([System.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc) for a in images])


def test_replicas_that_are_not_selected_are_nan(potentials: Any, argons: list[Atoms]) -> None:
    system = system_of(*argons)
    forces = RunningForces(
        Replicas.of_sizes([31, 32, 30]),
        lambda rows: PotentialForces(potentials.LennardJones(), selected_structures(system, rows), skin=0.5),
    )
    whole = forces.evaluate(system.positions, system.cell, stress=True)
    forces.select(torch.tensor([True, False, True]))
    part = forces.evaluate(system.positions, system.cell, stress=True)
    assert torch.isnan(part.energy).tolist() == [False, True, False]
    assert torch.equal(part.forces[:31], whole.forces[:31])
    assert torch.isnan(part.forces[31:63]).all()
    assert torch.equal(part.stress[2], whole.stress[2])
    assert forces.rebuilds == 1
