"""Specification of `edge_moment` in plain torch."""

from jaxtyping import Float, Int
from torch import Tensor


def edge_moment(
    weight: Float[Tensor, "edges heads"],
    basis: Float[Tensor, "edges order"],
    value: Float[Tensor, "atoms rows channels"],
    center: Int[Tensor, " edges"],
    source: Int[Tensor, " edges"],
) -> Float[Tensor, "atoms order rows channels"]:
    """Channel c belongs to head c mod H."""
    atoms, rows, channels = value.shape
    per_channel = weight.repeat(1, channels // weight.shape[1])
    message = per_channel[:, None, :] * value[source]
    terms = basis[:, :, None, None] * message[:, None]
    return value.new_zeros(atoms, basis.shape[1], rows, channels).index_add(0, center, terms)
