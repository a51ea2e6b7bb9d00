"""Scores of one center's edges, their normalisation, and both backwards; parts of the attention kernels.

The scratch memory of a center is (kinds, neighbours, heads), with a second one (kinds, heads) for its softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import exponential, inline, log_one_plus
from e2former_calc.potentials.inference.geometry import Edges

Array = NDArray[Any]

SOFTMAX, SOFTPLUS, SIGMOID = 0, 1, 2

GATE, AMPLITUDE, PRODUCT, SCORE, WEIGHT, SLOPE, UPSTREAM, BY_ENVELOPE = range(8)
"""Kinds of scratch memory: WEIGHT is the normalised score with envelope, without amplitude."""
MAXIMUM, TIED, TOTAL, LOWEST, MEAN, SHARED, SPARE = range(7)
"""Kinds of scratch memory per head."""


class Rule(NamedTuple):
    """Kind of normalisation, offset of the softmax denominator, relative tolerance of equal maxima."""

    kind: int
    offset: float
    tie: float


class Features(NamedTuple):
    """Queries and keys (atoms, width, heads), and values (atoms, rows, channels)."""

    query: Array
    key: Array
    value: Array


@inline
def scratch_memory(first: int, last: int, edges: Edges, heads: int, table: Array) -> tuple[Array, Array]:
    """Memory for the longest row of edges of these centers, and memory per head."""
    longest = 1
    for i in range(first, last):
        longest = max(longest, edges.row_ptr[i + 1] - edges.row_ptr[i])
    return np.empty((8, longest, heads), table.dtype), np.empty((7, heads), table.dtype)


@inline
def score_edges(i: int, edges: Edges, table: Array, features: Features, scratch: Array, heads: int, width: int) -> None:
    """Gates, amplitudes, products of query and key, and scores of the edges of one center."""
    begin = edges.row_ptr[i]
    for local in range(edges.row_ptr[i + 1] - begin):
        edge = begin + local
        j, slot = edges.source[edge], edges.slot[edge]
        _interpolate(table, slot, edges.spline[edge, :6], scratch[GATE, local], 0, heads)
        _interpolate(table, slot, edges.spline[edge, :6], scratch[AMPLITUDE, local], heads, heads)
        for h in range(heads):
            scratch[PRODUCT, local, h] = 0.0
        for d in range(width):
            for h in range(heads):
                scratch[PRODUCT, local, h] += features.query[i, d, h] * features.key[j, d, h]
        for h in range(heads):
            scratch[SCORE, local, h] = scratch[GATE, local, h] * scratch[PRODUCT, local, h]


@inline
def normalize_scores(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, heads: int) -> None:
    """Normalised scores with envelope; for the derivative SLOPE (by the score) and BY_ENVELOPE, each per weight.

    Softmax: SLOPE holds exp(score - M) instead, and `head` the constants of the row.
    """
    zero, one = head.dtype.type(0.0), head.dtype.type(1.0)
    if rule.kind == SOFTMAX:
        _softmax(n_edges, rule, scratch, envelope, head, heads)
        return
    for local in range(n_edges):
        u = envelope[local, 0]
        for h in range(heads):
            score = scratch[SCORE, local, h]
            decay = exponential(-abs(score))
            logistic = (one if score >= zero else decay) / (one + decay)
            if rule.kind == SOFTPLUS:
                function, slope = max(score, zero) + log_one_plus(decay), logistic
            else:
                function, slope = logistic, logistic * (one - logistic)
            scratch[WEIGHT, local, h] = function * u
            scratch[SLOPE, local, h] = slope * u
            scratch[BY_ENVELOPE, local, h] = function


@inline
def _softmax(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, heads: int) -> None:
    """Weights p / (sum p + offset), p = exp(score - M) u, with M the mean of the scores equal to the largest one."""
    _maximum(n_edges, rule, scratch, head, heads)
    for h in range(heads):
        head[TOTAL, h] = head.dtype.type(rule.offset)
    for local in range(n_edges):
        u = envelope[local, 0]
        for h in range(heads):
            scratch[SLOPE, local, h] = exponential(scratch[SCORE, local, h] - head[MAXIMUM, h])
            head[TOTAL, h] += scratch[SLOPE, local, h] * u
    for local in range(n_edges):
        u = envelope[local, 0]
        for h in range(heads):
            scratch[WEIGHT, local, h] = scratch[SLOPE, local, h] * u / head[TOTAL, h]


@inline
def _maximum(n_edges: int, rule: Rule, scratch: Array, head: Array, heads: int) -> None:
    """MAXIMUM, the number TIED of scores that make it, and LOWEST, the smallest of what counts as equal to it."""
    zero, one = head.dtype.type(0.0), head.dtype.type(1.0)
    for h in range(heads):
        head[LOWEST, h] = scratch[SCORE, 0, h]
        head[MAXIMUM, h], head[TIED, h] = zero, zero
    for local in range(1, n_edges):
        for h in range(heads):
            head[LOWEST, h] = max(head[LOWEST, h], scratch[SCORE, local, h])
    for h in range(heads):
        head[LOWEST, h] -= head.dtype.type(rule.tie) * max(abs(head[LOWEST, h]), one)
    for local in range(n_edges):
        for h in range(heads):
            equal = scratch[SCORE, local, h] >= head[LOWEST, h]
            head[MAXIMUM, h] += scratch[SCORE, local, h] if equal else zero
            head[TIED, h] += one if equal else zero
    for h in range(heads):
        head[MAXIMUM, h] /= head[TIED, h]


@inline
def normalize_backward(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, heads: int) -> None:
    """From UPSTREAM, the derivative by weight times amplitude, to SLOPE by the score and BY_ENVELOPE."""
    if rule.kind == SOFTMAX:
        _softmax_backward(n_edges, rule, scratch, envelope, head, heads)
        return
    for local in range(n_edges):
        for h in range(heads):
            flow = scratch[UPSTREAM, local, h] * scratch[AMPLITUDE, local, h]
            scratch[SLOPE, local, h] *= flow
            scratch[BY_ENVELOPE, local, h] *= flow


@inline
def _softmax_backward(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, heads: int) -> None:
    """Softmax a = p / (S + offset), p = exp(s - M) u: with g = dE/da and G = sum g a over the row,
    dE/dp = (g - G) / (S + offset), dE/ds = p dE/dp, and dE/dM = -sum p dE/dp = -G offset / (S + offset) goes to the
    scores that made M.
    """
    zero = head.dtype.type(0.0)
    for h in range(heads):
        head[MEAN, h] = zero
    for local in range(n_edges):
        for h in range(heads):
            flow = scratch[UPSTREAM, local, h] * scratch[AMPLITUDE, local, h]
            head[MEAN, h] += flow * scratch[WEIGHT, local, h]
    for h in range(heads):
        head[SHARED, h] = -head[MEAN, h] * head.dtype.type(rule.offset) / head[TOTAL, h] / head[TIED, h]
    for local in range(n_edges):
        u = envelope[local, 0]
        for h in range(heads):
            flow = scratch[UPSTREAM, local, h] * scratch[AMPLITUDE, local, h]
            by_envelope = (flow - head[MEAN, h]) / head[TOTAL, h] * scratch[SLOPE, local, h]
            shared = head[SHARED, h] if scratch[SCORE, local, h] >= head[LOWEST, h] else zero
            scratch[SLOPE, local, h] = by_envelope * u + shared
            scratch[BY_ENVELOPE, local, h] = by_envelope


@inline
def distance_slope(edge: int, local: int, edges: Edges, table: Array, scratch: Array, slope: Array, heads: int) -> Any:
    """Derivative by the distance through gates, amplitudes and envelope."""
    slot, du = edges.slot[edge], edges.envelope[edge, 1]
    total = table.dtype.type(0.0)
    _interpolate_slope(table, slot, edges.spline[edge], slope, 0, heads)
    for h in range(heads):
        by_gate = scratch[SLOPE, local, h] * scratch[PRODUCT, local, h]
        total += by_gate * slope[h] + scratch[BY_ENVELOPE, local, h] * du
    _interpolate_slope(table, slot, edges.spline[edge], slope, heads, heads)
    for h in range(heads):
        total += scratch[UPSTREAM, local, h] * scratch[WEIGHT, local, h] * slope[h]
    return total


@inline
def _interpolate(table: Array, slot: int, spline: Array, result: Array, start: int, count: int) -> None:
    """Spline of `count` functions from `start` on."""
    a, b, c, d, e, f = spline[0], spline[1], spline[2], spline[3], spline[4], spline[5]
    for h in range(count):
        k = start + h
        low = a * table[slot, 0, k] + b * table[slot, 1, k] + c * table[slot, 2, k]
        result[h] = low + d * table[slot + 1, 0, k] + e * table[slot + 1, 1, k] + f * table[slot + 1, 2, k]


@inline
def _interpolate_slope(table: Array, slot: int, spline: Array, result: Array, start: int, count: int) -> None:
    """Derivatives of the splines by the distance."""
    a, b, c, d, e = spline[6], spline[7], spline[8], spline[9], spline[10]
    for h in range(count):
        k = start + h
        low = a * table[slot, 3, k] + b * table[slot, 1, k] + c * table[slot, 2, k]
        result[h] = low + d * table[slot + 1, 1, k] + e * table[slot + 1, 2, k]
