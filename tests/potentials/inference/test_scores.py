"""Attention weights of one center and their derivatives are those of autograd, for any number of heads."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from e2former_calc.potentials.inference.geometry import Edges, Grid, Structure, describe_edges
from e2former_calc.potentials.inference.scores import (
    AMPLITUDE,
    SIGMOID,
    SOFTMAX,
    SOFTPLUS,
    UPSTREAM,
    WEIGHT,
    Features,
    Rule,
    normalize_backward,
    normalize_scores,
    score_edges,
    scores_backward,
    scratch_memory,
)

CUTOFF, KNOTS, OFFSET, EXPONENT = 4.0, 9, 1e-3, 5
RULES = {"softmax": SOFTMAX, "softplus": SOFTPLUS, "sigmoid": SIGMOID}

rules = pytest.mark.parametrize("rule", list(RULES))
everywhere = pytest.mark.parametrize("sizes", [(1, 3), (6, 1), (12, 5), (32, 8)], ids=str)


@cache
def compiled(heads: int, width: int) -> Any:
    sizes = (heads, width, heads, 1, 1)

    @njit(error_model="numpy")
    def call(edges, table, gates, rule, features, upstream, weight, d_product, d_gates, d_distance):
        scratch, head = scratch_memory(0, 1, edges, heads, table)
        scratch[:], head[:] = np.nan, np.nan
        score_edges(sizes, 0, edges, table, gates, features, scratch)
        n_edges = edges.row_ptr[1]
        normalize_scores(n_edges, rule, scratch, edges.envelope, head, sizes)
        for edge in range(n_edges):
            weight[edge] = scratch[WEIGHT, edge] * scratch[AMPLITUDE, edge]
        scratch[UPSTREAM] = upstream
        normalize_backward(n_edges, rule, scratch, edges.envelope, head, sizes)
        scores_backward(sizes, 0, edges, table, scratch, d_product, d_gates, d_distance)

    return call


class Center:
    """Random edges of one center, and what the kernels make of them."""

    def __init__(
        self, rule: str, sizes: tuple[int, int], *, n_edges: int = 33, dtype: type = np.float64, given: bool = False
    ) -> None:
        heads, width = self.sizes = sizes
        generator = np.random.default_rng(1)
        random = lambda *shape: generator.normal(size=shape).astype(dtype)  # noqa: E731
        self.rule, self.upstream = rule, random(n_edges, heads)
        self.distance = generator.uniform(0.5, CUTOFF, n_edges)
        self.features = Features(random(n_edges + 1, width, heads), random(n_edges + 1, width, heads), random(1, 1, 1))
        self.table = random(KNOTS, 4, 2 * heads)
        self.table[:-1, 3] = (self.table[1:, 0] - self.table[:-1, 0]) * (KNOTS - 1) / CUTOFF
        self.edges = edges_at(self.distance, dtype)
        self.weight, self.d_product = np.full((2, n_edges, heads), np.nan, dtype)
        self.d_distance = np.ones(n_edges, dtype)
        self.d_gates = np.full((n_edges, heads), np.nan, dtype) if given else None
        self.evaluate(functions(self)[0].numpy()[:, :heads].astype(dtype) if given else None)

    def evaluate(self, gates: np.ndarray | None) -> None:
        """With gates from the table or with these."""
        heads, width = self.sizes
        table = self.table if gates is None else np.ascontiguousarray(self.table[:, :, heads:])
        compiled(heads, width)(
            self.edges, table, gates, Rule(RULES[self.rule], OFFSET, 0.0), self.features, self.upstream, self.weight,
            self.d_product, self.d_gates, self.d_distance,
        )  # fmt: skip


def edges_at(distance: np.ndarray, dtype: type) -> Edges:
    """Edges of atom 0 to all others."""
    count = len(distance)
    edges = Edges(
        row_ptr=np.array([0, count]), center=np.zeros(count, int), source=np.arange(1, count + 1),
        column_ptr=np.zeros(1, int), by_source=np.zeros(1, int), vector=np.outer(distance, [1.0, 0.0, 0.0]),
        distance=distance, unit=np.empty((count, 3), dtype), slot=np.empty(count, int),
        spline=np.empty((count, 11), dtype), envelope=np.empty((count, 2), dtype),
    )  # fmt: skip
    atoms = np.zeros(count + 1, int)
    describe_edges(Structure(np.zeros((1, 3)), np.zeros((1, 3, 3)), atoms, atoms), grid(), edges, count)
    return edges


def grid() -> Grid:
    return Grid(CUTOFF, KNOTS, 1, EXPONENT)


def functions(center: Center) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gates, amplitudes and envelope with the derivatives by the distance that the tables and edges hold."""
    table, edges = center.table, center.edges
    low, high = table[edges.slot], table[edges.slot + 1]
    value = np.einsum("ek,ekh->eh", edges.spline[:, :6], np.concatenate([low[:, :3], high[:, :3]], axis=1))
    slope = np.einsum("ek,ekh->eh", edges.spline[:, 6:], np.concatenate([low[:, [3, 1, 2]], high[:, 1:3]], axis=1))
    return torch.from_numpy(value), torch.from_numpy(slope), torch.from_numpy(edges.envelope)


