"""Verlet lists: when they are rebuilt, and that reuse never loses or adds a pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System
from e2former_calc.potentials.verlet import VerletList

CUTOFF, SKIN = 3.0, 1.0


def _crystal(seed: int = 0) -> System:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.0
    return System.single(grid + rng.normal(0, 0.1, grid.shape), [18] * len(grid), cell=6.0 * np.eye(3), pbc=True)


def _shifted(system: System, length: float) -> System:
    displacement = torch.zeros_like(system.positions)
    displacement[4, 1] = length
    return system.with_positions(system.positions + displacement)


def _same_list(first: NeighborList, second: NeighborList) -> bool:
    return all(getattr(first, name).equal(getattr(second, name)) for name in ("center", "source", "shift", "row_ptr"))


def test_small_moves_reuse_the_list() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    first = verlet.update(system)
    assert verlet.update(_shifted(system, 0.49 * SKIN)) is first
    assert verlet.rebuilds == 1


def test_a_move_beyond_half_the_skin_rebuilds() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    moved = _shifted(system, 0.51 * SKIN)
    assert _same_list(verlet.update(moved), neighbor_list(moved, CUTOFF + SKIN))
    assert verlet.rebuilds == 2


def test_moves_are_counted_from_the_last_rebuild() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    for step in range(7):
        verlet.update(_shifted(system, 0.2 * SKIN * step))
    assert verlet.rebuilds == 3


def test_without_a_skin_every_call_rebuilds() -> None:
    verlet, system = VerletList(CUTOFF, 0.0), _crystal()
    lists = [verlet.update(system) for _ in range(3)]
    assert verlet.rebuilds == 3
    assert all(_same_list(one, neighbor_list(system, CUTOFF)) for one in lists)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), step=st.floats(0.05, 0.4))
def test_reused_list_within_the_cutoff_equals_a_fresh_list(seed: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    verlet, system = VerletList(CUTOFF, SKIN), _crystal(seed)
    for _ in range(6):
        kick = rng.normal(size=system.positions.shape)
        kick *= step / np.linalg.norm(kick, axis=1, keepdims=True)
        system = system.with_positions(system.positions + torch.from_numpy(kick))
        assert _same_list(verlet.update(system).within(system, CUTOFF), neighbor_list(system, CUTOFF))
    assert verlet.rebuilds <= 6


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, cell=s.cell * 1.001),
        lambda s: replace(s, pbc=~s.pbc),
        lambda s: System.stack([s, s]),
        lambda s: System.single(s.positions[:-1].numpy(), s.numbers[:-1].numpy(), cell=6.0 * np.eye(3), pbc=True),
    ],
    ids=["cell", "pbc", "number of structures", "number of atoms"],
)
def test_a_different_structure_rebuilds(change) -> None:  # type: ignore[no-untyped-def]
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    other = change(system)
    assert _same_list(verlet.update(other), neighbor_list(other, CUTOFF + SKIN))


def test_positions_changed_in_place_are_noticed() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    system.positions[0, 0] += SKIN
    verlet.update(system)
    assert verlet.rebuilds == 2


def test_a_cell_changed_in_place_is_noticed() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    system.cell.mul_(0.9)
    verlet.update(system)
    assert verlet.rebuilds == 2


def test_a_wrapped_atom_counts_as_moved() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    wrapped = _shifted(system, 6.0)
    assert _same_list(verlet.update(wrapped), neighbor_list(wrapped, CUTOFF + SKIN))


def test_broken_coordinates_reach_the_error_of_a_rebuild() -> None:
    verlet, system = VerletList(CUTOFF, SKIN), _crystal()
    verlet.update(system)
    with pytest.raises(ValueError, match="position of atom 4 is not finite"):
        verlet.update(_shifted(system, float("nan")))


def test_negative_skin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`skin` must not be negative, got -0.5 Å"):
        VerletList(CUTOFF, -0.5)
