"""What the attention needs to know of edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.spline import TabulatedFunctions

Normalization = Literal["softmax", "softplus", "sigmoid"]

DENOMINATOR_OFFSET = 1e-3
"""Added to the softmax denominator, relative to the largest exponential (which is 1)."""
TIE_ROUNDING = 1024
"""Scores that differ by less than this many rounding errors are equal."""


@dataclass(frozen=True)
class AttentionEdges:
    """Edge inputs of one attention layer.

    Attributes:
        radial: H gates, then H amplitudes: given for each edge (they carry a gradient), or read from a table inside
            the kernel (the distance carries the gradient).
        envelope: smooth cutoff u.
        direction: vector that the first-order convolution multiplies with; None for zero order.
        absent_outside: edges with u = 0 do not exist, as the longer edges of a list with a skin. Otherwise
            they have no weight but still take part in the maximum.
    """

    radial: Float[Tensor, "edges two_heads"] | TabulatedFunctions
    envelope: Float[Tensor, " edges"]
    direction: Float[Tensor, "edges 3"] | None
    absent_outside: bool = False
