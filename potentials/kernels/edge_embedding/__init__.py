"""Input features of every atom from the edges around it, radial functions read from a table.

x[i, lm, c] = sum over edges e of center i of Y[e, lm] R[l, c](r_e), R a table row of the pair of elements of e.

Whatever else depends on distance alone (the envelope, the average degree) belongs into the table.
Source: E2Former-V2, arXiv:2601.16622, edge-degree embedding.
"""

from __future__ import annotations

from math import isqrt

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.edge_embedding import reference
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.implementation import KernelImplementation, uses_triton
from e2former_calc.potentials.kernels.spline import TabulatedFunctions


def edge_embedding(
    functions: TabulatedFunctions,
    harmonics: Float[Tensor, "edges rows"],
    index: EdgeIndex,
    *,
    implementation: KernelImplementation,
) -> Float[Tensor, "atoms rows channels"]:
    """Sum of harmonics times radial functions over the edges of every center; zero for isolated atoms.

    Args:
        functions: the (L + 1) C radial functions, degree by degree, of every edge; the distance carries a gradient.
        harmonics: Y_lm of every edge, (L + 1)^2 rows; carry a gradient.
        index: centers, in CSR order.
        implementation: "reference" (plain torch, any device, differentiable any number of times) or "triton" (no
            tensor of edges times channels, differentiable once, bitwise repeatable; CUDA, float32 and float64).

    Raises:
        ValueError: for shapes or dtypes that do not go together, an unknown implementation, or a device without it.
        ModuleNotFoundError: if "triton" is asked for and not installed.
    """
    values = functions.table.values
    degrees = isqrt(harmonics.shape[1])
    if degrees**2 != harmonics.shape[1] or values.shape[3] % degrees:
        raise ValueError(
            f"`harmonics` must have (L + 1)^2 rows and the table (L + 1) C functions, got {harmonics.shape[1]} rows "
            f"and {values.shape[3]} functions"
        )
    if len(harmonics) != index.n_edges or len(functions.distance) != index.n_edges:
        raise ValueError(f"{len(harmonics)} harmonics, {len(functions.distance)} distances for {index.n_edges} edges")
    if values.dtype != harmonics.dtype:
        raise ValueError(f"table ({values.dtype}) and `harmonics` ({harmonics.dtype}) must be of one dtype")
    if not uses_triton(implementation, harmonics.device):
        return reference.edge_embedding(functions, harmonics, index)
    from e2former_calc.potentials.kernels.edge_embedding import launch

    return launch.edge_embedding(functions, harmonics, index)


__all__ = ["edge_embedding"]
