"""`edge_dot` that keeps queries and keys for backward, but no gathered edge rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from e2former_calc.potentials.kernels.blocks import BLOCK_NUMBERS


def edge_dot(query: Tensor, key: Tensor, center: Tensor, source: Tensor) -> Tensor:
    """Same result as the reference; twice differentiable."""
    scores: Tensor = _EdgeDot.apply(query, key, center, source)  # type: ignore[no-untyped-call]
    return scores


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, center: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, center, source)
        width = query.shape[1] * query.shape[2]
        return torch.cat([(query[center[s]] * key[source[s]]).sum(-1) for s in _slices(len(center), width)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, key, center, source = ctx.saved_tensors
        width = query.shape[1] * query.shape[2]
        grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
        for s in _slices(len(center), width):
            upstream = grad[s].unsqueeze(-1)
            grad_query.index_add_(0, center[s], upstream * key[source[s]])
            grad_key.index_add_(0, source[s], upstream * query[center[s]])
        return grad_query, grad_key, None, None


def _slices(n_edges: int, width: int) -> Iterator[slice]:
    rows = max(1, BLOCK_NUMBERS // width)
    for start in range(0, n_edges, rows):
        yield slice(start, min(start + rows, n_edges))
