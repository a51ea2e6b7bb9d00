"""Tables of values and derivatives at equidistant knots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CUBIC, QUINTIC = 2, 3
"""Numbers at each knot that the spline interpolates: value and slope, or value, slope and curvature."""


@dataclass(frozen=True)
class SplineTable:
    """Hermite data of `width` functions for each pair of elements.

    Attributes:
        values: value, slope (1/Å), for quintic splines curvature (1/Å^2), and the slope of the chord to the next knot
            (1/Å; not read at the last knot) at r = 0, spacing, 2 spacing, ...; the last axis runs over the functions.
        spacing: distance of the knots in Å.

    Raises:
        ValueError: for other shapes, or a spacing that is not positive.
    """

    values: Float[Tensor, "pairs knots rows width"]
    spacing: float

    def __post_init__(self) -> None:
        knots, rows = self.values.shape[1:3]
        if rows - 1 not in (CUBIC, QUINTIC) or knots < 2:
            raise ValueError(
                f"a spline table needs at least 2 knots and 3 (cubic) or 4 (quintic) rows at each, the last one the "
                f"slope of the chord, got {knots} knots and {rows} rows"
            )
        if not self.spacing > 0:
            raise ValueError(f"`spacing` must be positive, got {self.spacing}")

    @classmethod
    def from_derivatives(cls, values: Float[Tensor, "pairs knots derivatives width"], spacing: float) -> SplineTable:
        """Table of values, slopes and, for quintic splines, curvatures; chords are made in their arithmetic.

        For a table in float32: make it from float64 and round it by `to`. Differences of rounded values, divided by
        the spacing, would carry their rounding errors into derivatives.

        Raises:
            ValueError: as the class does.
        """
        chord = torch.zeros_like(values[:, :, :1])
        chord[:, :-1] = (values[:, 1:, :1] - values[:, :-1, :1]) / spacing
        return cls(torch.cat([values, chord], dim=2), spacing)

    @property
    def derivatives(self) -> int:
        """`CUBIC` or `QUINTIC`."""
        return self.values.shape[2] - 1

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
