"""Launches of the Triton kernels of `fused_attention`, and their place in automatic differentiation."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention import triton_backward, triton_forward
from e2former_calc.potentials.kernels.fused_attention.inputs import (
    DENOMINATOR_OFFSET,
    TIE_ROUNDING,
    AttentionEdges,
    Normalization,
)
from e2former_calc.potentials.kernels.spline import TabulatedFunctions

MAX_BLOCK_HEADS = 32
"""Heads of one program: the lanes of a warp, so that a row of features is read as whole cache lines."""
NUMBERS_PER_WARP = 1024
"""Accumulators per direction that one warp holds in registers."""

PIPELINE_STAGES = 1
"""Edges in flight in a program: 1 loads one at a time, 2 or 3 copy the next ones to shared memory meanwhile."""


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, edges: AttentionEdges, index: EdgeIndex, normalization: Normalization
) -> Tensor:
    """Same result as the reference; differentiable once."""
    if isinstance(edges.radial, TabulatedFunctions):
        table = edges.radial.table
        radial, distance, pair = table.values, edges.radial.distance, edges.radial.pair
        interpolation = {"SPACING": table.spacing, "KNOTS": radial.shape[1], "DERIVATIVES": table.derivatives}
    else:
        radial, distance, pair = edges.radial, edges.envelope, index.center
        interpolation = {"SPACING": 1.0, "KNOTS": 0, "DERIVATIVES": 0}
    direction = edges.envelope if edges.direction is None else edges.direction
    order = 1 if edges.direction is None else 3
    options = _sizes(query, value) | interpolation
    options |= {"ORDER": order, "NORMALIZATION": normalization, "ABSENT": edges.absent_outside}
    tensors = (query, key, value, radial, distance, edges.envelope, direction)
    contiguous = [tensor.contiguous() for tensor in tensors]
    with torch.cuda.device_of(query):  # kernels start on the current device
        moment: Tensor = _FusedAttention.apply(*contiguous, pair.contiguous(), index, options)  # type: ignore[no-untyped-call]
    return moment


def _sizes(query: Tensor, value: Tensor) -> dict[str, Any]:
    """Sizes that the kernels are compiled for."""
    heads, width = query.shape[1:]
    rows = value.shape[1] * value.shape[2] // heads
    block_rows, block_heads = triton.next_power_of_2(rows), min(MAX_BLOCK_HEADS, triton.next_power_of_2(heads))
    return {
        "HEADS": heads,
        "WIDTH": width,
        "ROWS": rows,
        "TIE": TIE_ROUNDING * torch.finfo(query.dtype).eps,
        "STAGES": PIPELINE_STAGES,
        "BLOCK_HEADS": block_heads,
        "BLOCK_WIDTH": triton.next_power_of_2(width),
        "BLOCK_ROWS": block_rows,
        "num_warps": min(16, max(1, block_rows * block_heads * query.element_size() // (4 * NUMBERS_PER_WARP))),
        "enable_fp_fusion": True,
    }


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        radial: Tensor,
        distance: Tensor,
        envelope: Tensor,
        direction: Tensor,
        pair: Tensor,
        index: EdgeIndex,
        options: dict[str, Any],
    ) -> Tensor:
        moment = value.new_empty(len(value), options["ORDER"], *value.shape[1:])
        statistics = query.new_empty(len(query) if options["NORMALIZATION"] == "softmax" else 0, 3, options["HEADS"])
        inputs = {"query": query, "key": key, "value": value, "radial": radial, "distance": distance, "pair": pair}
        inputs |= {"envelope": envelope, "direction": direction}
        launch = triton_forward.attention_forward_kernel[_grid(index, options)]
        launch(
            **inputs,
            source=index.source,
            row_ptr=index.row_ptr,
            moment=moment,
            statistics=statistics,
            OFFSET=DENOMINATOR_OFFSET,
            **options,
        )
        ctx.save_for_backward(query, key, value, radial, distance, envelope, direction, pair, moment, statistics)
        ctx.index, ctx.options = index, options
        return moment

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_moment: Tensor) -> tuple[Tensor | None, ...]:
        names = ("query", "key", "value", "radial", "distance", "envelope", "direction", "pair")
        *tensors, moment, statistics = ctx.saved_tensors
        inputs = dict(zip(names, tensors, strict=True)) | {"statistics": statistics}
        inputs["d_moment"] = d_moment.contiguous()
        d_radial, d_edge, d_query, d_row = _center_gradients(inputs, moment, ctx.index, ctx.options)
        d_key, d_value = _source_gradients(inputs, d_row, ctx.index, ctx.options)
        tabulated, first_order = ctx.options["KNOTS"] > 0, ctx.options["ORDER"] == 3
        return (
            d_query,
            d_key,
            d_value,
            None if tabulated else d_radial,
            d_edge[:, 4].to(inputs["distance"].dtype) if tabulated else None,
            d_edge[:, 0],
            d_edge[:, 1:4] if first_order else None,
            *(None,) * 3,
        )


def _center_gradients(
    inputs: dict[str, Any], moment: Tensor, index: EdgeIndex, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives with respect to radial values, the other edge inputs (edges, 5) and queries, and D of every row."""
    query, radial = inputs["query"], inputs["radial"]
    grid = _grid(index, options)
    # Zeros, not empty: slots of a list of fixed capacity that no center reaches have no gradient.
    d_edge = query.new_zeros(grid[1], index.n_edges, 5)
    d_radial = query.new_empty(0) if options["KNOTS"] else torch.zeros_like(radial)
    d_query, d_row = torch.empty_like(query), query.new_empty(query.shape[:2])
    triton_backward.attention_center_kernel[grid](
        **inputs,
        source=index.source,
        row_ptr=index.row_ptr,
        moment=moment,
        d_query=d_query,
        d_radial=d_radial,
        d_edge=d_edge,
        d_row=d_row,
        n_edges=index.n_edges,
        **options,
    )
    return d_radial, d_edge.sum(0), d_query, d_row


def _source_gradients(
    inputs: dict[str, Any], d_row: Tensor, index: EdgeIndex, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to keys and features."""
    d_key, d_value = torch.empty_like(inputs["key"]), torch.empty_like(inputs["value"])
    triton_backward.attention_source_kernel[_grid(index, options)](
        **inputs,
        center=index.center,
        by_source=index.by_source,
        source_ptr=index.source_ptr,
        d_row=d_row,
        d_key=d_key,
        d_value=d_value,
        **options,
    )
    return d_key, d_value


def _grid(index: EdgeIndex, options: dict[str, Any]) -> tuple[int, int]:
    """One program per atom and block of heads; the atoms of one block run together and share what they read."""
    return index.n_atoms, triton.cdiv(options["HEADS"], options["BLOCK_HEADS"])
