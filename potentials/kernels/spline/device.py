"""Spline evaluation inside Triton kernels: the left value plus chord, slopes and curvatures, as in the reference."""

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
    rows = table + (pair.to(tl.int64) * KNOTS + knot) * ((DERIVATIVES + 1) * WIDTH) + columns
    if DERIVATIVES == 2:
        value, slope = cubic(rows, s, mask, SPACING, WIDTH)
    else:
        value, slope = quintic(rows, s, mask, SPACING, WIDTH)
    return value, tl.where(inside, slope * (1.0 / SPACING), 0.0)


@triton.jit
def cubic(rows, s, mask, SPACING: tl.constexpr, WIDTH: tl.constexpr):
    """Cubic interpolant and its derivative with respect to s; brackets hold what is the same for all functions."""
    t = 1.0 - s
    a = tl.load(rows, mask=mask, other=0.0)
    a1 = tl.load(rows + WIDTH, mask=mask, other=0.0) * SPACING
    chord = tl.load(rows + 2 * WIDTH, mask=mask, other=0.0) * SPACING
    b1 = tl.load(rows + 4 * WIDTH, mask=mask, other=0.0) * SPACING
    slope = (t * (t - 2.0 * s)) * a1 + (6.0 * s * t) * chord + (s * (s - 2.0 * t)) * b1
    value = a + (t * t * s) * a1 + (s * s) * ((1.0 + 2.0 * t) * chord - t * b1)
    return value, slope


@triton.jit
def quintic(rows, s, mask, SPACING: tl.constexpr, WIDTH: tl.constexpr):
    """Quintic interpolant and its derivative with respect to s; left knot first, which needs the fewest registers."""
    t = 1.0 - s
    s2, t2 = s * s, t * t
    a = tl.load(rows, mask=mask, other=0.0)
    a1 = tl.load(rows + WIDTH, mask=mask, other=0.0) * SPACING
    a2 = tl.load(rows + 2 * WIDTH, mask=mask, other=0.0) * (SPACING * SPACING)
    chord = tl.load(rows + 3 * WIDTH, mask=mask, other=0.0) * SPACING
    b1 = tl.load(rows + 5 * WIDTH, mask=mask, other=0.0) * SPACING
    b2 = tl.load(rows + 6 * WIDTH, mask=mask, other=0.0) * (SPACING * SPACING)
    slope = (t2 * (1.0 + 2.0 * s - 15.0 * s2)) * a1 + (0.5 * s * t2 * (2.0 - 5.0 * s)) * a2
    value = a + (t * t2) * ((s * (1.0 + 3.0 * s)) * a1 + (0.5 * s2) * a2)
    right = (1.0 + 3.0 * t + 6.0 * t2) * chord - (t * (1.0 + 3.0 * t)) * b1 + (0.5 * t2) * b2
    slope += s2 * ((30.0 * t2) * chord + (1.0 + 2.0 * t - 15.0 * t2) * b1 + (0.5 * t * (5.0 * t - 2.0)) * b2)
    return value + (s * s2) * right, slope
