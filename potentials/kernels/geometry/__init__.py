"""Edge vectors as functions of positions and strain.

v_e = d_e + d_e strain(i), d_e = r_i - r_j - image_e, i and j center and source of edge e.

Backward gathers over both ends of every edge: forces and virial without atomic additions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import reference
from e2former_calc.potentials.kernels.geometry.structures import Structures
from e2former_calc.potentials.kernels.implementation import KernelImplementation, uses_triton


def edge_vectors(
    positions: Float[Tensor, "atoms 3"],
    strain: Float[Tensor, "structures 3 3"],
    image: Float[Tensor, "edges 3"],
    structures: Structures,
    index: EdgeIndex,
    *,
    implementation: KernelImplementation,
) -> Float[Tensor, "edges 3"]:
    """Vectors from source to center in Å; positions and strain carry gradients.

    Args:
        positions: in Å.
        strain: of every structure; zero for the structure as it is.
        image: lattice translation of the source of every edge in Å (shift times cell).
        structures: which atoms belong to which structure.
        index: centers and sources, sorted both ways; an edge joins atoms of one structure.
        implementation: "reference" (plain torch, any device, differentiable any number of times) or "triton"
            (differentiable once, bitwise repeatable; CUDA, float32 and float64; sums in float64).

    Raises:
        ValueError: for shapes or dtypes that do not go together, an unknown implementation, or a device without it.
        ModuleNotFoundError: if "triton" is asked for and not installed.
    """
    if len(positions) != index.n_atoms or len(image) != index.n_edges or len(strain) != structures.n_structures:
        raise ValueError(
            f"{len(positions)} positions, {len(image)} images, {len(strain)} strains for {index.n_atoms} atoms, "
            f"{index.n_edges} edges, {structures.n_structures} structures"
        )
    dtypes = {positions.dtype, strain.dtype, image.dtype}
    if len(dtypes) > 1 or positions.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"all inputs must be of one dtype, float32 or float64, got {sorted(map(str, dtypes))}")
    if not uses_triton(implementation, positions.device):
        return reference.edge_vectors(positions, strain, image, structures, index)
    from e2former_calc.potentials.kernels.geometry import launch

    return launch.edge_vectors(positions, strain, image, structures, index)


__all__ = ["Structures", "edge_vectors"]
