"""Specification of the neighbour search on a device: agreement with neighbour lists, capacity, refused inputs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.neighbor_search import FoundEdges, neighbor_search, plan_search
from e2former_calc.potentials.kernels.neighbor_search.plan import SearchMethod
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System

TRICLINIC = [[6.0, 0.0, 0.0], [1.0, 7.0, 0.0], [0.0, -1.0, 5.5]]
SLACK = 3


def found_list(found: FoundEdges, cutoff: float) -> NeighborList:
    used = int(found.row_ptr[-1])
    columns = (column[:used].long() for column in (found.center, found.source, found.shift))
    return NeighborList.from_pairs(*columns, n_atoms=len(found.row_ptr) - 1, cutoff=cutoff)


def scattered(count: int, pbc: Sequence[bool], generator: torch.Generator) -> System:
    """Atoms that lie up to two cells away from the first one."""
    cell = torch.tensor(TRICLINIC, dtype=torch.float64)
    positions = 3.0 * torch.rand(count, 3, generator=generator, dtype=torch.float64) @ cell - 8.0
    return System.single(positions.numpy(), [6] * count, cell=TRICLINIC, pbc=pbc)


@pytest.mark.parametrize("method", ["brute_force", "cells"])
@pytest.mark.parametrize("cutoff", [1.7, 4.0, 9.0])
@pytest.mark.parametrize("pbc", [(True, True, True), (False, False, False), (True, False, True)], ids=str)
def test_edges_are_those_of_the_neighbor_list(pbc, cutoff: float, method: SearchMethod, generator) -> None:
    system = scattered(9, pbc, generator)
    expected = neighbor_list(system, cutoff)
    plan = plan_search(system, cutoff, method)
    found = neighbor_search(system.positions, plan, capacity=expected.n_edges + SLACK, implementation="reference")
    for name in ("center", "source", "shift", "row_ptr"):
        assert getattr(found_list(found, cutoff), name).equal(getattr(expected, name))
    assert found.missing == 0


def test_edges_sort_both_ways_without_the_host(generator) -> None:
    system = scattered(9, (True, True, True), generator)
    expected = EdgeIndex.from_neighbors(neighbor_list(system, 4.0))
    plan = plan_search(system, 4.0, "brute_force")
    capacity = expected.n_edges + SLACK
    index = neighbor_search(system.positions, plan, capacity=capacity, implementation="reference").index()
    assert index.row_ptr.equal(expected.row_ptr)
    assert index.source_ptr.equal(expected.source_ptr)
    assert index.by_source[: expected.n_edges].equal(expected.by_source)
    assert {x.dtype for x in (index.center, index.source, index.by_source, index.source_ptr)} == {torch.int32}


def test_what_does_not_fit_is_counted(generator) -> None:
    system = scattered(9, (True, True, True), generator)
    needed = neighbor_list(system, 4.0).n_edges
    plan = plan_search(system, 4.0, "cells")
    found = neighbor_search(system.positions, plan, capacity=needed - 5, implementation="reference")
    assert found.missing == 5
    assert found.row_ptr[-1] == needed - 5


def test_bins_are_no_narrower_than_the_cutoff() -> None:
    system = System.single([[0.0, 0.0, 0.0]], [6], cell=[[9.0, 0, 0], [0, 10.0, 0], [0, 0, 3.0]], pbc=True)
    plan = plan_search(system, 3.0, "cells")
    assert (plan.bins, plan.reach) == ((3, 3, 1), (1, 1, 1))


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(
    ("cutoff", "method", "message"),
    [(0.0, "cells", r"`cutoff` must be positive, got 0\.0"), (1.0, "tree", "'brute_force' or 'cells', got 'tree'")],
)
def test_plans_that_make_no_sense_are_refused(cutoff: float, method: SearchMethod, message: str, generator) -> None:
    with pytest.raises(ValueError, match=message):
        plan_search(scattered(3, (True, True, True), generator), cutoff, method)


def test_a_plan_is_for_one_number_of_atoms(generator) -> None:
    plan = plan_search(scattered(3, (True, True, True), generator), 2.0, "cells")
    with pytest.raises(ValueError, match="plan is for 3 atoms, got positions of 4"):
        neighbor_search(torch.zeros(4, 3, dtype=torch.float64), plan, capacity=1, implementation="reference")
