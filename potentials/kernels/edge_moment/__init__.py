"""Attention-weighted moments of neighbour features.

moment[i, k, lm, c] = sum over edges e of center i of weight[e, c mod H] basis[e, k] value[source(e), lm, c].

With basis = unit vectors this is the first moment that the first-order convolution contracts with
Clebsch-Gordan coefficients once per atom; with basis = 1 it is zero-order attention.
"""

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.edge_moment import blocked, reference
from e2former_calc.potentials.neighbors import NeighborList


def edge_moment(
    weight: Float[Tensor, "edges heads"],
    basis: Float[Tensor, "edges order"],
    value: Float[Tensor, "atoms rows channels"],
    edges: NeighborList,
    *,
    implementation: Implementation,
) -> Float[Tensor, "atoms order rows channels"]:
    """Sum of weighted source features over the edges of every center; zero for isolated atoms."""
    if edges.n_edges == 0 or implementation == "reference":
        return reference.edge_moment(weight, basis, value, edges.center, edges.source)
    return blocked.edge_moment(weight, basis, value, edges.source, edges.row_ptr)


__all__ = ["edge_moment"]
