"""Recompute instead of store: activations of edge networks are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from e2former_calc.potentials.kernels import Implementation


def evaluate(function: Callable[..., Tensor], *arguments: Any, implementation: Implementation) -> Tensor:
    """`function(*arguments)`; "blocked" keeps only the arguments for backward.

    `function` must be deterministic (no dropout).
    """
    if implementation == "reference" or not torch.is_grad_enabled():
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
