"""Neighbour lists: directed pairs with periodic images, sorted by receiving atom (CSR).

Convention: an edge (i <- j, n) has the vector r_i - (r_j + n . cell); i is the *center* (receiver),
j the *source*, n the integer *shift*. Both directions of a pair are listed. Edges are sorted by
(center, source, shift), so that equal sets of edges are equal tensors.

Three search methods give the same list: on the host a native pass over all pairs for small structures and matscipy's
cell list for larger ones, and a brute-force search in plain torch for structures that live on a device. Positions are
used as given and never wrapped; atoms may lie any number of cells away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matscipy.neighbours import neighbour_list as matscipy_neighbour_list
from torch import Tensor

from e2former_calc.potentials.system import System

OVERLAP_DISTANCE = 0.01
"""Two atoms closer than this (Å) are an input error, not a structure."""

_CANDIDATE_CHUNK = 4_000_000
"""Candidate pairs that the brute-force search holds in memory at a time."""

_NATIVE_PAIRS = 150_000
"""Largest number of pairs, images counted, for which the pass over all pairs is used unless asked for."""

_CANDIDATE_MARGIN = 1e-6
"""Searches look this much farther (Å); the exact length decides afterwards."""


@dataclass(frozen=True)
class NeighborList:
    """Directed edges in CSR order.

    Attributes:
        center: receiving atom of each edge, ascending.
        source: sending atom of each edge.
        shift: integer lattice translation of the source.
        row_ptr: edges of atom i are row_ptr[i] ... row_ptr[i + 1] - 1.
        cutoff: every pair up to this distance (Å) is in the list (before any selection).
    """

    center: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    shift: Int[Tensor, "edges 3"]
    row_ptr: Int[Tensor, " atoms_plus_one"]
    cutoff: float

    @staticmethod
    def from_pairs(
        center: Int[Tensor, " edges"],
        source: Int[Tensor, " edges"],
        shift: Int[Tensor, "edges 3"],
        *,
        n_atoms: int,
        cutoff: float,
    ) -> NeighborList:
        """Sort directed pairs into CSR order."""
        order = torch.argsort(_sort_key(center, source, shift, n_atoms))
        row_ptr = torch.zeros(n_atoms + 1, dtype=torch.int64, device=center.device)
        torch.cumsum(torch.bincount(center, minlength=n_atoms), dim=0, out=row_ptr[1:])
        return NeighborList(
            center=center[order], source=source[order], shift=shift[order], row_ptr=row_ptr, cutoff=cutoff
        )

    @staticmethod
    def join(lists: Sequence[NeighborList], sizes: Sequence[int]) -> NeighborList:
        """List of the stacked system from the lists of its parts, which have `sizes` atoms.

        Raises:
            ValueError: if there are no lists.
        """
        if not lists:
            raise ValueError("`lists` is empty: give at least one neighbour list")
        first_atom = np.cumsum([0, *sizes[:-1]]).tolist()
        first_edge = np.cumsum([0, *(part.n_edges for part in lists[:-1])]).tolist()
        starts = [part.row_ptr[:-1] + edge for part, edge in zip(lists, first_edge, strict=True)]
        end = lists[-1].row_ptr[-1:] + first_edge[-1]
        return NeighborList(
            center=torch.cat([part.center + atom for part, atom in zip(lists, first_atom, strict=True)]),
            source=torch.cat([part.source + atom for part, atom in zip(lists, first_atom, strict=True)]),
            shift=torch.cat([part.shift for part in lists]),
            row_ptr=torch.cat([*starts, end]),
            cutoff=min(part.cutoff for part in lists),
        )

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return int(self.center.shape[0])

    @property
    def counts(self) -> Int[Tensor, " atoms"]:
        """Number of edges that arrive at each atom."""
        return self.row_ptr[1:] - self.row_ptr[:-1]

    def clone(self) -> NeighborList:
        """A copy that shares no memory with this one."""
        tensors = {name: getattr(self, name).clone() for name in ("center", "source", "shift", "row_ptr")}
        return NeighborList(**tensors, cutoff=self.cutoff)

    def to(self, device: torch.device | str) -> NeighborList:
        """The same list on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("center", "source", "shift", "row_ptr")}
        return NeighborList(**tensors, cutoff=self.cutoff)

    def vectors(
        self, positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "structures 3 3"], batch: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "edges 3"]:
        """Edge vectors r_center - r_source(image) in the unit of `positions`.

        The arithmetic is element by element, so that an edge has the same vector to the last bit in
        whatever list it stands.
        """
        vector = positions[self.center] - positions[self.source]
        if not bool(self.shift.any()):
            return vector
        shift = self.shift.to(positions.dtype)
        lattice = cell[batch[self.center]] if cell.shape[0] > 1 else cell
        image = shift[:, :1] * lattice[:, 0] + shift[:, 1:2] * lattice[:, 1] + shift[:, 2:] * lattice[:, 2]
        return vector - image

    def select(self, keep: Bool[Tensor, " edges"], *, cutoff: float | None = None) -> NeighborList:
        """The edges for which `keep` is True, in the same order."""
        kept_before = torch.zeros(self.n_edges + 1, dtype=torch.int64, device=keep.device)
        torch.cumsum(keep, dim=0, out=kept_before[1:])
        return NeighborList(
            center=self.center[keep],
            source=self.source[keep],
            shift=self.shift[keep],
            row_ptr=kept_before[self.row_ptr],
            cutoff=self.cutoff if cutoff is None else cutoff,
        )

    def within(self, system: System, cutoff: float) -> NeighborList:
        """The edges of length up to `cutoff` (Å); equal to a fresh list with that cutoff.

        Raises:
            ValueError: if `cutoff` is larger than the cutoff that this list was built with.
        """
        if cutoff > self.cutoff:
            raise ValueError(f"a list built with cutoff {self.cutoff} Å has no pairs up to {cutoff} Å: rebuild it")
        with torch.no_grad():
            vector = self.vectors(system.positions, system.cell, system.batch)
            keep = squared_length(vector) <= cutoff**2
        return self.select(keep, cutoff=cutoff)

    def nearest(self, system: System, count: int) -> NeighborList:
        """The `count` shortest edges of every center; ties go to the lower (source, shift).

        Distances are compared in steps of 1e-9 Å so that rounding does not decide between
        symmetry-equivalent neighbours.
        """
        if self.n_edges == 0 or int(self.counts.max()) <= count:
            return self
        with torch.no_grad():
            vector = self.vectors(system.positions, system.cell, system.batch)
            step = torch.round(squared_length(vector).sqrt() * 1e9).to(torch.int64)
        by_distance = torch.argsort(step, stable=True)
        order = by_distance[torch.argsort(self.center[by_distance], stable=True)]
        rank_in_order = torch.arange(self.n_edges, device=order.device) - self.row_ptr[self.center[order]]
        keep = torch.zeros(self.n_edges, dtype=torch.bool, device=order.device)
        keep[order] = rank_in_order < count
        return self.select(keep)


