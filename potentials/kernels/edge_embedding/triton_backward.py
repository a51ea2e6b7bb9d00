"""Backward kernel of `edge_embedding`: one program per center, block of channels and degree."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from e2former_calc.potentials.kernels.spline.device import spline


@triton.jit
def embedding_backward_kernel(
    table,
    pair,
    distance,
    harmonics,
    row_ptr,
    d_features,
    d_harmonics,
    d_distance,
    n_edges,
    CHANNELS: tl.constexpr,
    DEGREES: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    BLOCK_ORDERS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Parts of this block of channels: d_harmonics (blocks, edges, DEGREES^2), d_distance (blocks, edges, DEGREES)."""
    atom, degree = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    orders = tl.arange(0, BLOCK_ORDERS)
    mask, order_mask = channels < CHANNELS, orders < 2 * degree + 1
    columns = degree * CHANNELS + channels
    rows = degree * degree + orders
    source = d_features + (atom.to(tl.int64) * (DEGREES * DEGREES) + rows[:, None]) * CHANNELS + channels[None, :]
    g = tl.load(source, mask=order_mask[:, None] & mask[None, :], other=0.0)  # [BO, BC]
    block = tl.program_id(1).to(tl.int64) * n_edges
    for edge in range(tl.load(row_ptr + atom).to(tl.int64), tl.load(row_ptr + atom + 1).to(tl.int64)):
        functions = (table, tl.load(pair + edge), tl.load(distance + edge))
        radial, slope = spline(functions, columns, mask, SPACING, KNOTS, DERIVATIVES, DEGREES * CHANNELS)  # [BC]
        y = tl.load(harmonics + edge * (DEGREES * DEGREES) + rows, mask=order_mask, other=0.0)  # [BO]
        by_order = tl.sum(g * radial[None, :], axis=1)
        tl.store(d_harmonics + (block + edge) * (DEGREES * DEGREES) + rows, by_order, mask=order_mask)
        tl.store(d_distance + (block + edge) * DEGREES + degree, tl.sum(y * tl.sum(g * slope[None, :], axis=1), axis=0))
