"""Launches of the Triton kernels of `edge_embedding`, and their place in automatic differentiation."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2former_calc.potentials.kernels.edge_embedding import triton_backward, triton_forward
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.spline import TabulatedFunctions

MAX_BLOCK_CHANNELS = 128
"""Channels of one program: four per lane of a warp, read as one vector."""


def edge_embedding(functions: TabulatedFunctions, harmonics: Tensor, index: EdgeIndex) -> Tensor:
    """Same result as the reference; differentiable once."""
    table = functions.table
    degrees = isqrt(harmonics.shape[1])
    channels = table.values.shape[3] // degrees
    options = {
        "CHANNELS": channels,
        "DEGREES": degrees,
        "SPACING": table.spacing,
        "KNOTS": table.values.shape[1],
        "DERIVATIVES": table.derivatives,
        "BLOCK_ORDERS": triton.next_power_of_2(2 * degrees - 1),
        "BLOCK_CHANNELS": min(MAX_BLOCK_CHANNELS, triton.next_power_of_2(channels)),
        "num_warps": 1,
        "enable_fp_fusion": True,
    }
    tensors = (table.values, functions.pair, functions.distance, harmonics)
    contiguous = [tensor.contiguous() for tensor in tensors]
    with torch.cuda.device_of(harmonics):  # kernels start on the current device
        features: Tensor = _EdgeEmbedding.apply(*contiguous, index, options)  # type: ignore[no-untyped-call]
    return features


class _EdgeEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        pair: Tensor,
        distance: Tensor,
        harmonics: Tensor,
        index: EdgeIndex,
        options: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(table, pair, distance, harmonics)
        ctx.index, ctx.options = index, options
        features = harmonics.new_empty(index.n_atoms, harmonics.shape[1], options["CHANNELS"])
        inputs = {"table": table, "pair": pair, "distance": distance, "harmonics": harmonics, "row_ptr": index.row_ptr}
        triton_forward.embedding_forward_kernel[_grid(index, options)](**inputs, features=features, **options)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: Tensor) -> tuple[Tensor | None, ...]:
        table, pair, distance, harmonics = ctx.saved_tensors
        index, options = ctx.index, ctx.options
        grid = _grid(index, options)
        # Zeros, not empty: slots of a list of fixed capacity that no center reaches have no gradient.
        d_harmonics = harmonics.new_zeros(grid[1], *harmonics.shape)
        d_distance = harmonics.new_zeros(grid[1], index.n_edges, options["DEGREES"])
        inputs = {"table": table, "pair": pair, "distance": distance, "harmonics": harmonics, "row_ptr": index.row_ptr}
        outputs = {"d_harmonics": d_harmonics, "d_distance": d_distance, "n_edges": index.n_edges}
        triton_backward.embedding_backward_kernel[grid](
            **inputs, d_features=d_features.contiguous(), **outputs, **options
        )
        return None, None, d_distance.sum((0, 2)).to(distance.dtype), d_harmonics.sum(0), None, None


def _grid(index: EdgeIndex, options: dict[str, Any]) -> tuple[int, int, int]:
    """One program per atom, block of channels and degree."""
    return index.n_atoms, triton.cdiv(options["CHANNELS"], options["BLOCK_CHANNELS"]), options["DEGREES"]
