"""Specification of fused attention: the definition, the parts it is made of, derivatives, refused inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.edge_softmax import offset_softmax
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.edge_moment import edge_moment
from e2former_calc.potentials.kernels.fused_attention import AttentionEdges, fused_attention
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]
HEADS = 2


@pytest.fixture
def graph(random_graph: Graph) -> NeighborList:
    return random_graph((3, 0, 2))


@pytest.fixture
def features(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of three atoms."""
    query, key = torch.randn(2, 3, HEADS, 4, generator=generator, dtype=torch.float64).unbind(0)
    return query, key, torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def edges(generator: torch.Generator) -> AttentionEdges:
    radial = torch.randn(5, 2 * HEADS, generator=generator, dtype=torch.float64)
    envelope = torch.rand(5, generator=generator, dtype=torch.float64)
    return AttentionEdges(radial, envelope, torch.randn(5, 3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
def test_attention_is_made_of_scores_weights_and_moments(normalization, graph, features, edges) -> None:
    query, key, value = features
    score = edges.radial[:, :HEADS] * (query[graph.center] * key[graph.source]).sum(-1) / math.sqrt(4)
    envelope = edges.envelope[:, None]
    weight = {
        "softmax": offset_softmax(score, envelope, graph),
        "softplus": torch.log1p(score.exp()) * envelope,
        "sigmoid": envelope / (1 + torch.exp(-score)),
    }[normalization]
    weight = weight * edges.radial[:, HEADS:]
    expected = edge_moment(weight, edges.direction, value, graph, implementation="reference")
    index = EdgeIndex.from_neighbors(graph)
    moment = fused_attention(*features, edges, index, normalization=normalization, implementation="reference")
    torch.testing.assert_close(moment, expected, rtol=1e-13, atol=1e-13)


def test_without_directions_the_moment_is_the_weighted_sum(graph, features, edges) -> None:
    index, options = EdgeIndex.from_neighbors(graph), {"normalization": "softmax", "implementation": "reference"}
    ones = replace(edges, direction=torch.ones(5, 3, dtype=torch.float64))
    expected = fused_attention(*features, ones, index, **options)[:, :1]
    assert fused_attention(*features, replace(edges, direction=None), index, **options).equal(expected)


def test_functions_may_come_from_a_table(graph, features, edges, generator) -> None:
    index, options = EdgeIndex.from_neighbors(graph), {"normalization": "softmax", "implementation": "reference"}
    values = torch.randn(1, 5, 2, 2 * HEADS, generator=generator, dtype=torch.float64)
    at_knots = torch.arange(5, dtype=torch.float64) * 0.5
    functions = TabulatedFunctions(
        SplineTable.from_derivatives(values, 0.5), torch.zeros(5, dtype=torch.int64), at_knots
    )
    expected = fused_attention(*features, replace(edges, radial=values[0, :, 0]), index, **options)
    moment = fused_attention(*features, replace(edges, radial=functions), index, **options)
    torch.testing.assert_close(moment, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
def test_absent_edges_change_nothing(normalization, graph, features, edges) -> None:
    edges.envelope[[0, 4]] = 0.0
    keep = edges.envelope != 0.0
    options = {"normalization": normalization, "implementation": "reference"}
    fewer = AttentionEdges(edges.radial[keep], edges.envelope[keep], edges.direction[keep])
    expected = fused_attention(*features, fewer, EdgeIndex.from_neighbors(graph.select(keep)), **options)
    index = EdgeIndex.from_neighbors(graph)
    moment = fused_attention(*features, replace(edges, absent_outside=True), index, **options)
    torch.testing.assert_close(moment, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_reference_is_twice_differentiable(check, normalization, graph, features, edges) -> None:
    index = EdgeIndex.from_neighbors(graph)

    def moment(query: Tensor, radial: Tensor, envelope: Tensor, direction: Tensor) -> Tensor:
        inputs = (query, *features[1:], AttentionEdges(radial, envelope, direction), index)
        return fused_attention(*inputs, normalization=normalization, implementation="reference")

    inputs = (features[0], edges.radial, edges.envelope, edges.direction)
    assert check(moment, tuple(x.requires_grad_(True) for x in inputs))


REFUSED = {
    "key": (lambda q, k, v, e: (q, k[:, :1], v, e), r"`key` \(3, 1, 4\).*query and key of the same shape"),
    "atoms": (lambda q, k, v, e: (q, k, v[:2], e), r"`value` \(2, 4, 6\).*each of 3 atoms"),
    "channels": (lambda q, k, v, e: (q, k, v[..., :5], e), r"channels \(5\) must be a multiple of heads \(2\)"),
    "radial": (
        lambda q, k, v, e: (q, k, v, replace(e, radial=e.radial[:, :3])),
        "2 gates and 2 amplitudes, got width 3",
    ),
    "edges": (
        lambda q, k, v, e: (q, k, v, replace(e, envelope=e.envelope[:4])),
        "`envelope` has 4 entries for 5 edges",
    ),
    "dtype": (lambda q, k, v, e: (q, k, v.float(), e), r"of one dtype, .*got \['torch.float32', 'torch.float64'\]"),
}


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_do_not_fit_are_refused(change, message: str, graph, features, edges) -> None:
    index = EdgeIndex.from_neighbors(graph)
    with pytest.raises(ValueError, match=message):
        fused_attention(*change(*features, edges), index, normalization="softmax", implementation="reference")