def squared_length(vector: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape"]:
    """Squared length, summed in the order x, y, z whatever the number of edges."""
    x, y, z = vector.unbind(-1)
    return x * x + y * y + z * z


def neighbor_list(system: System, cutoff: float, *, method: str = "auto") -> NeighborList:
    """All directed pairs within `cutoff` (Å), periodic images included.

    Args:
        system: one or several structures.
        cutoff: in Å, inclusive.
        method: "native", "matscipy", "torch" or "auto" (on the host one of the first two by size, torch on a device).

    Raises:
        ValueError: for positions or cells that are not finite, a periodic direction without a
            lattice vector, lattice vectors that are linearly dependent, or overlapping atoms.
    """
    if method not in ("auto", "native", "matscipy", "torch"):
        raise ValueError(f"`method` must be 'auto', 'native', 'matscipy' or 'torch', got {method!r}")
    if not cutoff > 0:
        raise ValueError(f"`cutoff` must be positive, got {cutoff}")
    with torch.no_grad():
        if method in ("auto", "native") and system.positions.device.type == "cpu":
            found = _search_native(system, cutoff, math.inf if method == "native" else float(_NATIVE_PAIRS))
            if found is not None:
                return found
        check_geometry(system)
        parts, offset = [], 0
        for index, size in enumerate(system.sizes.tolist()):
            if size == 0:
                continue
            positions = system.positions[offset : offset + size].detach()
            cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
            search = _choose_search(method, positions.device)
            center, source, shift = search(positions, cell, pbc, cutoff)
            parts.append((center + offset, source + offset, shift))
            offset += size
        return _assemble(parts, system, cutoff)


def check_geometry(system: System) -> None:
    """Refuse coordinates and cells that no neighbour search can make sense of.

    Raises:
        ValueError: naming the atom or the lattice vector and the remedy.
    """
    bad = (~torch.isfinite(system.positions).all(dim=1)).nonzero()
    if len(bad):
        atom = int(bad[0])
        raise ValueError(
            f"position of atom {atom} is not finite: {system.positions[atom].tolist()}; "
            "the structure is broken (an exploded simulation or a bad file)"
        )
    if not bool(torch.isfinite(system.cell).all()):
        raise ValueError(f"the cell is not finite: {system.cell.tolist()}")
    lengths = system.cell.norm(dim=-1)
    missing = (system.pbc & (lengths < 1e-6)).nonzero()
    if len(missing):
        structure, axis = missing[0].tolist()
        raise ValueError(
            f"pbc is True along lattice vector {axis} of structure {structure}, but that vector is zero: "
            "set atoms.cell, or atoms.pbc = False for a molecule"
        )


def complete_cell(
    cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"], positions: Float[Tensor, "atoms 3"]
) -> tuple[Float[Tensor, "3 3"], Bool[Tensor, "3"]]:
    """Give every non-periodic direction a vector across the structure, at right angles to the rest.

    Raises:
        ValueError: if the periodic lattice vectors are linearly dependent.
    """
    periodic = [axis for axis in range(3) if bool(pbc[axis])]
    rows = cell.detach().cpu().numpy().astype(np.float64).copy()
    if not periodic:
        box = positions.amax(0) - positions.amin(0) if len(positions) else positions.new_zeros(3)
        return torch.diag(box + 1.0), pbc
    if periodic:
        lengths = np.linalg.norm(rows[periodic], axis=1)
        singular = np.linalg.svd(rows[periodic] / lengths[:, None], compute_uv=False)
        if singular[-1] < 1e-6:
            raise ValueError(
                f"the periodic lattice vectors {rows[periodic].tolist()} are linearly dependent: the cell has no volume"
            )
    span = rows[periodic]
    coordinates = positions.detach().cpu().numpy()
    for axis in range(3):
        if axis in periodic:
            continue
        _, _, directions = np.linalg.svd(np.vstack([span, np.zeros((3, 3))]))
        normal = directions[len(span)]
        along = coordinates @ normal
        extent = float(along.max() - along.min()) if len(along) else 0.0
        rows[axis] = normal * (extent + 1.0)
        span = np.vstack([span, rows[axis]])
    return torch.from_numpy(rows).to(cell.device), pbc


def image_range(cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"], cutoff: float) -> list[int]:
    """Largest image index needed along each axis for atoms inside the cell: ceil(cutoff / plane spacing)."""
    heights = plane_spacings(cell)
    return [int(np.ceil(cutoff / heights[axis] - 1e-12)) if bool(pbc[axis]) else 0 for axis in range(3)]


def plane_spacings(cell: Float[Tensor, "3 3"]) -> list[float]:
    """Distance (Å) between the lattice planes along each axis of a complete cell."""
    inverse = np.linalg.inv(cell.detach().cpu().numpy())
    return [float(1.0 / np.linalg.norm(inverse[:, axis])) for axis in range(3)]


def wrap_offsets(
    positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"]
) -> Int[Tensor, "atoms 3"]:
    """Cell that each atom lies in (integers); zero along non-periodic directions."""
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    return torch.where(pbc, torch.floor(fractional), torch.zeros_like(fractional)).to(torch.int64)


Pairs = tuple[Int[Tensor, " _"], Int[Tensor, " _"], Int[Tensor, "_ 3"]]
Search = Callable[[Float[Tensor, "atoms 3"], Float[Tensor, "3 3"], Bool[Tensor, "3"], float], Pairs]


def _choose_search(method: str, device: torch.device) -> Search:
    """On the host matscipy is faster than torch: 0.23 against 0.43 ms for 21 atoms, 6 against 15 ms for 648."""
    if method in ("auto", "native"):
        method = "matscipy" if device.type == "cpu" else "torch"
    return _search_torch if method == "torch" else _search_matscipy


def _search_native(system: System, cutoff: float, limit: float) -> NeighborList | None:
    """The list by a pass over all pairs; None for more of them than `limit`, and for structures to be refused."""
    images = np.zeros((system.n_structures, 3), np.int64)
    offsets = np.zeros((system.n_atoms, 3), np.int64)
    periodic = system.pbc.numpy().any()
    if periodic:
        check_geometry(system)
    if periodic or system.n_atoms**2 > limit:
        sizes = system.sizes.numpy()
        if sizes @ sizes > limit:
            return None
        ends = np.cumsum(sizes)
        for index in np.flatnonzero(system.pbc.numpy().any(-1)):
            atoms = slice(ends[index] - sizes[index], ends[index])
            positions = system.positions[atoms].detach()
            cell, pbc = complete_cell(system.cell[index].detach(), system.pbc[index], positions)
            images[index], offsets[atoms] = image_range(cell, pbc, cutoff), wrap_offsets(positions, cell, pbc).numpy()
        if (sizes**2) @ (2 * images + 1).prod(1) > limit:
            return None
    from e2former_calc.potentials.native_neighbors import all_pairs  # numba loads slowly, and devices do not need it

    arrays = (x.detach().contiguous().numpy() for x in (system.positions, system.cell, system.batch))
    edges = all_pairs(*arrays, offsets=offsets, images=images, cutoff=cutoff, closest=OVERLAP_DISTANCE)
    if edges is None:
        return None
    center, source, shift, row_ptr = (torch.from_numpy(x) for x in edges)
    return NeighborList(center, source, shift, row_ptr, cutoff=cutoff)


def _search_torch(
    positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"], cutoff: float
) -> Pairs:
    """Candidate pairs by brute force over the images that can reach the structure."""
    device, size = positions.device, positions.shape[0]
    offsets = wrap_offsets(positions, cell, pbc)
    wrapped = positions - offsets.to(positions.dtype) @ cell
    axes = [range(-n, n + 1) for n in image_range(cell, pbc, cutoff)]
    shifts = torch.tensor(list(product(*axes)), dtype=torch.int64, device=device)
    images = wrapped[None] + (shifts.to(positions.dtype) @ cell)[:, None]
    reach = cutoff + _CANDIDATE_MARGIN
    near = ((images >= wrapped.amin(0) - reach) & (images <= wrapped.amax(0) + reach)).all(-1)
    image_shift, image_source = near.nonzero(as_tuple=True)
    image_position = images[near]
    centers, sources, pair_shifts = [], [], []
    rows = max(1, _CANDIDATE_CHUNK // max(1, len(image_position)))
    for start in range(0, size, rows):
        delta = wrapped[start : start + rows, None] - image_position[None]
        center, image = (squared_length(delta) <= reach**2).nonzero(as_tuple=True)
        center, source = center + start, image_source[image]
        shift = shifts[image_shift[image]] + offsets[center] - offsets[source]
        other = (center != source) | (shift != 0).any(-1)
        centers.append(center[other])
        sources.append(source[other])
        pair_shifts.append(shift[other])
    return torch.cat(centers), torch.cat(sources), torch.cat(pair_shifts)


def _search_matscipy(
    positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"], cutoff: float
) -> Pairs:
    """Candidate pairs from matscipy's cell list on the host."""
    center, source, shift = matscipy_neighbour_list(
        "ijS",
        positions=positions.cpu().numpy(),
        cell=cell.cpu().numpy(),
        pbc=pbc.cpu().numpy(),
        cutoff=cutoff + _CANDIDATE_MARGIN,
    )
    arrays = (center, source, shift.reshape(-1, 3))
    first, second, third = (torch.from_numpy(a.astype(np.int64)).to(positions.device) for a in arrays)
    return first, second, third


def _assemble(parts: list[Pairs], system: System, cutoff: float) -> NeighborList:
    """Filter candidates by their exact length, sort them, and refuse overlapping atoms."""
    empty = torch.zeros(0, dtype=torch.int64, device=system.positions.device)
    parts = [*parts, (empty, empty, empty.reshape(0, 3))]
    center, source, shift = (torch.cat([part[k] for part in parts]) for k in range(3))
    candidates = NeighborList.from_pairs(center, source, shift, n_atoms=system.n_atoms, cutoff=cutoff)
    squared = squared_length(candidates.vectors(system.positions, system.cell, system.batch))
    if len(squared) and float(squared.min()) < OVERLAP_DISTANCE**2:
        _raise_overlap(candidates, squared, system)
    return candidates.select(squared <= cutoff**2)


def _sort_key(
    center: Int[Tensor, " edges"], source: Int[Tensor, " edges"], shift: Int[Tensor, "edges 3"], n_atoms: int
) -> Int[Tensor, " edges"]:
    """One integer per edge that orders edges by (center, source, shift)."""
    if len(center) == 0:
        return center
    low = shift.amin(0)
    span = (shift.amax(0) - low + 1).tolist()
    if n_atoms**2 * span[0] * span[1] * span[2] < 2**62:
        x, y, z = (shift - low).unbind(-1)
        image = (x * span[1] + y) * span[2] + z
        images = span[0] * span[1] * span[2]
    else:
        distinct, image = torch.unique(shift, dim=0, return_inverse=True)
        images = len(distinct)
    key: Tensor = (center * n_atoms + source) * images + image
    return key


def _raise_overlap(edges: NeighborList, squared: Float[Tensor, " edges"], system: System) -> None:
    worst = int(torch.argmin(squared))
    first, second = int(edges.center[worst]), int(edges.source[worst])
    shift = edges.shift[worst].tolist()
    image = f" (periodic image {shift})" if any(shift) else ""
    structure = f" of structure {int(system.batch[first])}" if system.n_structures > 1 else ""
    raise ValueError(
        f"atoms {first} and {second}{image}{structure} overlap: they are {float(squared[worst]) ** 0.5:.2e} Å apart, "
        f"the limit is {OVERLAP_DISTANCE} Å; remove the duplicate atom or correct the cell"
    )