def reference(center: Center) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, and derivatives of their sum times `upstream` by products of query and key, and by distances."""
    value, slope, envelope = functions(center)
    moved = torch.zeros(len(center.distance), 1, dtype=torch.float64, requires_grad=True)
    query, key = (torch.from_numpy(array).double() for array in center.features[:2])
    products = torch.einsum("dh,edh->eh", query[0], key[1:]).requires_grad_(True)
    gate, amplitude = torch.chunk(value + slope * moved, 2, dim=1)
    u, score = envelope[:, :1] + envelope[:, 1:] * moved, gate * products
    if center.rule == "softmax":
        shift = score.max(dim=0).values
        power = torch.exp(score - shift) * u
        weights = power / (power.sum(dim=0) + OFFSET)
    else:
        weights = (torch.sigmoid(score) if center.rule == "sigmoid" else torch.nn.functional.softplus(score)) * u
    weights = weights * amplitude
    gradients = torch.autograd.grad((weights * torch.from_numpy(center.upstream)).sum(), (products, moved))
    return weights.detach(), gradients[0], gradients[1][:, 0]


@rules
@everywhere
def test_weights_and_derivatives_are_those_of_autograd(rule: str, sizes: tuple[int, int]) -> None:
    center = Center(rule, sizes)
    weights, d_product, d_distance = reference(center)
    np.testing.assert_allclose(center.weight, weights, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(center.d_product, d_product, rtol=0.0, atol=1e-11 * float(d_product.abs().max()))
    scale = max(1.0, float(d_distance.abs().max()))
    np.testing.assert_allclose(center.d_distance - 1.0, d_distance, rtol=0.0, atol=1e-11 * scale)


@rules
@everywhere
def test_gates_that_are_given_act_as_those_of_the_table(rule: str, sizes: tuple[int, int]) -> None:
    center, given = Center(rule, sizes), Center(rule, sizes, given=True)
    slope = functions(center)[1].numpy()[:, : sizes[0]]
    np.testing.assert_allclose(given.weight, center.weight, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(given.d_product, center.d_product, rtol=1e-10, atol=1e-12)
    d_distance = given.d_distance + (given.d_gates * slope).sum(axis=1)
    np.testing.assert_allclose(d_distance, center.d_distance, rtol=0.0, atol=1e-11 * abs(d_distance).max())


@rules
def test_single_precision_differs_by_rounding(rule: str) -> None:
    single, double = Center(rule, (32, 8), dtype=np.float32), Center(rule, (32, 8))
    np.testing.assert_allclose(single.weight, double.weight, rtol=0.0, atol=2e-5 * abs(double.weight).max())


@rules
def test_one_edge_is_enough(rule: str) -> None:
    center = Center(rule, (6, 1), n_edges=1)
    np.testing.assert_allclose(center.weight, reference(center)[0], rtol=1e-12)


def test_equal_largest_scores_share_the_maximum() -> None:
    center = Center("softmax", (6, 1), n_edges=2)
    center.features.key[2], center.edges.slot[1] = center.features.key[1], center.edges.slot[0]
    for array in (center.edges.spline, center.edges.envelope):
        array[1] = array[0]
    weight, d_product, d_distance = np.empty((2, 6)), np.empty((2, 6)), np.zeros(2)
    rule = Rule(SOFTMAX, OFFSET, 1e-12)
    upstream = np.ones((2, 6))
    arguments = center.edges, center.table, None, rule, center.features, upstream, weight, d_product, None, d_distance
    compiled(6, 1)(*arguments)
    np.testing.assert_array_equal(weight[0], weight[1])
    np.testing.assert_array_equal(d_product[0], d_product[1])
