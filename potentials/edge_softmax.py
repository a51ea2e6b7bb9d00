"""Softmax over the edges that arrive at each atom."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.neighbors import NeighborList

DENOMINATOR_OFFSET = 1e-3
"""Added to the softmax denominator, relative to the largest exponential (which is 1)."""
TIE_ROUNDING = 1024
"""Scores that differ by less than this many rounding errors are equal."""


def edge_softmax(
    score: Float[Tensor, "edges heads"], neighbors: NeighborList, envelope: Float[Tensor, "edges 1"] | None = None
) -> Float[Tensor, "edges heads"]:
    """exp(a) u / sum exp(a) u over the edges of each center; the envelope u is one by default.

    Zero for a center where every envelope is zero, as of padding.
    """
    center = neighbors.center
    empty = score.new_zeros(neighbors.row_ptr.shape[0] - 1, score.shape[1])
    with torch.no_grad():
        index = center[:, None].expand_as(score)
        largest = empty.scatter_reduce(0, index, score, reduce="amax", include_self=False)[center]
    exponential = torch.exp(score - largest)
    exponential = exponential if envelope is None else exponential * envelope
    total = empty.index_add(0, center, exponential)
    return exponential / torch.where(total > 0.0, total, torch.ones_like(total))[center]


def offset_softmax(
    score: Float[Tensor, "edges heads"], envelope: Float[Tensor, "edges 1"], neighbors: NeighborList
) -> Float[Tensor, "edges heads"]:
    """exp(a - M) u / (sum exp(a - M) u + 1e-3) over the edges of each center, M the largest score.

    The offset is absolute, so the maximum influences the result and carries a gradient. Scores that
    equal the maximum to rounding share that gradient evenly: forces of symmetric structures are then
    symmetric and do not depend on the order of summation. An edge that enters the cutoff enters M at
    once: the function is not continuous there.
    """
    center = neighbors.center
    empty = score.new_zeros(neighbors.row_ptr.shape[0] - 1, score.shape[1])
    with torch.no_grad():
        index = center[:, None].expand_as(score)
        largest = empty.scatter_reduce(0, index, score, reduce="amax", include_self=False)[center]
        tolerance = TIE_ROUNDING * torch.finfo(score.dtype).eps * largest.abs().clamp_min(1.0)
        tied = (score >= largest - tolerance).to(score.dtype)
        share = tied / empty.index_add(0, center, tied)[center]
    maximum = empty.index_add(0, center, share * score)
    exponential = torch.exp(score - maximum[center]) * envelope
    total = empty.index_add(0, center, exponential)
    return exponential / (total[center] + DENOMINATOR_OFFSET)
