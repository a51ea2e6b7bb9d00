"""Which periodic images the official code looks at, including what it loses.

It repeats the cell a limited number of times, keeps images near some atom and among that atom's nearest candidates,
and drops all but a fixed number of them. It takes atoms where they are; `wrap` moves them into the cell first, so that
the choice does not depend on how far they have moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.neighbors import complete_cell, plane_spacings, squared_length, wrap_offsets
from e2former_calc.potentials.system import System

SAME_ATOM = 1e-4
"""Images closer than this (Å) are the atom itself."""

_CHUNK = 4_000_000


@dataclass(frozen=True)
class Images:
    """Atoms and image atoms of one structure.

    Attributes:
        source: which atom, counted within the structure.
        shift: lattice translation from the atom as it was given, seen from an atom in the cell at the origin.
        wrap: cell that each atom of the structure was wrapped from.
    """

    source: Int[Tensor, " images"]
    shift: Int[Tensor, "images 3"]
    wrap: Int[Tensor, "atoms 3"]


def periodic_images(config: E2FormerV1Config, system: System, index: int, *, official: bool, wrap: bool) -> Images:
    """Images of structure `index` near some of its atoms; `official` applies every limit of the official code."""
    atoms = system.batch == index
    positions = system.positions[atoms].detach()
    cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
    # The official candidates include repetitions along directions without periodicity, which never become images.
    repeats_all = official and _has_volume(system.cell[index])
    cell = system.cell[index].detach() if repeats_all else cell
    offsets = wrap_offsets(positions, cell, pbc)
    offsets = offsets if wrap else torch.zeros_like(offsets)
    wrapped = positions - offsets.to(positions.dtype) @ cell
    reach = config.pbc_max_radius
    counted = torch.ones_like(pbc) if repeats_all else pbc
    counts = [math.ceil(reach / h) if bool(c) else 0 for h, c in zip(plane_spacings(cell), counted, strict=True)]
    if official:
        counts = [min(n, config.image_limit) for n in counts]
    ranges = [range(-n, n + 1) for n in counts]
    shift = torch.tensor(list(product(*ranges)), dtype=torch.int64, device=positions.device)
    image = (wrapped[:, None] + (shift.to(positions.dtype) @ cell)[None]).flatten(0, 1)
    source = torch.arange(len(wrapped), device=image.device).repeat_interleave(len(shift))
    shift = shift.repeat(len(wrapped), 1)
    keep = _near_some_atom(wrapped, image, reach, config.max_neighbors if official else None)
    keep &= ((shift == 0) | pbc).all(1)
    if official and int(keep.sum()) > config.image_atoms:
        keep = _closest(wrapped, image, keep, config.image_atoms)
    source, shift, image = source[keep], shift[keep], image[keep]
    return Images(source, shift - offsets[source], offsets)


def _has_volume(cell: Float[Tensor, "3 3"]) -> bool:
    return abs(float(torch.linalg.det(cell.detach()))) > 1e-6


def _near_some_atom(
    wrapped: Float[Tensor, "atoms 3"], image: Float[Tensor, "images 3"], reach: float, max_neighbors: int | None
) -> Bool[Tensor, " images"]:
    """Images within `reach` of an atom, and not farther than its (max_neighbors + 1)-th nearest candidate."""
    keep = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    rows = max(1, _CHUNK // len(image))
    for start in range(0, len(wrapped), rows):
        distance = squared_length(wrapped[start : start + rows, None] - image[None]).sqrt()
        near = distance <= reach
        if max_neighbors is not None and max_neighbors + 1 < distance.shape[1]:
            # In steps of 1e-9 Å, so that rounding does not decide between symmetry-equivalent images.
            step = torch.round(distance * 1e9)
            near &= step <= step.kthvalue(max_neighbors + 1, dim=1, keepdim=True).values
        keep |= near.any(0)
    return keep


def _closest(
    wrapped: Float[Tensor, "atoms 3"], image: Float[Tensor, "images 3"], keep: Bool[Tensor, " images"], count: int
) -> Bool[Tensor, " images"]:
    """The `count` kept images with the smallest distance to any other atom."""
    smallest = torch.full((len(image),), torch.inf, dtype=image.dtype, device=image.device)
    rows = max(1, _CHUNK // len(image))
    for start in range(0, len(wrapped), rows):
        distance = squared_length(wrapped[start : start + rows, None] - image[None]).sqrt()
        distance = torch.where(distance < SAME_ATOM, torch.inf, distance)
        smallest = torch.minimum(smallest, distance.amin(0))
    smallest = torch.where(keep, torch.round(smallest * 1e9), torch.inf)
    chosen = torch.zeros_like(keep)
    chosen[torch.argsort(smallest, stable=True)[:count]] = True
    return chosen
