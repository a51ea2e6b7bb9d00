"""Neighbour search: kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.kernels.neighbor_search import FoundEdges, SearchPlan, neighbor_search, plan_search
from e2former_calc.potentials.kernels.neighbor_search.plan import SearchMethod
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.system import System

CELL = [[4.0, 0.0, 0.0], [0.7, 5.0, 0.0], [0.0, -0.6, 4.5]]


def structure(count: int, pbc: tuple[bool, bool, bool], device: torch.device, generator: torch.Generator) -> System:
    """Atoms up to two cells away from the first one."""
    cell = torch.tensor(CELL, dtype=torch.float64)
    positions = 2.5 * torch.rand(count, 3, generator=generator, dtype=torch.float64) @ cell - 4.0
    return System.single(positions.numpy(), [6] * count, cell=CELL, pbc=pbc, device=device)


def sorted_edges(found: FoundEdges) -> NeighborList:
    used = int(found.row_ptr[-1])
    columns = (column[:used].long() for column in (found.center, found.source, found.shift))
    return NeighborList.from_pairs(*columns, n_atoms=len(found.row_ptr) - 1, cutoff=1.0)


def check(positions: torch.Tensor, plan: SearchPlan, capacity: int) -> None:
    implementations: tuple[KernelImplementation, ...] = ("triton", "reference")
    kernel, reference = (neighbor_search(positions, plan, capacity=capacity, implementation=i) for i in implementations)
    assert kernel.row_ptr.equal(reference.row_ptr)
    assert kernel.missing == reference.missing == 0
    for name in ("center", "source", "shift"):
        assert getattr(sorted_edges(kernel), name).equal(getattr(sorted_edges(reference), name))


@pytest.mark.parametrize(
    ("pbc", "method"),
    [((True, True, True), "cells"), ((True, False, True), "cells"), ((True, False, True), "brute_force")],
)
def test_periodic_images_are_found(pbc, method: SearchMethod, device: torch.device, generator) -> None:
    system = structure(3, pbc, device, generator)
    check(system.positions, plan_search(system, 2.2, method), 200)


@pytest.mark.parametrize("count", [1, 2, 33, pytest.param(63, marks=pytest.mark.slow)])
def test_molecules_of_odd_sizes(count: int, device: torch.device, generator) -> None:
    system = structure(count, (False, False, False), device, generator)
    check(system.positions, plan_search(system, 2.5, "brute_force"), 64 * count)


def test_atoms_that_left_the_frame_keep_their_neighbors(device: torch.device, generator) -> None:
    system = structure(4, (False, False, False), device, generator)
    plan = plan_search(system, 1.5, "cells")
    assert max(plan.bins) > 2
    check(system.positions * 0.2 + 30.0, plan, 50)


def test_structures_of_a_batch_do_not_see_each_other(device: torch.device, generator) -> None:
    parts = [structure(n, (False, True, False), device, generator) for n in (2, 3)]
    system = System.stack(parts)
    check(system.positions, plan_search(system, 3.0, "brute_force"), 100)


def test_slots_are_never_exceeded(device: torch.device, generator) -> None:
    system = structure(12, (False, False, False), device, generator)
    plan = plan_search(system, 30.0, "brute_force")
    found = neighbor_search(system.positions, plan, capacity=100, implementation="triton")
    assert (int(found.missing), int(found.row_ptr[-1])) == (12 * 11 - 100, 100)
    assert found.center.equal(torch.arange(12, device=device, dtype=torch.int32).repeat_interleave(11)[:100])


def test_repeated_searches_agree(device: torch.device, generator) -> None:
    system = structure(20, (False, False, False), device, generator)
    plan = plan_search(system, 4.0, "brute_force")
    first, second = (neighbor_search(system.positions, plan, capacity=400, implementation="triton") for _ in range(2))
    assert first.source.equal(second.source)
