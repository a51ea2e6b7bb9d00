"""Query-key products over edges: score[e, h] = sum_d q[center(e), h, d] k[source(e), h, d]."""

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.edge_dot import blocked, reference
from e2former_calc.potentials.neighbors import NeighborList


def edge_dot(
    query: Float[Tensor, "atoms heads width"],
    key: Float[Tensor, "atoms heads width"],
    edges: NeighborList,
    *,
    implementation: Implementation,
) -> Float[Tensor, "edges heads"]:
    """Scalar products of queries of the centers with keys of the sources, one per edge and head."""
    if edges.n_edges == 0 or implementation == "reference":
        return reference.edge_dot(query, key, edges.center, edges.source)
    return blocked.edge_dot(query, key, edges.center, edges.source)


__all__ = ["edge_dot"]
