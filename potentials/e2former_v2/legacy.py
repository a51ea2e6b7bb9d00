"""Edge list of the `e2formerv2` branch (`variant="legacy"`): a fixed number of columns per center.

Every center has the same number of columns, filled with its nearest images. Columns beyond the
cutoff have weight zero but take part in the softmax maximum. The official number of columns depends on
all structures of a batch; here each structure has the number that it has on its own.
"""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.interface import NeighborCap
from e2former_calc.potentials.neighbors import (
    NeighborList,
    complete_cell,
    image_range,
    squared_length,
    wrap_offsets,
)
from e2former_calc.potentials.system import System

EXCLUDED_DISTANCE = 1e-4
"""Pairs closer than this (Å), an atom and itself, are excluded."""

EXCLUDED_OFFSET = 1000.0
"""Distance (Å) beyond the cutoff that excluded pairs get."""

_CHUNK = 4_000_000


def legacy_graph(config: E2FormerV2Config, system: System, neighbors: NeighborList, cap: NeighborCap) -> NeighborList:
    """All columns of all centers as edges; those beyond the cutoff have envelope zero.

    `neighbors` only vouches for the geometry having been checked.
    """
    limit = config.max_neighbors if cap == "official" else None
    centers, sources, shifts, offset = [], [], [], 0
    for index, size in enumerate(system.sizes.tolist()):
        atoms = slice(offset, offset + size)
        center, source, shift = _structure_columns(config, system, index, atoms, limit)
        centers.append(center + offset)
        sources.append(source + offset)
        shifts.append(shift)
        offset += size
    return NeighborList.from_pairs(
        torch.cat(centers), torch.cat(sources), torch.cat(shifts), n_atoms=system.n_atoms, cutoff=neighbors.cutoff
    )


def _structure_columns(
    config: E2FormerV2Config, system: System, index: int, atoms: slice, limit: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    positions = system.positions[atoms].detach()
    cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
    offsets = wrap_offsets(positions, cell, pbc)
    wrapped = positions - offsets.to(positions.dtype) @ cell
    image_source, image_shift, image = _images(config, wrapped, cell, pbc, limit)
    n_images, rows = len(image), max(1, _CHUNK // len(image))
    in_cutoff = 0
    for start in range(0, len(wrapped), rows):
        distance = _column_distance(wrapped[start : start + rows], image, config.max_radius)
        in_cutoff = max(in_cutoff, int((distance <= config.max_radius).sum(1).max()))
    columns = max(min(n_images, in_cutoff, n_images if limit is None else limit), 1)
    nearest = []
    for start in range(0, len(wrapped), rows):
        distance = _column_distance(wrapped[start : start + rows], image, config.max_radius)
        step = torch.round(distance * 1e9).to(torch.int64)
        nearest.append(torch.argsort(step, dim=1, stable=True)[:, :columns])
    chosen = torch.cat(nearest).flatten()
    center = torch.arange(len(wrapped), device=image.device).repeat_interleave(columns)
    source = image_source[chosen]
    return center, source, image_shift[chosen] + offsets[center] - offsets[source]


def _column_distance(
    centers: Float[Tensor, "centers 3"], image: Float[Tensor, "images 3"], max_radius: float
) -> Float[Tensor, "centers images"]:
    distance = squared_length(centers[:, None] - image[None]).sqrt()
    return torch.where(distance < EXCLUDED_DISTANCE, max_radius + EXCLUDED_OFFSET, distance)


def _images(
    config: E2FormerV2Config,
    wrapped: Float[Tensor, "atoms 3"],
    cell: Float[Tensor, "3 3"],
    pbc: Bool[Tensor, "3"],
    limit: int | None,
) -> tuple[Int[Tensor, " images"], Int[Tensor, "images 3"], Float[Tensor, "images 3"]]:
    """Images near some atom: within pbc_max_radius of it and among its `limit` nearest, not counting itself."""
    reach = config.pbc_max_radius or config.max_radius
    wanted = [min(n, config.image_limit) for n in image_range(cell, pbc, reach)]
    ranges = [range(-n, n + 1) for n in wanted]
    shift = torch.tensor(list(product(*ranges)), dtype=torch.int64, device=wrapped.device)
    image = (wrapped[:, None] + (shift.to(wrapped.dtype) @ cell)[None]).flatten(0, 1)
    source = torch.arange(len(wrapped), device=wrapped.device).repeat_interleave(len(shift))
    shift = shift.repeat(len(wrapped), 1)
    keep = (shift == 0).all(1)
    rows = max(1, _CHUNK // len(image))
    for start in range(0, len(wrapped), rows):
        distance = squared_length(wrapped[start : start + rows, None] - image[None]).sqrt()
        near = distance <= reach
        if limit is not None and limit + 1 < distance.shape[1]:
            near &= distance <= distance.kthvalue(limit + 1, dim=1, keepdim=True).values
        keep |= near.any(0)
    return source[keep], shift[keep], image[keep]
