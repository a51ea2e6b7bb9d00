"""Blocks of centers: complete, in order, within the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from e2former_calc.potentials.kernels import blocks
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]
ROW = 6


@pytest.fixture(params=[1, 5 * ROW, 70 * ROW, 10**6], ids=["single centers", "few", "several", "one block"])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", request.param)
    return int(request.param)


def test_fresh_memory_is_poisoned() -> None:
    assert torch.empty(100).isnan().all()
    assert torch.ones(3).new_empty(50).isnan().all()


def test_blocks_cover_every_center_once_in_order(budget: int, counts: tuple[int, ...], random_graph: Graph) -> None:
    ends = [0]
    for block in blocks.center_blocks(random_graph(counts).row_ptr, ROW):
        assert block.first == ends[-1]
        assert block.last > block.first
        ends.append(block.last)
    assert ends[-1] == len(counts)


def test_valid_slots_are_all_edges_in_order(budget: int, counts: tuple[int, ...], random_graph: Graph) -> None:
    found = [block.edge[block.valid] for block in blocks.center_blocks(random_graph(counts).row_ptr, ROW)]
    assert torch.cat(found).equal(torch.arange(sum(counts)))


def test_rows_of_a_block_belong_to_its_centers(budget: int, counts: tuple[int, ...], random_graph: Graph) -> None:
    graph = random_graph(counts)
    for block in blocks.center_blocks(graph.row_ptr, ROW):
        assert block.valid.sum(1).equal(graph.counts[block.first : block.last])
        for row, center in enumerate(range(block.first, block.last)):
            assert (graph.center[block.edge[row][block.valid[row]]] == center).all()


def test_padded_slots_repeat_existing_edges(budget: int, counts: tuple[int, ...], random_graph: Graph) -> None:
    for block in blocks.center_blocks(random_graph(counts).row_ptr, ROW):
        assert 0 <= int(block.edge.min()) <= int(block.edge.max()) < sum(counts)


def test_blocks_of_several_centers_fit_the_budget(budget: int, counts: tuple[int, ...], random_graph: Graph) -> None:
    sizes = [
        b.edge.numel() * ROW for b in blocks.center_blocks(random_graph(counts).row_ptr, ROW) if b.last > b.first + 1
    ]
    assert all(size <= budget for size in sizes)


def test_a_block_is_as_large_as_the_budget_allows(monkeypatch: pytest.MonkeyPatch, random_graph: Graph) -> None:
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", 4 * 3 * ROW)
    found = blocks.center_blocks(random_graph((3,) * 10).row_ptr, ROW)
    assert [block.last - block.first for block in found] == [4, 4, 2]
