"""Fixtures for operations over edges: random graphs with awkward rows, and poisoned fresh memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from e2former_calc.potentials.neighbors import NeighborList

AWKWARD = (0, 1, 31, 33, 0, 0, 5, 2, 64, 0)
"""Neighbour counts: none, one, around a power of two, isolated atoms first, in between and last."""


@pytest.fixture(params=[AWKWARD, (7,) * 6, (1,), (0, 0, 3)], ids=["awkward", "regular", "one edge", "last only"])
def counts(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Number of neighbours of every center."""
    chosen: tuple[int, ...] = request.param
    return chosen


@pytest.fixture
def random_graph(generator: torch.Generator) -> Callable[[Sequence[int]], NeighborList]:
    """Graph with given numbers of neighbours; sources are random, shifts zero."""

    def random_graph(counts: Sequence[int]) -> NeighborList:
        n_edges = sum(counts)
        row_ptr = torch.tensor([0, *counts]).cumsum(0)
        center = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        source = torch.randint(len(counts), (n_edges,), generator=generator)
        return NeighborList(center, source, torch.zeros(n_edges, 3, dtype=torch.int64), row_ptr, 1.0)

    return random_graph


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """Fill what `torch.empty` and its relatives return with NaN, so that reading it before writing shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
