"""Which pairs E2Former-V2 sees: cutoff, neighbour cap, long-range list, and the legacy layout.

`cap="official"` reproduces the official selection, including its losses; `cap="none"` keeps every pair
within the cutoff, which is what makes the energy a smooth function of positions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.legacy import legacy_graph
from e2former_calc.potentials.interface import NeighborCap
from e2former_calc.potentials.neighbors import (
    NeighborList,
    complete_cell,
    plane_spacings,
    squared_length,
    wrap_offsets,
)
from e2former_calc.potentials.system import System


def select_graphs(
    config: E2FormerV2Config, system: System, neighbors: NeighborList, cap: NeighborCap
) -> tuple[NeighborList, ...]:
    """Edge lists of the network from all pairs within its cutoff."""
    if config.variant == "legacy":
        return (legacy_graph(config, system, neighbors, cap),)
    short = neighbors.within(system, config.max_radius)
    if cap == "official":
        short = short.select(image_allowed(config, system, short))
        if config.max_neighbors is not None:
            short = short.nearest(system, config.max_neighbors)
    if config.long_range == "none":
        return (short,)
    return short, long_range_graph(config, system, neighbors, cap)


def truncated_atoms(config: E2FormerV2Config, system: System, neighbors: NeighborList) -> Bool[Tensor, " atoms"]:
    """Atoms that lose pairs within the cutoff through the official selection."""
    limit = neighbors.n_edges if config.max_neighbors is None else config.max_neighbors
    if bool((neighbors.counts <= limit).all()) and not bool(neighbors.shift.any()):
        return torch.zeros_like(neighbors.counts, dtype=torch.bool)
    if config.variant == "legacy":
        return neighbors.within(system, config.max_radius).counts > limit
    complete = select_graphs(config, system, neighbors, "none")
    official = select_graphs(config, system, neighbors, "official")
    lost = [a.counts != b.counts for a, b in zip(complete, official, strict=True)]
    return torch.stack(lost).any(0)


def long_range_graph(
    config: E2FormerV2Config, system: System, neighbors: NeighborList, cap: NeighborCap
) -> NeighborList:
    """Pairs between `long_lower` and `long_upper` whose source is not hydrogen."""
    far = neighbors.within(system, config.long_upper)
    vector = far.vectors(system.positions.detach(), system.cell.detach(), system.batch)
    keep = (squared_length(vector) >= config.long_lower**2) & (system.numbers[far.source] > 1)
    far = far.select(keep)
    if cap == "official":
        far = far.select(image_allowed(config, system, far))
        if config.long_max_neighbors is not None:
            far = far.nearest(system, config.long_max_neighbors)
    return far


def image_allowed(config: E2FormerV2Config, system: System, neighbors: NeighborList) -> Bool[Tensor, " edges"]:
    """Images that the official code looks at, for atoms wrapped into the cell.

    Along each periodic direction it goes up to min(ceil(r_c / plane spacing), image_limit) cells, also
    for the long-range list: there pairs are missing in cells smaller than the long cutoff.
    """
    if not bool(neighbors.shift.any()):
        return torch.ones(neighbors.n_edges, dtype=torch.bool, device=neighbors.center.device)
    limits = torch.stack([_image_limits(config, system, index) for index in range(system.n_structures)])
    offsets = torch.cat([_wrapped_cell(system, index) for index in range(system.n_structures)])
    wrapped_shift = neighbors.shift - offsets[neighbors.center] + offsets[neighbors.source]
    return (wrapped_shift.abs() <= limits[system.batch[neighbors.center]]).all(-1)


def _image_limits(config: E2FormerV2Config, system: System, index: int) -> Int[Tensor, "3"]:
    cell, pbc = system.cell[index].detach(), system.pbc[index]
    limits = [config.image_limit] * 3
    if abs(float(torch.linalg.det(cell))) > 1e-6:
        limits = [min(math.ceil(config.max_radius / h), config.image_limit) for h in plane_spacings(cell)]
    allowed = torch.tensor(limits, device=cell.device)
    return torch.where(pbc, allowed, torch.zeros_like(allowed))


def _wrapped_cell(system: System, index: int) -> Int[Tensor, "atoms 3"]:
    positions: Float[Tensor, "atoms 3"] = system.positions[system.batch == index].detach()
    cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
    return wrap_offsets(positions, cell, pbc)
