"""Specification of `edge_dot` in plain torch."""

from jaxtyping import Float, Int
from torch import Tensor


def edge_dot(
    query: Float[Tensor, "atoms heads width"],
    key: Float[Tensor, "atoms heads width"],
    center: Int[Tensor, " edges"],
    source: Int[Tensor, " edges"],
) -> Float[Tensor, "edges heads"]:
    """score[e, h] = sum_d query[center[e], h, d] key[source[e], h, d]."""
    return (query[center] * key[source]).sum(-1)
