"""Attention: offset softmax, weights, the two score gates and the convolution, edge by edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, pi, sqrt

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.e2former_v2.attention import (
    Attention,
    DirectionGate,
    EdgeFeatures,
    FirstOrderConvolution,
    SolidGate,
    offset_softmax,
)
from e2former_calc.potentials.kernels.edge_moment import edge_moment
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.so3 import SphericalHarmonics, coupling_paths, vector_coupling

EPS = torch.finfo(torch.float64).eps
TOLERANCE = {"rtol": 0, "atol": 2000 * EPS}
ROWS = [range(degree**2, (degree + 1) ** 2) for degree in range(4)]
Build = Callable[..., E2FormerV2]


def _graph(counts: Sequence[int], sources: Sequence[int] | None = None) -> NeighborList:
    n_edges = sum(counts)
    center = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    source = (
        torch.tensor(sources, dtype=torch.int64)
        if sources is not None
        else (center + 1 + torch.arange(n_edges)) % len(counts)
    )
    row_ptr = torch.tensor([0, *counts]).cumsum(0)
    return NeighborList(center, source, torch.zeros(n_edges, 3, dtype=torch.int64), row_ptr, 1.0)


def _features(graph: NeighborList, generator: torch.Generator, *, lmax: int = 2, basis: int = 8) -> EdgeFeatures:
    vector = torch.randn(graph.n_edges, 3, generator=generator, dtype=torch.float64)
    direction = vector / vector.norm(dim=1, keepdim=True)
    return EdgeFeatures(
        neighbors=graph,
        direction=direction,
        vector=vector,
        harmonics=SphericalHarmonics(lmax)(direction),
        basis=torch.rand(graph.n_edges, basis, generator=generator, dtype=torch.float64),
        envelope=torch.rand(graph.n_edges, generator=generator, dtype=torch.float64),
        elements=torch.tensor([1, 8]),
        pair=torch.randint(4, (graph.n_edges,), generator=generator),
    )


@pytest.fixture
def edges(generator: torch.Generator) -> EdgeFeatures:
    return _features(_graph((3, 0, 2, 4)), generator)


@pytest.fixture
def h(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 9, 8, generator=generator, dtype=torch.float64)


def _layer(build: Build, **changes: object) -> Attention:
    layer = build(**changes).blocks[0].attention
    assert isinstance(layer, Attention)
    return layer


def test_softmax_is_the_formula(edges: EdgeFeatures, generator: torch.Generator) -> None:
    score = 3 * torch.randn(9, 2, generator=generator, dtype=torch.float64)
    weight = offset_softmax(score, edges.envelope[:, None], edges.neighbors)
    for edge, center in enumerate(edges.neighbors.center.tolist()):
        same = (edges.neighbors.center == center).nonzero().flatten().tolist()
        for head in range(2):
            top = max(score[k, head].item() for k in same)
            terms = {k: exp(score[k, head].item() - top) * edges.envelope[k].item() for k in same}
            assert weight[edge, head].item() == pytest.approx(terms[edge] / (sum(terms.values()) + 1e-3), rel=1e-13)


def test_softmax_weights_add_up_to_less_than_one(edges: EdgeFeatures, generator: torch.Generator) -> None:
    score = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    weight = offset_softmax(score, torch.ones(9, 1, dtype=torch.float64), edges.neighbors)
    total = torch.zeros(4, 3, dtype=torch.float64).index_add(0, edges.neighbors.center, weight)
    assert total[1].tolist() == [0.0, 0.0, 0.0]
    assert bool(((total[[0, 2, 3]] < 1) & (total[[0, 2, 3]] > 1 - 1.001e-3)).all())


def test_softmax_does_not_change_when_all_scores_rise(edges: EdgeFeatures, generator: torch.Generator) -> None:
    score = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    weights = [offset_softmax(s, edges.envelope[:, None], edges.neighbors) for s in (score, score + 7.5)]
    torch.testing.assert_close(*weights, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("scale", [1e4, 1e300])
def test_softmax_survives_huge_scores(scale: float, edges: EdgeFeatures) -> None:
    score = torch.linspace(-scale, scale, 9, dtype=torch.float64)[:, None].requires_grad_(True)
    weight = offset_softmax(score, edges.envelope[:, None], edges.neighbors)
    (gradient,) = torch.autograd.grad(weight.sum(), score)
    assert weight.isfinite().all()
    assert gradient.isfinite().all()


def test_edges_beyond_the_cutoff_take_part_in_the_maximum_only() -> None:
    score = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    envelope = torch.tensor([[0.5], [0.7], [0.0]], dtype=torch.float64)
    weight = offset_softmax(score, envelope, _graph((3,), [0, 0, 0]))
    terms = [exp(-5.0) * 0.5, exp(-4.0) * 0.7, 0.0]
    assert weight.flatten().tolist() == pytest.approx([t / (sum(terms) + 1e-3) for t in terms], rel=1e-13)


@pytest.mark.parametrize("tied", [1, 2, 3])
def test_equal_maxima_share_their_gradient_evenly(tied: int) -> None:
    score = torch.tensor([[0.3]] + [[1.2]] * tied, dtype=torch.float64, requires_grad=True)
    graph, envelope = _graph((1 + tied,), [0] * (1 + tied)), torch.full((1 + tied, 1), 0.6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(offset_softmax(score, envelope, graph)[0, 0], score)
    term, top = exp(0.3 - 1.2) * 0.6, 0.6
    total = term + tied * top + 1e-3
    through_maximum = -(term / total - term * (term + tied * top) / total**2) / tied
    assert gradient[1:, 0].tolist() == pytest.approx([-term * top / total**2 + through_maximum] * tied, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maxima_that_are_equal_to_rounding_count_as_equal(dtype: torch.dtype) -> None:
    exact = torch.tensor([[2.5], [2.5], [0.1]], dtype=dtype)
    rounded = exact * (1 + torch.tensor([[0.0], [2.0], [0.0]], dtype=dtype) * torch.finfo(dtype).eps)
    graph, envelope = _graph((3,), [0, 0, 0]), torch.full((3, 1), 0.6, dtype=dtype)
    gradients = []
    for score in (exact.requires_grad_(True), rounded.requires_grad_(True)):
        gradients += torch.autograd.grad(offset_softmax(score, envelope, graph)[2, 0], score)
    torch.testing.assert_close(*gradients, rtol=50 * torch.finfo(dtype).eps, atol=0)


def test_softmax_is_twice_differentiable(edges: EdgeFeatures, generator: torch.Generator) -> None:
    score = torch.randn(9, 2, generator=generator, dtype=torch.float64).requires_grad_(True)
    envelope = edges.envelope[:, None].clone().requires_grad_(True)

    def weights(score: Tensor, envelope: Tensor) -> Tensor:
        return offset_softmax(score, envelope, edges.neighbors)

    assert torch.autograd.gradcheck(weights, (score, envelope))
    assert torch.autograd.gradgradcheck(weights, (score, envelope))


@pytest.mark.parametrize("n_edges", [0, 1])
def test_isolated_atoms_have_no_weights_and_no_gradient(n_edges: int) -> None:
    graph = _graph((0, n_edges, 0), [2] * n_edges)
    score = torch.ones(n_edges, 2, dtype=torch.float64, requires_grad=True)
    weight = offset_softmax(score, torch.ones(n_edges, 1, dtype=torch.float64), graph)
    assert weight.shape == (n_edges, 2)
    assert torch.autograd.grad(weight.sum(), score)[0].isfinite().all()


def _moments(weight: Tensor, edges: EdgeFeatures, value: Tensor) -> Tensor:
    return edge_moment(weight, edges.direction, value, edges.neighbors, implementation="reference")


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_convolution_is_the_sum_of_vector_products_over_edges(lmax: int, generator: torch.Generator) -> None:
    channels, heads, n_out = 6, 3, 5
    convolution = FirstOrderConvolution(lmax, channels, n_out).double()
    edges = _features(_graph((3, 0, 2, 4)), generator, lmax=lmax)
    value = torch.randn(4, (lmax + 1) ** 2, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, heads, generator=generator, dtype=torch.float64)
    expected = torch.zeros(4, (lmax + 1) ** 2, n_out, dtype=torch.float64)
    for l_out in range(lmax + 1):
        paths = []
        for l_in in (l_in for l_in, out in coupling_paths(lmax) if out == l_out):
            path = torch.zeros(4, 2 * l_out + 1, channels, dtype=torch.float64)
            for edge, (i, j) in enumerate(zip(edges.neighbors.center, edges.neighbors.source, strict=True)):
                features = value[j, ROWS[l_in]] * weight[edge].repeat(channels // heads)
                path[i] += torch.einsum("mkn,mc,k->nc", vector_coupling(l_in, l_out), features, edges.direction[edge])
            paths.append(path)
        mixed = torch.cat(paths, dim=2) @ convolution.mixing[l_out].T / sqrt(len(paths))
        expected[:, ROWS[l_out]] = mixed
    torch.testing.assert_close(convolution(_moments(weight, edges, value)), expected, **TOLERANCE)


def _scores(layer: Attention, h: Tensor, edges: EdgeFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """q . k / sqrt(d) of every edge and head, and the first and last H outputs of the radial network."""
    heads, width = layer.config.num_heads, layer.config.head_width
    query, key = (part(h).reshape(-1, heads, width) for part in (layer.query, layer.key))
    center, source = edges.neighbors.center, edges.neighbors.source
    tables = layer.target_embedding(edges.elements), layer.source_embedding(edges.elements)
    parts = layer.radial(edges.basis, *tables, edges.pair).split(heads, dim=1)
    return (query[center] * key[source]).sum(2) / sqrt(width), parts[0], parts[-1]


@pytest.fixture
def alpha(monkeypatch: pytest.MonkeyPatch) -> Callable[[Attention, Tensor, EdgeFeatures], Tensor]:
    """Weights that a layer hands to the aggregation."""
    from e2former_calc.potentials.e2former_v2 import attention as module

    def alpha(layer: Attention, h: Tensor, edges: EdgeFeatures) -> Tensor:
        taken: list[Tensor] = []

        def take(weight: Tensor, *arguments: object, **options: object) -> Tensor:
            taken.append(weight)
            return edge_moment(weight, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "edge_moment", take)
        layer(h, edges, "reference")
        return taken[0]

    return alpha


Alpha = Callable[[Attention, Tensor, EdgeFeatures], Tensor]
ELEMENTWISE = {"softplus": softplus, "sigmoid": torch.sigmoid}


@pytest.mark.parametrize("normalization", ELEMENTWISE)
def test_smooth_weights_are_products(
    normalization: str, build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build, normalization=normalization)
    score, gate, amplitude = _scores(layer, h, edges)
    expected = ELEMENTWISE[normalization](gate * score) * amplitude * edges.envelope[:, None]
    torch.testing.assert_close(alpha(layer, h, edges), expected, **TOLERANCE)


def test_softmax_weights_are_normalized_before_the_amplitude(
    build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build)
    score, gate, amplitude = _scores(layer, h, edges)
    expected = offset_softmax(gate * score, edges.envelope[:, None], edges.neighbors) * amplitude
    torch.testing.assert_close(alpha(layer, h, edges), expected, **TOLERANCE)


def test_direction_gate_projects_the_features_of_the_center(build: Build, h: Tensor, edges: EdgeFeatures) -> None:
    layer = _layer(build, score="QKdot_alpha")
    gate, tables = layer.gate, (layer.target_embedding(edges.elements), layer.source_embedding(edges.elements))
    assert isinstance(gate, DirectionGate)
    features, radial = gate.dot(h), gate.radial(edges.basis, *tables, edges.pair)
    for edge, center in enumerate(edges.neighbors.center):
        terms = [edges.harmonics[edge, rows] @ features[center, rows] / sqrt(4 * pi) for rows in ROWS[:3]]
        expected = gate.last(torch.cat(terms) * radial[edge])
        torch.testing.assert_close(gate(h, edges, tables)[edge], expected, **TOLERANCE)


def test_solid_gate_grows_with_the_distance(build: Build, h: Tensor, edges: EdgeFeatures) -> None:
    layer = _layer(build, score="QKdotS_alpha")
    gate, solid = layer.gate, SphericalHarmonics(2)(edges.vector)
    assert isinstance(gate, SolidGate)
    radial = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(9, 4)
    features = gate.dot(h)
    for edge, center in enumerate(edges.neighbors.center):
        terms = torch.cat([solid[edge, rows] @ features[center, rows] for rows in ROWS[:3]])[:4]
        hidden = torch.nn.functional.silu(gate.norm(gate.first(terms * radial[edge])))
        torch.testing.assert_close(gate(h, edges, radial)[edge], gate.last(hidden), **TOLERANCE)


def test_solid_gate_multiplies_the_second_half_of_the_radial_network(
    build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build, score="QKdotS_alpha", normalization="sigmoid")
    score, amplitude, solid = _scores(layer, h, edges)
    assert isinstance(layer.gate, SolidGate)
    expected = torch.sigmoid(layer.gate(h, edges, solid) * score) * amplitude * edges.envelope[:, None]
    torch.testing.assert_close(alpha(layer, h, edges), expected, **TOLERANCE)


def test_direction_gate_leaves_the_radial_network_to_the_amplitude(
    build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build, score="QKdot_alpha", normalization="sigmoid")
    assert isinstance(layer.gate, DirectionGate)
    tables = layer.target_embedding(edges.elements), layer.source_embedding(edges.elements)
    score, amplitude, _ = _scores(layer, h, edges)
    expected = torch.sigmoid(layer.gate(h, edges, tables) * score) * amplitude * edges.envelope[:, None]
    torch.testing.assert_close(alpha(layer, h, edges), expected, **TOLERANCE)


@pytest.mark.parametrize(("score", "first"), [("QK_alpha", 4), ("QKdot_alpha", 0), ("QKdotS_alpha", 4)])
def test_radial_network_has_as_many_outputs_as_the_score_needs(score: str, first: int, build: Build) -> None:
    assert _layer(build, score=score).radial.last.out_features == 4 + first


def test_zero_order_attention_ignores_directions(build: Build, h: Tensor, generator: torch.Generator) -> None:
    layer = _layer(build, orders=("zero", "zero"))
    graph = _graph((3, 0, 2, 4))
    one = _features(graph, generator)
    other = EdgeFeatures(**{**one.__dict__, "direction": -one.direction, "vector": -one.vector})
    assert layer(h, one, "reference").equal(layer(h, other, "reference"))


def test_zero_order_attention_is_a_weighted_sum_of_values(
    build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build, orders=("zero", "zero"))
    weight, value = alpha(layer, h, edges), layer.value(h)
    total = torch.zeros_like(value)
    for edge, (i, j) in enumerate(zip(edges.neighbors.center, edges.neighbors.source, strict=True)):
        total[i] += weight[edge].repeat(2) * value[j]
    torch.testing.assert_close(layer(h, edges, "reference"), layer.output(total), **TOLERANCE)


@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
def test_dropout_acts_in_training_only(
    normalization: str, build: Build, h: Tensor, edges: EdgeFeatures, alpha: Alpha
) -> None:
    layer = _layer(build, normalization=normalization, alpha_dropout=0.5)
    exact = alpha(layer, h, edges)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = alpha(layer.train(), h, edges)
    kept = dropped != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(dropped[kept], 2 * exact[kept], rtol=1e-12, atol=0)
