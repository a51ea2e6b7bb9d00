"""What the attention kernels share: radial functions, scores and weights of one edge, for a block of heads."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from e2former_calc.potentials.kernels.spline.device import spline

LOWEST = tl.constexpr(-1e30)
"""Score of an edge that does not exist; finite, so that the difference of two of them is zero."""


@triton.jit
def radial_functions(
    radial,
    edge,
    heads,
    mask,
    HEADS: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
):
    """Gates and amplitudes of one edge, and their slopes; without a table (KNOTS = 0) they are given and have none.

    `radial` is (table or values per edge, pair of elements, distance).
    """
    table, pair, distance = radial
    if KNOTS == 0:
        row = table + edge * (2 * HEADS) + heads
        gate = tl.load(row, mask=mask, other=0.0)
        amplitude = tl.load(row + HEADS, mask=mask, other=0.0)
        gate_slope, amplitude_slope = tl.zeros_like(gate), tl.zeros_like(gate)
    else:
        functions = (table, tl.load(pair + edge), tl.load(distance + edge))
        gate, gate_slope = spline(functions, heads, mask, SPACING, KNOTS, DERIVATIVES, 2 * HEADS)
        amplitude, amplitude_slope = spline(functions, heads + HEADS, mask, SPACING, KNOTS, DERIVATIVES, 2 * HEADS)
    return gate, amplitude, gate_slope, amplitude_slope


@triton.jit
def head_features(features, atom, heads, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Rows of queries or keys of one atom, [heads, width]; zero where the block is larger."""
    column = tl.arange(0, BLOCK_WIDTH)
    offsets = heads[:, None] * WIDTH + column[None, :]
    mask = (heads[:, None] < HEADS) & (column[None, :] < WIDTH)
    return tl.load(features + atom.to(tl.int64) * (HEADS * WIDTH) + offsets, mask=mask, other=0.0)


@triton.jit
def feature_rows(rows, heads, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Offsets and mask, [rows, heads], of the features of one atom seen as a matrix of H columns."""
    return rows[:, None] * HEADS + heads[None, :], (rows[:, None] < ROWS) & (heads[None, :] < HEADS)


@triton.jit
def log_one_plus(y):
    """log(1 + y) for 0 <= y <= 1, accurate for small y."""
    x = 1.0 + y
    lost = x == 1.0
    return tl.where(lost, y, tl.log(x) * (y / tl.where(lost, 1.0, x - 1.0)))


@triton.jit
def activation(score, NORMALIZATION: tl.constexpr):
    """Softplus (above 20 the score itself, as in torch) or sigmoid, and its derivative."""
    small = tl.exp(-tl.abs(score))
    sigmoid = tl.where(score >= 0.0, 1.0, small) / (1.0 + small)
    if NORMALIZATION == "softplus":
        result = tl.where(score > 20.0, score, tl.maximum(score, 0.0) + log_one_plus(small))
        slope = tl.where(score > 20.0, 1.0, sigmoid)
    else:
        result = sigmoid
        slope = small / ((1.0 + small) * (1.0 + small))
    return result, slope
