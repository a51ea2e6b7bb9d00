"""Specification of `edge_vectors` in plain torch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry.structures import Structures


def edge_vectors(
    positions: Float[Tensor, "atoms 3"],
    strain: Float[Tensor, "structures 3 3"],
    image: Float[Tensor, "edges 3"],
    structures: Structures,
    index: EdgeIndex,
) -> Float[Tensor, "edges 3"]:
    """Each component is summed in a fixed order, so that an edge has the same vector in whatever list it stands."""
    vector = positions[index.center] - positions[index.source] - image
    local = strain[structures.batch[index.center]]
    x, y, z = vector[:, :1], vector[:, 1:2], vector[:, 2:]
    return vector + (x * local[:, 0] + y * local[:, 1] + z * local[:, 2])
