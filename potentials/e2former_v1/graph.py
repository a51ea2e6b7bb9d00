"""Which pairs the original E2Former sees: cutoff, neighbour cap, periodic images, pairs of the encoder.

`cap="official"` reproduces the official selection, including its losses; `cap="none"` keeps every pair within the
cutoff.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.encoder import SMALLEST_WEIGHT
from e2former_calc.potentials.e2former_v1.expansion import periodic_images
from e2former_calc.potentials.interface import NeighborCap
from e2former_calc.potentials.neighbors import NeighborList, complete_cell, squared_length, wrap_offsets
from e2former_calc.potentials.radial import polynomial_envelope
from e2former_calc.potentials.system import System

ENVELOPE_EXPONENT = {"scitix": 3, "modular": 3, "microsoft": 3, "lsr": 5}
"""1 - 6u^5 + 15u^4 - 10u^3 and 1 - 15u^7 + 35u^6 - 21u^5."""


def attention_pairs(
    config: E2FormerV1Config, system: System, neighbors: NeighborList, cap: NeighborCap
) -> NeighborList:
    """Edges of the equivariant blocks."""
    pairs = _within_radius(config, system, neighbors)
    if cap == "none":
        return pairs
    allowed = pairs.select(_repeated(config, system, pairs)).nearest(system, config.max_neighbors)
    if _nothing_else_is_lost(config, system, allowed):
        return allowed
    return _looked_at(config, system, pairs, wrap=True).nearest(system, config.max_neighbors)


def truncated_atoms(config: E2FormerV1Config, system: System, neighbors: NeighborList) -> Bool[Tensor, " atoms"]:
    """Atoms that lose pairs within the cutoff through the official selection."""
    complete = attention_pairs(config, system, neighbors, "none")
    if bool((complete.counts <= config.max_neighbors).all()) and not bool(complete.shift.any()):
        return torch.zeros_like(complete.counts, dtype=torch.bool)
    return complete.counts != attention_pairs(config, system, neighbors, "official").counts


def structure_radius(config: E2FormerV1Config, system: System) -> Float[Tensor, " structures"]:
    """Cutoff in Å of each structure: periodic ones have their own."""
    periodic = system.pbc.any(1)
    radius = system.positions.new_full((system.n_structures,), config.max_radius)
    return torch.where(periodic, torch.full_like(radius, config.pbc_max_radius), radius)


def encoder_radius(config: E2FormerV1Config, system: System) -> Float[Tensor, " structures"]:
    """Reach of the encoder's envelope in Å for each structure."""
    radius = structure_radius(config, system)
    return torch.full_like(radius, config.pbc_max_radius) if config.variant == "modular" else radius


def encoder_pairs(config: E2FormerV1Config, system: System, neighbors: NeighborList, cap: NeighborCap) -> NeighborList:
    """Pairs of the encoder: each atom with itself and with others.

    `microsoft` normalises over every atom and image that is looked at, however far; `modular` over pairs in reach.
    """
    if config.variant == "microsoft":
        return _all_pairs(config, system, neighbors, cap)
    near = neighbors.within(system, config.pbc_max_radius)
    if cap == "official":
        near = _looked_at(config, system, near, wrap=False)
        vector = near.vectors(system.positions.detach(), system.cell.detach(), system.batch)
        distance = squared_length(vector).sqrt()
        near = near.select(polynomial_envelope(distance, config.pbc_max_radius, 3) > SMALLEST_WEIGHT)
    atoms = torch.arange(system.n_atoms, device=near.center.device)
    return NeighborList.from_pairs(
        torch.cat([near.center, atoms]),
        torch.cat([near.source, atoms]),
        torch.cat([near.shift, near.shift.new_zeros(system.n_atoms, 3)]),
        n_atoms=system.n_atoms,
        cutoff=near.cutoff,
    )


def _within_radius(config: E2FormerV1Config, system: System, neighbors: NeighborList) -> NeighborList:
    if config.max_radius == config.pbc_max_radius:
        return neighbors.within(system, config.max_radius)
    vector = neighbors.vectors(system.positions.detach(), system.cell.detach(), system.batch)
    radius = structure_radius(config, system)[system.batch[neighbors.center]]
    return neighbors.select(squared_length(vector) <= radius**2, cutoff=config.cutoff)


