"""Specification of `edge_embedding` in plain torch."""

from __future__ import annotations

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.spline import TabulatedFunctions, evaluate_spline


def edge_embedding(
    functions: TabulatedFunctions, harmonics: Float[Tensor, "edges rows"], index: EdgeIndex
) -> Float[Tensor, "atoms rows channels"]:
    """The radial functions of all edges are made in full."""
    n_degrees = isqrt(harmonics.shape[1])
    n_edges = int(index.row_ptr[-1])
    radial = evaluate_spline(functions).unflatten(1, (n_degrees, -1))
    degree = torch.tensor([d for d in range(n_degrees) for _ in range(2 * d + 1)], device=harmonics.device)
    terms = harmonics[:, :, None] * radial[:, degree]
    empty = terms.new_zeros(index.n_atoms, *terms.shape[1:])
    features: Tensor = empty.index_add(0, index.center[:n_edges], terms[:n_edges])
    return features
