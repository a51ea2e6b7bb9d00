"""What a search needs to know beforehand, and what it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.neighbors import complete_cell, plane_spacings
from e2former_calc.potentials.system import System

SearchMethod = Literal["brute_force", "cells"]
MAX_BINS = 2**20
"""Bins of one structure; larger boxes get larger bins."""


@dataclass(frozen=True)
class SearchPlan:
    """Bins for the lattices of some structures; holds as long as no lattice spacing shrinks.

    Attributes:
        cutoff: in Å.
        frame: three vectors that span each structure, the lattice vectors where it is periodic (Å).
        inverse: their inverse.
        origin: corner of the frame (Å).
        periodic: along which of them the structure repeats.
        batch: structure of each atom.
        bins: number of bins along each vector.
        reach: how many bins away neighbours can be, images included.
    """

    cutoff: float
    frame: Float[Tensor, "structures 3 3"]
    inverse: Float[Tensor, "structures 3 3"]
    origin: Float[Tensor, "structures 3"]
    periodic: Bool[Tensor, "structures 3"]
    batch: Int[Tensor, " atoms"]
    bins: tuple[int, int, int]
    reach: tuple[int, int, int]

    def wrapped(
        self, positions: Float[Tensor, "atoms 3"]
    ) -> tuple[Float[Tensor, "atoms 3"], Int[Tensor, "atoms 3"], Int[Tensor, "atoms 3"]]:
        """Positions inside of the frame, cells that they were moved by, and bins."""
        fraction = ((positions - self.origin[self.batch])[:, None] @ self.inverse[self.batch])[:, 0]
        moved = torch.where(self.periodic[self.batch], fraction.floor(), 0.0)
        columns = zip((fraction - moved).unbind(1), self.bins, strict=True)
        # Plain numbers, not a tensor of them: a captured graph cannot copy from the host.
        bins = torch.stack([(column * n).floor().clamp(0, n - 1) for column, n in columns], dim=1)
        inside = positions - (moved[:, None] @ self.frame[self.batch])[:, 0]
        return inside, moved.to(torch.int32), bins.to(torch.int32)


def plan_search(system: System, cutoff: float, method: SearchMethod) -> SearchPlan:
    """Plan for structures with the lattice, and roughly the size, of `system`.

    Args:
        system: one or several structures, on the device of the search.
        cutoff: in Å, with the skin.
        method: "brute_force" looks at every atom (best for some hundred atoms), "cells" at those nearby.

    Raises:
        ValueError: for a cutoff that is not positive, an unknown method, or a cell without volume.
    """
    if not cutoff > 0:
        raise ValueError(f"`cutoff` must be positive, got {cutoff}")
    if method not in ("brute_force", "cells"):
        raise ValueError(f"`method` must be 'brute_force' or 'cells', got {method!r}")
    parts = [system.positions[system.batch == s].detach() for s in range(system.n_structures)]
    completed = [complete_cell(system.cell[s], system.pbc[s], part) for s, part in enumerate(parts)]
    frame = torch.stack([cell for cell, _ in completed])
    periodic = torch.stack([pbc for _, pbc in completed])
    inverse = torch.linalg.inv(frame)
    corners = [(part @ inverse[s]).amin(0) if len(part) else frame.new_zeros(3) for s, part in enumerate(parts)]
    corner = torch.where(periodic, 0.0, torch.stack(corners))
    spacings = [min(axis) for axis in zip(*(plane_spacings(cell) for cell in frame), strict=True)]
    bins, reach = _bins(spacings, cutoff, method)
    anywhere = [periodic[:, axis].any() or bins[axis] > 1 for axis in range(3)]
    x, y, z = (reach[axis] if anywhere[axis] else 0 for axis in range(3))
    return SearchPlan(
        cutoff=cutoff,
        frame=frame,
        inverse=inverse,
        origin=(corner[:, None] @ frame)[:, 0],
        periodic=periodic,
        batch=system.batch,
        bins=bins,
        reach=(x, y, z),
    )


def _bins(spacings: list[float], cutoff: float, method: SearchMethod) -> tuple[tuple[int, int, int], list[int]]:
    """Bins no narrower than the cutoff, and how many of them the cutoff reaches."""
    counts = [1 if method == "brute_force" else max(1, math.floor(spacing / cutoff)) for spacing in spacings]
    while math.prod(counts) > MAX_BINS:
        counts = [max(1, count // 2) for count in counts]
    reach = [math.ceil(cutoff * n / spacing - 1e-12) for n, spacing in zip(counts, spacings, strict=True)]
    x, y, z = counts
    return (x, y, z), reach


@dataclass(frozen=True)
class FoundEdges:
    """Directed edges in CSR order of their centers, in arrays of fixed capacity.

    Attributes:
        center, source: atoms of each edge; slots that `row_ptr` does not reach hold atom 0.
        shift: lattice translation of the source.
        row_ptr: edges of center i are row_ptr[i] ... row_ptr[i + 1] - 1.
        missing: edges that found no slot; the list must not be used unless it is zero.
    """

    center: Int[Tensor, " capacity"]
    source: Int[Tensor, " capacity"]
    shift: Int[Tensor, "capacity 3"]
    row_ptr: Int[Tensor, " atoms_plus_one"]
    missing: Int[Tensor, ""]

    def index(self) -> EdgeIndex:
        """The edges sorted both ways; nothing is copied to the host."""
        n_atoms, capacity = self.row_ptr.shape[0] - 1, self.center.shape[0]
        used = torch.arange(capacity, device=self.center.device) < self.row_ptr[-1]
        source = torch.where(used, self.source, n_atoms)
        in_order, by_source = torch.sort(source, stable=True)
        atoms = torch.arange(n_atoms + 1, dtype=in_order.dtype, device=in_order.device)
        source_ptr = torch.searchsorted(in_order, atoms, out_int32=True)
        return EdgeIndex(self.center, self.source, self.row_ptr, by_source.to(torch.int32), source_ptr)
