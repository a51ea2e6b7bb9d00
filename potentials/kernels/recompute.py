"""Recompute instead of store: activations of edge networks are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from e2former_calc.potentials.interface import Implementation

RECOMPUTE_ABOVE = 1_000_000
"""Numbers in one edge tensor (edges times heads or channels) from which on activations are not stored."""


def evaluate(function: Callable[..., Tensor], *arguments: Any, numbers: int, implementation: Implementation) -> Tensor:
    """`function(*arguments)`; "blocked" keeps only the arguments for backward if the edge tensors are large.

    Args:
        function: must be deterministic (no dropout).
        arguments: passed on.
        numbers: size of one of the edge tensors that the function makes.
        implementation: "reference" always stores.
    """
    if implementation == "reference" or numbers < RECOMPUTE_ABOVE or not torch.is_grad_enabled():
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
