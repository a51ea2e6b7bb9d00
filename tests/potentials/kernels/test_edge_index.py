"""Edges sorted both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]


@pytest.fixture
def index(counts: tuple[int, ...], random_graph: Graph) -> EdgeIndex:
    return EdgeIndex.from_neighbors(random_graph(counts))


def test_every_edge_is_listed_once_under_its_source(index: EdgeIndex) -> None:
    assert index.by_source.sort().values.equal(torch.arange(index.n_edges, dtype=torch.int32))
    for atom in range(index.n_atoms):
        sent = index.by_source[index.source_ptr[atom] : index.source_ptr[atom + 1]]
        assert (index.source[sent] == atom).all()


def test_equal_sources_keep_the_order_of_edges(index: EdgeIndex) -> None:
    source = index.source[index.by_source]
    same = source[1:] == source[:-1]
    assert (index.by_source[1:][same] > index.by_source[:-1][same]).all()


def test_centers_are_those_of_the_list(counts: tuple[int, ...], random_graph: Graph) -> None:
    graph = random_graph(counts)
    index = EdgeIndex.from_neighbors(graph)
    assert (index.n_atoms, index.n_edges) == (len(counts), sum(counts))
    assert index.center.long().equal(graph.center)
    assert index.row_ptr.long().equal(graph.row_ptr)
    assert index.to("cpu").by_source.equal(index.by_source)
