"""Forward kernel of `edge_embedding`: one program per center, block of channels and degree."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from e2former_calc.potentials.kernels.spline.device import spline


@triton.jit
def embedding_forward_kernel(
    table,
    pair,
    distance,
    harmonics,
    row_ptr,
    features,
    CHANNELS: tl.constexpr,
    DEGREES: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    BLOCK_ORDERS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Rows of one degree of the features (atoms, DEGREES^2, CHANNELS)."""
    atom, degree = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    orders = tl.arange(0, BLOCK_ORDERS)
    mask, order_mask = channels < CHANNELS, orders < 2 * degree + 1
    columns = degree * CHANNELS + channels
    rows = degree * degree + orders
    total = tl.zeros([BLOCK_ORDERS, BLOCK_CHANNELS], features.dtype.element_ty)
    for edge in range(tl.load(row_ptr + atom).to(tl.int64), tl.load(row_ptr + atom + 1).to(tl.int64)):
        functions = (table, tl.load(pair + edge), tl.load(distance + edge))
        radial, _ = spline(functions, columns, mask, SPACING, KNOTS, DERIVATIVES, DEGREES * CHANNELS)  # [BC]
        y = tl.load(harmonics + edge * (DEGREES * DEGREES) + rows, mask=order_mask, other=0.0)  # [BO]
        total += y[:, None] * radial[None, :]
    target = features + (atom.to(tl.int64) * (DEGREES * DEGREES) + rows[:, None]) * CHANNELS + channels[None, :]
    tl.store(target, total, mask=order_mask[:, None] & mask[None, :])