def _wrapped(system: System) -> Int[Tensor, "atoms 3"]:
    """Cell that each atom lies in."""
    parts = []
    for index, positions in enumerate(system.positions.detach().split(system.sizes.tolist())):
        cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
        parts.append(wrap_offsets(positions, cell, pbc))
    return torch.cat(parts)


def _repeated(config: E2FormerV1Config, system: System, pairs: NeighborList) -> Bool[Tensor, " edges"]:
    """Pairs whose source lies in a cell that the official code repeats, for wrapped atoms."""
    if not bool(pairs.shift.any()):
        return torch.ones(pairs.n_edges, dtype=torch.bool, device=pairs.center.device)
    wrap = _wrapped(system)
    shift = pairs.shift - wrap[pairs.center] + wrap[pairs.source]
    return (shift.abs() <= config.image_limit).all(1)


def _nothing_else_is_lost(config: E2FormerV1Config, system: System, chosen: NeighborList) -> bool:
    """True if the official code keeps every image that the nearest pairs need.

    Where all directions are periodic, an image that is among the nearest of an atom is kept, unless there are too
    many of them; then, and with other directions, the images themselves have to be found.
    """
    if not bool(chosen.shift.any()):
        return not bool((system.pbc.any(1) & (system.sizes > config.image_atoms)).any())
    periodic = system.pbc.any(1)
    if bool((periodic & ~system.pbc.all(1)).any()):
        return False
    wrap = _wrapped(system)
    shift = chosen.shift - wrap[chosen.center] + wrap[chosen.source]
    image = torch.cat([chosen.source[:, None], shift], dim=1)[shift.any(1)].unique(dim=0)
    count = system.sizes + torch.bincount(system.batch[image[:, 0]], minlength=system.n_structures)
    return not bool((periodic & (count > config.image_atoms)).any())


def _looked_at(config: E2FormerV1Config, system: System, pairs: NeighborList, *, wrap: bool) -> NeighborList:
    """Pairs whose source is among the images of the official code."""
    periodic = system.pbc.any(1)
    if not bool(periodic.any()):
        return pairs
    keep = torch.ones(pairs.n_edges, dtype=torch.bool, device=pairs.center.device)
    first = 0
    for index, size in enumerate(system.sizes.tolist()):
        if bool(periodic[index]):
            mine = (system.batch[pairs.center] == index).nonzero()[:, 0]
            images = periodic_images(config, system, index, official=True, wrap=wrap)
            # The same image seen from the wrapped center.
            shift = pairs.shift[mine] - images.wrap[pairs.center[mine] - first]
            span = 1 + max(int(x.abs().amax()) if len(x) else 0 for x in (shift, images.shift))
            wanted = _key(pairs.source[mine] - first, shift, span)
            keep[mine] = torch.isin(wanted, _key(images.source, images.shift, span))
        first += size
    return pairs.select(keep)


def _key(source: Tensor, shift: Tensor, span: int) -> Tensor:
    """One integer for a source and its translation, |shift| < span."""
    width = 2 * span + 1
    x, y, z = (shift + span).unbind(1)
    return ((source * width + x) * width + y) * width + z


def _all_pairs(config: E2FormerV1Config, system: System, neighbors: NeighborList, cap: NeighborCap) -> NeighborList:
    """Every atom with every atom of its structure and, in periodic ones, with every image that is looked at."""
    official = cap == "official"
    centers, sources, shifts, first = [], [], [], 0
    for index, size in enumerate(system.sizes.tolist()):
        if bool(system.pbc[index].any()):
            images = periodic_images(config, system, index, official=official, wrap=not official)
            source, shift, wrap = images.source, images.shift, images.wrap
        else:
            source = torch.arange(size, device=system.numbers.device)
            shift = wrap = torch.zeros(size, 3, dtype=torch.int64, device=source.device)
        centers.append(torch.arange(size, device=source.device).repeat_interleave(len(source)) + first)
        sources.append(source.repeat(size) + first)
        shifts.append((shift[None] + wrap[:, None]).flatten(0, 1))
        first += size
    return NeighborList.from_pairs(
        torch.cat(centers), torch.cat(sources), torch.cat(shifts), n_atoms=system.n_atoms, cutoff=neighbors.cutoff
    )
