"""Neighbour lists of small structures on the host, by one native pass over all pairs and their images.

For a molecule nearly all of the time of a cell list goes into its preparation; a pass over all pairs needs none. The
lists equal those of other searches to the last entry: vectors are calculated in the same way, and pairs come in order.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from e2former_calc.potentials.exact_kernels import exact

Edges = tuple[Int[ndarray, " edges"], Int[ndarray, " edges"], Int[ndarray, "edges 3"], Int[ndarray, " atoms_plus_one"]]
"""Centre, source and shift of each edge, and where the edges of each atom start."""

_NO_EDGES = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int64)


def all_pairs(
    positions: Float[ndarray, "atoms 3"],
    cell: Float[ndarray, "structures 3 3"],
    batch: Int[ndarray, " atoms"],
    *,
    offsets: Int[ndarray, "atoms 3"],
    images: Int[ndarray, "structures 3"],
    cutoff: float,
    closest: float,
) -> Edges | None:
    """All directed pairs within the cutoff; None if two atoms overlap or a coordinate is not finite.

    Args:
        positions: Å.
        cell: lattice vectors in Å as rows.
        batch: structure of each atom, ascending.
        offsets: cell that each atom lies in; zero along directions that are not periodic.
        images: largest image index needed along each lattice vector for atoms inside of the cell.
        cutoff: Å, inclusive.
        closest: distance (Å) below which atoms overlap.
    """
    row_ptr = np.zeros(len(positions) + 1, dtype=np.int64)
    geometry = positions, cell, batch, offsets, images
    if not _visit(*geometry, cutoff**2, closest**2, row_ptr, *_NO_EDGES, False):
        return None
    count = int(row_ptr[-1])
    edges = np.empty(count, np.int64), np.empty(count, np.int64), np.empty((count, 3), np.int64)
    _visit(*geometry, cutoff**2, closest**2, row_ptr, *edges, True)
    return *edges, row_ptr


@exact
def _end_of(structure: int, batch: Int[ndarray, " atoms"], first: int) -> int:
    """Index of the first atom of a later structure."""
    end = first
    while end < len(batch) and batch[end] == structure:
        end += 1
    return end


@exact
def _visit(
    positions: Float[ndarray, "atoms 3"], cell: Float[ndarray, "structures 3 3"], batch: Int[ndarray, " atoms"],
    offsets: Int[ndarray, "atoms 3"], images: Int[ndarray, "structures 3"], squared_cutoff: float,
    squared_closest: float, row_ptr: Int[ndarray, " atoms_plus_one"], center: Int[ndarray, " edges"],
    source: Int[ndarray, " edges"], shift: Int[ndarray, "edges 3"], fill: bool,
) -> bool:  # fmt: skip
    """Count the edges in `row_ptr`, or fill the other arrays; whether atoms are apart and coordinates finite."""
    edge, end, sound = 0, 0, True
    for structure in range(len(images)):
        ax, ay, az = cell[structure, 0, 0], cell[structure, 0, 1], cell[structure, 0, 2]
        bx, by, bz = cell[structure, 1, 0], cell[structure, 1, 1], cell[structure, 1, 2]
        cx, cy, cz = cell[structure, 2, 0], cell[structure, 2, 1], cell[structure, 2, 2]
        size = abs(ax) + abs(ay) + abs(az) + abs(bx) + abs(by) + abs(bz) + abs(cx) + abs(cy) + abs(cz)
        sound &= size < np.inf
        first, end = end, _end_of(structure, batch, end)
        last_x, last_y, last_z = images[structure, 0], images[structure, 1], images[structure, 2]
        for i in range(first, end):
            sound &= abs(positions[i, 0]) + abs(positions[i, 1]) + abs(positions[i, 2]) < np.inf
            for j in range(first, end):
                dx = positions[i, 0] - positions[j, 0]
                dy = positions[i, 1] - positions[j, 1]
                dz = positions[i, 2] - positions[j, 2]
                from_x = offsets[i, 0] - offsets[j, 0]
                from_y = offsets[i, 1] - offsets[j, 1]
                from_z = offsets[i, 2] - offsets[j, 2]
                for x in range(from_x - last_x, from_x + last_x + 1):
                    for y in range(from_y - last_y, from_y + last_y + 1):
                        px, py, pz = x * ax + y * bx, x * ay + y * by, x * az + y * bz
                        for z in range(from_z - last_z, from_z + last_z + 1):
                            vx, vy, vz = dx - (px + z * cx), dy - (py + z * cy), dz - (pz + z * cz)
                            squared = vx * vx + vy * vy + vz * vz
                            if squared > squared_cutoff or (i == j and x == 0 and y == 0 and z == 0):
                                continue
                            sound &= squared >= squared_closest
                            if fill:
                                center[edge], source[edge] = i, j
                                shift[edge, 0], shift[edge, 1], shift[edge, 2] = x, y, z
                            edge += 1
            if not fill:
                row_ptr[i + 1] = edge
    return sound
