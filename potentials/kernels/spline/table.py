"""Tables of values and derivatives at equidistant knots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CUBIC, QUINTIC = 2, 3
"""Rows per knot: value and slope, or value, slope and curvature."""


@dataclass(frozen=True)
class SplineTable:
    """Hermite data of `width` functions for each pair of elements.

    Attributes:
        values: value, slope (1/Å) and, for quintic splines, curvature (1/Å^2) at r = 0, spacing, 2 spacing, ...;
            the last axis runs over the functions.
        spacing: distance of the knots in Å.
    """

    values: Float[Tensor, "pairs knots derivatives width"]
    spacing: float

    def __post_init__(self) -> None:
        knots, derivatives = self.values.shape[1:3]
        if derivatives not in (CUBIC, QUINTIC) or knots < 2:
            raise ValueError(
                f"a spline table needs at least 2 knots and 2 (cubic) or 3 (quintic) numbers at each, got {knots} "
                f"knots and {derivatives} numbers"
            )
        if not self.spacing > 0:
            raise ValueError(f"`spacing` must be positive, got {self.spacing}")

    def to(self, dtype: torch.dtype) -> SplineTable:
        """The same table in another arithmetic."""
        return SplineTable(self.values.to(dtype), self.spacing)


@dataclass(frozen=True)
class TabulatedFunctions:
    """Radial functions of edges that are read from a table.

    Attributes:
        table: the functions; without gradient.
        pair: row of the table for each edge.
        distance: length of each edge in Å; carries the gradient. May be of higher precision than the table.
    """

    table: SplineTable
    pair: Int[Tensor, " edges"]
    distance: Float[Tensor, " edges"]
