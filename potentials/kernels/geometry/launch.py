"""Launches of the Triton kernels of `edge_vectors`, and their place in automatic differentiation."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import kernels
from e2former_calc.potentials.kernels.geometry.structures import Structures

EDGES_PER_PROGRAM = 128
NEIGHBORS_PER_STEP = 32
"""Edges of one atom that a warp sums at a time."""
SLICES = 64
"""Parts of one structure whose virials are summed side by side."""
COMMON = {"num_warps": 1, "enable_fp_fusion": True}


def edge_vectors(positions: Tensor, strain: Tensor, image: Tensor, structures: Structures, index: EdgeIndex) -> Tensor:
    """Same result as the reference; differentiable once."""
    tensors = [tensor.contiguous() for tensor in (positions, strain, image)]
    with torch.cuda.device_of(positions):  # kernels start on the current device
        vector: Tensor = _EdgeVectors.apply(*tensors, structures, index)  # type: ignore[no-untyped-call]
    return vector


class _EdgeVectors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, strain: Tensor, image: Tensor, structures: Structures, index: EdgeIndex
    ) -> Tensor:
        ctx.save_for_backward(positions, strain, image)
        ctx.structures, ctx.index = structures, index
        vector = torch.empty_like(image)
        kernels.vector_kernel[(triton.cdiv(index.n_edges, EDGES_PER_PROGRAM),)](
            positions=positions,
            strain=strain,
            image=image,
            batch=structures.batch,
            center=index.center,
            source=index.source,
            vector=vector,
            n_edges=index.n_edges,
            BLOCK=EDGES_PER_PROGRAM,
            **COMMON,
        )
        return vector

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_vector: Tensor) -> tuple[Tensor | None, ...]:
        positions, strain, image = ctx.saved_tensors
        structures, index = ctx.structures, ctx.index
        d_positions = torch.empty_like(positions)
        virial = torch.empty(index.n_atoms, 9, dtype=torch.float64, device=positions.device)
        kernels.gather_kernel[(index.n_atoms,)](
            positions=positions,
            strain=strain,
            image=image,
            batch=structures.batch,
            center=index.center,
            source=index.source,
            row_ptr=index.row_ptr,
            by_source=index.by_source,
            source_ptr=index.source_ptr,
            d_vector=d_vector.contiguous(),
            d_positions=d_positions,
            virial=virial,
            BLOCK=NEIGHBORS_PER_STEP,
            **COMMON,
        )
        partial = virial.new_empty(structures.n_structures, SLICES, 9)
        kernels.structure_kernel[(structures.n_structures, SLICES)](
            virial=virial, atom_ptr=structures.atom_ptr, partial=partial, SLICES=SLICES, BLOCK=32, **COMMON
        )
        d_strain = partial.sum(1).unflatten(1, (3, 3)).to(strain.dtype)
        return d_positions, d_strain, None, None, None
