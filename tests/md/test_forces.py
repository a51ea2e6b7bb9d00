"""A neighbour list with skin gives what a fresh list gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from e2former_calc.md.forces import PotentialForces
from e2former_calc.potentials.system import System

Arrays = tuple[torch.Tensor, torch.Tensor]


def stacked(*images: Atoms) -> System:
    return System.stack([System.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc) for a in images])


def walk(atoms: Atoms, steps: int, *, strain: float) -> list[Arrays]:
    """Positions and cells of a random walk."""
    rng = np.random.default_rng(5)
    positions, cell, found = atoms.positions.copy(), atoms.cell.array.copy(), []
    for _ in range(steps):
        deform = np.eye(3) + strain * rng.normal(size=(3, 3))
        cell, positions = cell @ deform, positions @ deform + rng.normal(size=positions.shape) * 0.02
        found.append((torch.from_numpy(positions.copy()), torch.from_numpy(cell.copy())[None]))
    return found


@pytest.mark.parametrize("strain", [0.0, 2e-3])
@pytest.mark.parametrize("cell", ["cubic", "triclinic"])
def test_results_equal_those_of_a_fresh_list_to_the_last_bit(potentials: Any, strain: float, cell: str) -> None:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=cell == "cubic").repeat((1, 1, 2))
    kept = PotentialForces(potentials.LennardJones(), stacked(atoms), skin=0.4)
    fresh = PotentialForces(potentials.LennardJones(), stacked(atoms), skin=0.0)
    for positions, lattice in walk(atoms, 60, strain=strain):
        first, second = (f.evaluate(positions, lattice, stress=True) for f in (kept, fresh))
        assert torch.equal(first.forces, second.forces)
        assert torch.equal(first.energy, second.energy)
        assert torch.equal(first.stress, second.stress)
    assert 1 < kept.rebuilds < fresh.rebuilds == 60


def test_unwrapped_positions_far_away_give_the_same_forces(potentials: Any, argon: Atoms) -> None:
    forces = PotentialForces(potentials.LennardJones(), stacked(argon), skin=0.5)
    positions, cell = torch.from_numpy(argon.positions), torch.from_numpy(argon.cell.array)[None]
    here = forces.evaluate(positions, cell, stress=False).forces
    shifts = torch.from_numpy(np.random.default_rng(1).integers(-9, 9, (len(argon), 3)).astype(float))
    there = forces.evaluate(positions + shifts @ cell[0], cell, stress=False).forces
    assert torch.allclose(here, there, rtol=0, atol=1e-11)


@pytest.mark.parametrize("broken", ["overlap", "not finite"])
def test_a_broken_replica_gives_nan_and_the_others_their_forces(potentials: Any, cluster: Atoms, broken: str) -> None:
    forces = PotentialForces(potentials.LennardJones(), stacked(cluster, cluster), skin=0.5)
    system = stacked(cluster, cluster)
    good = forces.evaluate(system.positions, system.cell, stress=False)
    positions = system.positions.clone()
    positions[1] = positions[0] if broken == "overlap" else torch.nan
    result = forces.evaluate(positions, system.cell, stress=False)
    assert torch.isnan(result.energy).tolist() == [True, False]
    assert torch.isnan(result.forces[:13]).all()
    assert torch.equal(result.forces[13:], good.forces[13:])
    assert broken in forces.failures[0]


def test_a_structure_that_is_broken_from_the_start_is_an_error(potentials: Any, cluster: Atoms) -> None:
    cluster.positions[1] = cluster.positions[0]
    system = stacked(cluster)
    with pytest.raises(ValueError, match="overlap"):
        PotentialForces(potentials.LennardJones(), system, skin=0.5).evaluate(
            system.positions, system.cell, stress=False
        )


@pytest.mark.parametrize("skin", [-0.1, float("nan")])
def test_bad_skins_are_refused(potentials: Any, cluster: Atoms, skin: float) -> None:
    with pytest.raises(ValueError, match="`skin` must be 0 Å or more"):
        PotentialForces(potentials.LennardJones(), stacked(cluster), skin=skin)


def test_a_potential_without_stress_is_reported(potentials: Any, argon: Atoms) -> None:
    class NoStress(potentials.Free):  # type: ignore[misc, name-defined]
        def __call__(self, system: System, **rest: Any) -> Any:
            return replace(super().__call__(system, **rest), stress=None)

    system = stacked(argon)
    with pytest.raises(TypeError, match="NoStress returned no stress"):
        PotentialForces(NoStress(), system, skin=0.0).evaluate(system.positions, system.cell, stress=True)
