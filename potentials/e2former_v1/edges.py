"""Geometry of one edge list in the arithmetic of the network."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.neighbors import NeighborList, squared_length

SOLID_CONSTANTS = (1.0, 2.046653509140, 1.29441716)
"""c_L of T_L(r) = c_L |r|^L Y_L(r), with the digits that the official models were trained with (errors below 1e-7)."""
LENGTH_OFFSET = 1e-8
"""Added to |r|^L where it divides."""


def safe_length(vector: Float[Tensor, "edges 3"]) -> Float[Tensor, " edges"]:
    """Length of each vector; the gradient of a zero vector is zero."""
    squared = squared_length(vector)
    zero = squared == 0.0
    length: Tensor = torch.where(zero, torch.ones_like(squared), squared).sqrt() * ~zero
    return length


@dataclass(frozen=True)
class EdgeFeatures:
    """One edge list; the same in all layers.

    Attributes:
        neighbors: edges in CSR order.
        distance: in Å.
        harmonics: Y_lm of the direction, component normalisation, up to the largest degree that is needed.
        basis: radial basis.
        envelope: smooth cutoff.
        elements: atomic numbers that occur.
        pair: row of the center's element * number of source rows + source row.
    """

    neighbors: NeighborList
    distance: Float[Tensor, " edges"]
    harmonics: Float[Tensor, "edges rows"]
    basis: Float[Tensor, "edges n_basis"]
    envelope: Float[Tensor, " edges"]
    elements: Int[Tensor, " elements"]
    pair: Int[Tensor, " edges"]

    def solid(self, order: int) -> Float[Tensor, "edges components"]:
        """T_L(r) / (|r|^L + 1e-8): the bounded geometric factor of the convolution of order L."""
        if order == 0:
            return self.harmonics[:, :1]
        length = self.distance[:, None] ** order
        scale: Tensor = SOLID_CONSTANTS[order] / (4 * pi) ** 0.5 * (length / (length + LENGTH_OFFSET))
        return scale * self.harmonics[:, order**2 : (order + 1) ** 2]
