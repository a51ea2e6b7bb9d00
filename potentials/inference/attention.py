"""Attention and convolution over edges in one pass per center, and its derivative; no edge tensor is kept.

Forward, for each center: scores from queries, keys and tabulated gates; weights (softmax with an absolute offset,
softplus or sigmoid) times tabulated amplitudes; moments of the source features along 1, or x, y, z; contraction with
Clebsch-Gordan coefficients into the rows that the following matrix product reads. The derivative computes the
scores again. It runs once over centers (queries, geometry) and once over sources (keys, values), so that no
two threads add to the same number and the order of every sum is fixed.

The kernels are compiled for the sizes of a network: loops of known length become a few vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline, kernel
from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.scores import (
    AMPLITUDE,
    GATE,
    SLOPE,
    SPARE,
    UPSTREAM,
    WEIGHT,
    Features,
    Rule,
    distance_slope,
    normalize_backward,
    normalize_scores,
    score_edges,
    scratch_memory,
)

Array = NDArray[Any]

Sizes = tuple[int, int, int, int, int]
"""Heads, numbers per head, channels, rows of features, and axes of moments (1 or 3)."""


class Contraction(NamedTuple):
    """Sparse contraction of moments: output[start * atoms + atom * stride + shift + c] += factor * moment[entry, c].

    `entry` counts (axis, row) pairs; `output` is all degrees one after the other, each (row, atom, path, channel).
    """

    entry: Array
    factor: Array
    start: Array
    stride: Array
    shift: Array


class Upstream(NamedTuple):
    """What the pass over centers leaves for the pass over sources.

    Attributes:
        moment: derivatives by the moments of every center, (atoms, axes, rows, channels).
        product: derivatives by the scalar products of query and key, (edges, heads).
        weight: attention weights, (edges, heads).
    """

    moment: Array
    product: Array
    weight: Array


class Gradients(NamedTuple):
    """Derivatives by queries (atoms, width, heads); by axes (edges, axes) and distances (edges), which are added to."""

    query: Array
    axes: Array
    distance: Array


class AttentionKernels(NamedTuple):
    """Compiled functions; each works on the atoms first ... last - 1.

    Attributes:
        attend: (first, last, edges, axes, table, rule, features, contraction, output); adds to `output`. `axes` is
            (edges, 1 or 3), what moments are taken along; `table` is (slots, 4, 2 * heads), gates and amplitudes.
        by_centers: (first, last, edges, axes, table, rule, features, contraction, d_output, upstream, gradients);
            fills `upstream` and the derivative by queries, adds to the others.
        by_sources: (first, last, edges, axes, features, upstream, d_key, d_value); fills `d_key` and `d_value`.
    """

    attend: Callable[..., None]
    by_centers: Callable[..., None]
    by_sources: Callable[..., None]


@cache
def attention_kernels(sizes: Sizes) -> AttentionKernels:
    """Kernels for the sizes of one layer."""
    return AttentionKernels(_attend(sizes), _by_centers(sizes), _by_sources(sizes))


def _attend(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def attend(
        first: int, last: int, edges: Edges, axes: Array, table: Array, rule: Rule, features: Features,
        contraction: Contraction, output: Array,
    ) -> None:  # fmt: skip
        scratch, head = scratch_memory(first, last, edges, sizes[0], table)
        weight = np.empty(sizes[2], table.dtype)
        moment = np.empty((sizes[4], sizes[3], sizes[2]), table.dtype)
        for i in range(first, last):
            begin, end = edges.row_ptr[i], edges.row_ptr[i + 1]
            moment[:] = 0.0
            if end > begin:
                score_edges(i, edges, table, features, scratch, sizes[0], sizes[1])
                normalize_scores(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes[0])
            for edge in range(begin, end):
                _spread(scratch[WEIGHT, edge - begin], scratch[AMPLITUDE, edge - begin], weight, sizes)
                _add_message(features.value[edges.source[edge]], weight, axes[edge], moment, sizes)
            _contract(i, contraction, moment.reshape(sizes[4] * sizes[3], sizes[2]), output, features, sizes)

    return attend


def _by_centers(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def by_centers(
        first: int, last: int, edges: Edges, axes: Array, table: Array, rule: Rule, features: Features,
        contraction: Contraction, d_output: Array, upstream: Upstream, gradients: Gradients,
    ) -> None:  # fmt: skip
        scratch, head = scratch_memory(first, last, edges, sizes[0], table)
        weight, flow = np.empty(sizes[2], table.dtype), np.empty((sizes[4], sizes[2]), table.dtype)
        for i in range(first, last):
            begin, end = edges.row_ptr[i], edges.row_ptr[i + 1]
            moment = upstream.moment[i]
            _contract_backward(i, contraction, d_output, moment.reshape(sizes[4] * sizes[3], sizes[2]), features, sizes)
            gradients.query[i] = 0.0
            if end == begin:
                continue
            score_edges(i, edges, table, features, scratch, sizes[0], sizes[1])
            normalize_scores(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes[0])
            for edge in range(begin, end):
                local = edge - begin
                for h in range(sizes[0]):
                    upstream.weight[edge, h] = scratch[WEIGHT, local, h] * scratch[AMPLITUDE, local, h]
                _spread(scratch[WEIGHT, local], scratch[AMPLITUDE, local], weight, sizes)
                _moment_flow(moment, features.value[edges.source[edge]], flow, sizes)
                _message_backward(flow, weight, axes[edge], scratch[UPSTREAM, local], gradients.axes[edge], sizes)
            normalize_backward(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes[0])
            for edge in range(begin, end):
                local = edge - begin
                slope = distance_slope(edge, local, edges, table, scratch, head[SPARE], sizes[0])
                gradients.distance[edge] += slope
                for h in range(sizes[0]):
                    upstream.product[edge, h] = scratch[SLOPE, local, h] * scratch[GATE, local, h]
                _add_products(upstream.product[edge], features.key[edges.source[edge]], gradients.query[i], sizes)

    return by_centers


def _by_sources(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def by_sources(
        first: int, last: int, edges: Edges, axes: Array, features: Features, upstream: Upstream, d_key: Array,
        d_value: Array,
    ) -> None:  # fmt: skip
        weight = np.empty(sizes[2], d_value.dtype)
        for j in range(first, last):
            d_value[j] = 0.0
            d_key[j] = 0.0
            for place in range(edges.column_ptr[j], edges.column_ptr[j + 1]):
                edge = edges.by_source[place]
                i = edges.center[edge]
                for c in range(sizes[2]):
                    weight[c] = upstream.weight[edge, c % sizes[0]]
                _add_field(upstream.moment[i], weight, axes[edge], d_value[j], sizes)
                _add_products(upstream.product[edge], features.query[i], d_key[j], sizes)

    return by_sources


@inline
def _spread(normalized: Array, amplitude: Array, weight: Array, sizes: Sizes) -> None:
    """Weight of every channel; channel c belongs to head c mod heads."""
    for c in range(sizes[2]):
        weight[c] = normalized[c % sizes[0]] * amplitude[c % sizes[0]]


@inline
def _add_message(value: Array, weight: Array, along: Array, moment: Array, sizes: Sizes) -> None:
    for row in range(sizes[3]):
        for c in range(sizes[2]):
            message = weight[c] * value[row, c]
            for axis in range(sizes[4]):
                moment[axis, row, c] += along[axis] * message


@inline
def _moment_flow(moment: Array, value: Array, flow: Array, sizes: Sizes) -> None:
    """Sum over rows of (derivative by moment) times value, for each axis and channel."""
    for axis in range(sizes[4]):
        for c in range(sizes[2]):
            flow[axis, c] = 0.0
    for row in range(sizes[3]):
        for axis in range(sizes[4]):
            for c in range(sizes[2]):
                flow[axis, c] += moment[axis, row, c] * value[row, c]


@inline
def _message_backward(flow: Array, weight: Array, along: Array, d_weight: Array, d_along: Array, sizes: Sizes) -> None:
    """Derivatives by the weight of every head, and (added) by the axes."""
    for h in range(sizes[0]):
        d_weight[h] = 0.0
    for axis in range(sizes[4]):
        total, factor = flow.dtype.type(0.0), along[axis]
        for c in range(sizes[2]):
            total += weight[c] * flow[axis, c]
        for c in range(sizes[2]):
            d_weight[c % sizes[0]] += factor * flow[axis, c]
        d_along[axis] += total


@inline
def _add_field(moment: Array, weight: Array, along: Array, d_value: Array, sizes: Sizes) -> None:
    """Derivative by the value of a source: the derivatives by all moments of a center, summed along its axes."""
    for row in range(sizes[3]):
        for c in range(sizes[2]):
            field = along[0] * moment[0, row, c]
            for axis in range(1, sizes[4]):
                field += along[axis] * moment[axis, row, c]
            d_value[row, c] += weight[c] * field


@inline
def _add_products(d_product: Array, other: Array, result: Array, sizes: Sizes) -> None:
    """Derivative of scalar products by one factor."""
    for d in range(sizes[1]):
        for h in range(sizes[0]):
            result[d, h] += d_product[h] * other[d, h]


@inline
def _contract(i: int, contraction: Contraction, moment: Array, output: Array, features: Features, sizes: Sizes) -> None:
    n_atoms = features.query.shape[0]
    for term in range(contraction.entry.shape[0]):
        place = contraction.start[term] * n_atoms + contraction.stride[term] * i + contraction.shift[term]
        entry, factor = contraction.entry[term], contraction.factor[term]
        for c in range(sizes[2]):
            output[place + c] += factor * moment[entry, c]


@inline
def _contract_backward(
    i: int, contraction: Contraction, d_output: Array, d_moment: Array, features: Features, sizes: Sizes
) -> None:
    n_atoms = features.query.shape[0]
    d_moment[:] = 0.0
    for term in range(contraction.entry.shape[0]):
        place = contraction.start[term] * n_atoms + contraction.stride[term] * i + contraction.shift[term]
        entry, factor = contraction.entry[term], contraction.factor[term]
        for c in range(sizes[2]):
            d_moment[entry, c] += factor * d_output[place + c]
