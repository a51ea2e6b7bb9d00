"""Specification of `fused_attention` in plain torch."""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention.inputs import (
    DENOMINATOR_OFFSET,
    TIE_ROUNDING,
    AttentionEdges,
    Normalization,
)
from e2former_calc.potentials.kernels.spline import TabulatedFunctions, evaluate_spline


def fused_attention(
    query: Float[Tensor, "atoms heads width"],
    key: Float[Tensor, "atoms heads width"],
    value: Float[Tensor, "atoms rows channels"],
    edges: AttentionEdges,
    index: EdgeIndex,
    normalization: Normalization,
) -> Float[Tensor, "atoms order rows channels"]:
    """All edge tensors are made in full."""
    heads, width = query.shape[1:]
    present = torch.arange(index.n_edges, device=query.device) < index.row_ptr[-1]
    if edges.absent_outside:
        present = present & (edges.envelope != 0.0)
    radial = evaluate_spline(edges.radial) if isinstance(edges.radial, TabulatedFunctions) else edges.radial
    gate, amplitude = radial[present].split(heads, dim=1)
    center, source = index.center[present], index.source[present]
    score = gate * (query[center] * key[source]).sum(-1) / sqrt(width)
    envelope = edges.envelope[present, None]
    if normalization == "softmax":
        weight = _offset_softmax(score, envelope, center, len(query)) * amplitude
    else:
        weight = (softplus(score) if normalization == "softplus" else torch.sigmoid(score)) * amplitude * envelope
    direction = torch.ones_like(envelope) if edges.direction is None else edges.direction[present]
    message = weight.repeat(1, value.shape[2] // heads)[:, None] * value[source]
    terms = direction[:, :, None, None] * message[:, None]
    return value.new_zeros(len(value), direction.shape[1], *value.shape[1:]).index_add(0, center, terms)


def _offset_softmax(
    score: Float[Tensor, "edges heads"], envelope: Float[Tensor, "edges 1"], center: Int[Tensor, " edges"], n_atoms: int
) -> Float[Tensor, "edges heads"]:
    """exp(a - M) u / (sum exp(a - M) u + 1e-3), M the mean of the scores that equal the largest to rounding."""
    center = center.to(torch.int64)
    empty = score.new_zeros(n_atoms, score.shape[1])
    with torch.no_grad():
        largest = empty.scatter_reduce(0, center[:, None].expand_as(score), score, "amax", include_self=False)[center]
        tolerance = TIE_ROUNDING * torch.finfo(score.dtype).eps * largest.abs().clamp_min(1.0)
        tied = (score >= largest - tolerance).to(score.dtype)
        share = tied / empty.index_add(0, center, tied)[center]
    maximum = empty.index_add(0, center, share * score)
    exponential = torch.exp(score - maximum[center]) * envelope
    total = empty.index_add(0, center, exponential)
    return exponential / (total[center] + DENOMINATOR_OFFSET)
