"""Sums over edges in vector registers are those of numpy, for sizes that fit vectors and for sizes that do not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import njit

from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.moments import (
    SLAB,
    moments_backward,
    sum_fields,
    sum_moments,
    sum_products,
    sum_rows,
)

SIZES = [(16, 8, 64, 9, 3), (3, 5, 6, 4, 1), (8, 1, 32, 16, 3), (12, 3, 48, 1, 1), (1, 2, 5, 25, 3), (64, 33, 64, 4, 3)]
"""Heads, numbers per head, channels, rows, axes."""
DEGREES = (0, 1, 2, 33, 0, 7)

everywhere = pytest.mark.parametrize("sizes", SIZES, ids=str)
precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


class Graph:
    """Random features on a random graph; some atoms have no edges."""

    def __init__(self, sizes: tuple[int, ...], dtype: type) -> None:
        self.sizes, self.dtype, self.generator = sizes, dtype, np.random.default_rng(0)
        heads, _, channels, rows, axes = sizes
        n_atoms, n_edges = len(DEGREES), sum(DEGREES)
        source, center = self.generator.integers(0, n_atoms, n_edges), np.repeat(np.arange(n_atoms), DEGREES)
        empty = np.empty(0)
        self.edges = Edges(
            row_ptr=np.cumsum([0, *DEGREES]), center=center, source=source,
            column_ptr=np.cumsum([0, *np.bincount(source, minlength=n_atoms)]),
            by_source=np.argsort(source, kind="stable"), vector=empty, distance=empty, unit=empty, slot=empty,
            spline=empty, envelope=empty,
        )  # fmt: skip
        self.axes, self.weight = self.random(n_edges, axes), self.random(n_edges, heads)
        self.value, self.d_moment = self.random(n_atoms, rows, channels), self.random(n_atoms, axes, rows, channels)

    def random(self, *shape: int) -> np.ndarray:
        return self.generator.normal(size=shape).astype(self.dtype)

    def unknown(self, *shape: int) -> np.ndarray:
        return np.full(shape, np.nan, self.dtype)

    def spread(self, weight: np.ndarray) -> np.ndarray:
        """Channel c belongs to head c mod heads."""
        return np.tile(weight, self.sizes[2] // self.sizes[0])

    def own(self, i: int) -> slice:
        return slice(self.edges.row_ptr[i], self.edges.row_ptr[i + 1])


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=200 * np.finfo(found.dtype).eps)


@cache
def forward(sizes: tuple[int, ...]) -> Any:
    @njit(error_model="numpy")
    def call(i, edges, axes, value, weight, moment):
        sum_moments(sizes, i, edges, axes, value, weight, moment)

    return call


@cache
def backward(sizes: tuple[int, ...]) -> Any:
    @njit(error_model="numpy")
    def call(i, edges, axes, value, weight, d_moment, kept, slab, d_weight, d_axes):
        moments_backward(sizes, i, edges, axes, value, weight, d_moment, kept, slab, d_weight, d_axes)

    return call


@cache
def by_sources(sizes: tuple[int, ...]) -> Any:
    @njit(error_model="numpy")
    def call(edges, axes, weight, kept, d_value):
        sum_fields(sizes, 0, d_value.shape[0], edges, axes, weight, kept, d_value)

    return call


@cache
def products(sizes: tuple[int, ...], *, listed: bool) -> Any:
    @njit(error_model="numpy")
    def with_list(begin, end, edges, factor, other, result):
        sum_products(sizes, begin, end, edges.by_source, edges.center, factor, other, result)

    @njit(error_model="numpy")
    def without(begin, end, edges, factor, other, result):
        sum_products(sizes, begin, end, None, edges.source, factor, other, result)

    return with_list if listed else without


@everywhere
@precisions
def test_moments_are_sums_over_edges(sizes: tuple[int, ...], dtype: type) -> None:
    graph = Graph(sizes, dtype)
    for i in range(len(DEGREES)):
        own, moment = graph.own(i), graph.unknown(sizes[4], *graph.value.shape[1:])
        forward(sizes)(i, graph.edges, graph.axes, graph.value, graph.weight[own], moment)
        messages = graph.spread(graph.weight[own])[:, None] * graph.value[graph.edges.source[own]]
        assert_close(moment, np.einsum("ek,erc->krc", graph.axes[own], messages))


def run_backward(graph: Graph, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives by weights and axes of the edges of one center, and the memory for the pass over sources."""
    axes, n_edges = graph.sizes[4], sum(DEGREES)
    kept, slab = graph.unknown(*graph.d_moment.shape), graph.unknown(max(DEGREES), SLAB * axes)
    d_weight, d_axes = graph.unknown(max(DEGREES), graph.sizes[0]), np.ones((n_edges, axes), graph.dtype)
    backward(graph.sizes)(
        i, graph.edges, graph.axes, graph.value, graph.weight, graph.d_moment[i], kept, slab, d_weight, d_axes
    )
    return d_weight[: DEGREES[i]], d_axes, kept


