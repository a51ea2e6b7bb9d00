"""Spline evaluation inside Triton kernels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spline(
    functions,
    columns,
    mask,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Values and slopes of the functions `columns` on one edge; `functions` is (table, pair of elements, distance)."""
    table, pair, distance = functions
    position = distance * (1.0 / SPACING)
    inside = position <= KNOTS - 1
    position = tl.minimum(tl.maximum(position, 0.0), KNOTS - 1.0)
    knot = tl.minimum(position.to(tl.int32), KNOTS - 2)
    s = (position - knot).to(table.dtype.element_ty)
    rows = table + (pair.to(tl.int64) * KNOTS + knot) * (DERIVATIVES * WIDTH) + columns
    if DERIVATIVES == 2:
        value, slope = cubic(rows, s, mask, SPACING, WIDTH)
    else:
        value, slope = quintic(rows, s, mask, SPACING, WIDTH)
    return value, tl.where(inside, slope * (1.0 / SPACING), 0.0)


@triton.jit
def cubic(rows, s, mask, SPACING: tl.constexpr, WIDTH: tl.constexpr):
    """Cubic interpolant and its derivative with respect to s."""
    t = 1.0 - s
    a = tl.load(rows, mask=mask, other=0.0)
    a1 = tl.load(rows + WIDTH, mask=mask, other=0.0) * SPACING
    b = tl.load(rows + 2 * WIDTH, mask=mask, other=0.0)
    b1 = tl.load(rows + 3 * WIDTH, mask=mask, other=0.0) * SPACING
    value = t * t * ((1.0 + 2.0 * s) * a + s * a1) + s * s * ((1.0 + 2.0 * t) * b - t * b1)
    slope = 6.0 * s * t * (b - a) + t * (t - 2.0 * s) * a1 + s * (s - 2.0 * t) * b1
    return value, slope


@triton.jit
def quintic(rows, s, mask, SPACING: tl.constexpr, WIDTH: tl.constexpr):
    """Quintic interpolant and its derivative with respect to s."""
    t = 1.0 - s
    s2, t2 = s * s, t * t
    a = tl.load(rows, mask=mask, other=0.0)
    a1 = tl.load(rows + WIDTH, mask=mask, other=0.0) * SPACING
    a2 = tl.load(rows + 2 * WIDTH, mask=mask, other=0.0) * (SPACING * SPACING)
    b = tl.load(rows + 3 * WIDTH, mask=mask, other=0.0)
    b1 = tl.load(rows + 4 * WIDTH, mask=mask, other=0.0) * SPACING
    b2 = tl.load(rows + 5 * WIDTH, mask=mask, other=0.0) * (SPACING * SPACING)
    left = (1.0 + 3.0 * s + 6.0 * s2) * a + s * (1.0 + 3.0 * s) * a1 + 0.5 * s2 * a2
    right = (1.0 + 3.0 * t + 6.0 * t2) * b - t * (1.0 + 3.0 * t) * b1 + 0.5 * t2 * b2
    slope = 30.0 * s2 * t2 * (b - a) + t2 * (1.0 + 2.0 * s - 15.0 * s2) * a1 + s2 * (1.0 + 2.0 * t - 15.0 * t2) * b1
    slope += 0.5 * s * t * (t * (2.0 - 5.0 * s) * a2 + s * (5.0 * t - 2.0) * b2)
    return t * t2 * left + s * s2 * right, slope
