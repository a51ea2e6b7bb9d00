"""Blocks of centers whose padded edge rows fit a memory budget; used by every "blocked" implementation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BLOCK_NUMBERS = 2_000_000
"""Numbers of one padded edge tensor held at a time (8 MB in float32)."""


@dataclass(frozen=True)
class Block:
    """Edges of the centers first ... last - 1, padded to the largest neighbour count among them.

    Attributes:
        edge: index of each edge; padded slots repeat an edge of the list.
        valid: False in padded slots.
    """

    first: int
    last: int
    edge: Int[Tensor, "centers slots"]
    valid: Bool[Tensor, "centers slots"]


def center_blocks(row_ptr: Int[Tensor, " centers_plus_one"], row_size: int) -> Iterator[Block]:
    """Cut the centers into blocks of at most `BLOCK_NUMBERS` padded numbers, `row_size` per edge."""
    starts = row_ptr.tolist()
    n_centers, n_edges = len(starts) - 1, starts[-1]
    first = 0
    while first < n_centers:
        last, slots = first, 1
        while last < n_centers:
            wider = max(slots, starts[last + 1] - starts[last])
            if last > first and (last + 1 - first) * wider * row_size > BLOCK_NUMBERS:
                break
            last, slots = last + 1, wider
        slot = torch.arange(slots, device=row_ptr.device)
        edge = row_ptr[first:last, None] + slot
        valid = edge < row_ptr[first + 1 : last + 1, None]
        yield Block(first=first, last=last, edge=edge.clamp(max=n_edges - 1), valid=valid)
        first = last