@everywhere
@precisions
def test_derivatives_by_weights_and_axes(sizes: tuple[int, ...], dtype: type) -> None:
    graph = Graph(sizes, dtype)
    for i in range(len(DEGREES)):
        own = graph.own(i)
        d_weight, d_axes, _ = run_backward(graph, i)
        flow = np.einsum("krc,erc->ekc", graph.d_moment[i], graph.value[graph.edges.source[own]])
        by_head = flow.reshape(*flow.shape[:2], sizes[2] // sizes[0], sizes[0]).sum(axis=2)
        assert_close(d_weight, np.einsum("ek,ekh->eh", graph.axes[own], by_head))
        expected = np.ones_like(d_axes)
        expected[own] += np.einsum("ekc,ec->ek", flow, graph.spread(graph.weight[own]))
        assert_close(d_axes, expected)


@everywhere
@precisions
def test_derivative_by_values(sizes: tuple[int, ...], dtype: type) -> None:
    graph, d_value = Graph(sizes, dtype), None
    kept = np.nanmax([run_backward(graph, i)[2] for i in range(len(DEGREES))], axis=0)
    d_value = graph.unknown(*graph.value.shape)
    by_sources(sizes)(graph.edges, graph.axes, graph.weight, kept, d_value)
    fields = np.einsum("ek,ekrc->erc", graph.axes, graph.d_moment[graph.edges.center])
    expected = np.zeros_like(d_value)
    np.add.at(expected, graph.edges.source, graph.spread(graph.weight)[:, None] * fields)
    assert_close(d_value, expected)


@everywhere
@pytest.mark.parametrize("listed", [True, False])
def test_products_are_summed_per_head(sizes: tuple[int, ...], *, listed: bool) -> None:
    graph = Graph(sizes, np.float32)
    other, result = graph.random(len(DEGREES), sizes[1], sizes[0]), graph.unknown(sizes[1], sizes[0])
    begin, end = 2, 31
    products(sizes, listed=listed)(begin, end, graph.edges, graph.weight, other, result)
    chosen = graph.edges.by_source[begin:end] if listed else np.arange(begin, end)
    atoms = graph.edges.center if listed else graph.edges.source
    assert_close(result, np.einsum("eh,edh->dh", graph.weight[chosen], other[atoms[chosen]]))


@everywhere
@precisions
def test_rows_are_summed_with_factors(sizes: tuple[int, ...], dtype: type) -> None:
    @njit(error_model="numpy")
    def call(begin, end, factor, place, source, target):
        sum_rows(sizes, begin, end, factor, place, source, 3, target, 1)

    generator, channels = np.random.default_rng(0), sizes[2]
    source, factor = generator.normal(size=channels + 20).astype(dtype), generator.normal(size=9).astype(dtype)
    place, target = generator.integers(0, 16, 9), np.full(channels + 2, np.nan, dtype)
    call(2, 7, factor, place, source, target)
    expected = sum(factor[term] * source[3 + place[term] :][:channels] for term in range(2, 7))
    np.testing.assert_allclose(target, [np.nan, *expected, np.nan], rtol=0.0, atol=20 * np.finfo(dtype).eps)
