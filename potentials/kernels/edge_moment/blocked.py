"""`edge_moment` in blocks of centers; neighbour features are gathered again in backward.

Memory beyond inputs and output is one block, whatever the number of edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from e2former_calc.potentials.kernels.blocks import Block, center_blocks


def edge_moment(weight: Tensor, basis: Tensor, value: Tensor, source: Tensor, row_ptr: Tensor) -> Tensor:
    """Same result as the reference; twice differentiable."""
    moment: Tensor = _EdgeMoment.apply(weight, basis, value, source, row_ptr)  # type: ignore[no-untyped-call]
    return moment


class _EdgeMoment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, basis: Tensor, value: Tensor, source: Tensor, row_ptr: Tensor) -> Tensor:
        ctx.save_for_backward(weight, basis, value, source, row_ptr)
        rows, channels = value.shape[1:]
        parts = []
        for block in center_blocks(row_ptr, rows * channels):
            _, message = _messages(block, weight, value, source)
            parts.append(basis[block.edge].mT @ message.flatten(2))
        moment: Tensor = torch.cat(parts).unflatten(2, (rows, channels))
        return moment

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, basis, value, source, row_ptr = ctx.saved_tensors
        rows, channels = value.shape[1:]
        heads = weight.shape[1]
        grad_weight, grad_basis, grad_value = [], [], torch.zeros_like(value)
        for block in center_blocks(row_ptr, rows * channels):
            gathered, message = _messages(block, weight, value, source)
            upstream = grad[block.first : block.last].flatten(2)
            grad_basis.append((message.flatten(2) @ upstream.mT)[block.valid])
            field = (basis[block.edge] @ upstream).unflatten(2, (rows, channels // heads, heads))
            grad_weight.append((field * gathered).sum((2, 3))[block.valid])
            spread = (field * _per_channel(block, weight)).flatten(3)[block.valid]
            grad_value.index_add_(0, source[block.edge[block.valid]], spread)
        return torch.cat(grad_weight), torch.cat(grad_basis), grad_value, None, None


def _messages(block: Block, weight: Tensor, value: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Gathered features (centers, slots, rows, C/H, H), and the same times their weights, (centers, slots, rows, C)."""
    heads = weight.shape[1]
    gathered = value[source[block.edge]].unflatten(3, (-1, heads))
    return gathered, (gathered * _per_channel(block, weight)).flatten(3)


def _per_channel(block: Block, weight: Tensor) -> Tensor:
    """Weights (centers, slots, 1, 1, H); zero in padded slots."""
    padded = weight[block.edge] * block.valid[..., None].to(weight.dtype)
    return padded[:, :, None, None, :]
