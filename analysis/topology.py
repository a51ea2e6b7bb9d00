"""Who is bonded to whom: covalent bonds by distance, molecules, fragments, nearest images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from e2former_calc.analysis.trajectory import FrameSource, Trajectory, iterate_chunks

BOND_TOLERANCE_A: Final[float] = 0.6
"""Atoms closer than the sum of their covalent radii plus this count as bonded (the published rule)."""


SLICE_TERMS: Final = 50_000
"""Bonds, angles or dihedrals measured at a time: their vectors stay in the processor's cache."""


def covalent_bonds(
    numbers: Int[np.ndarray, " atoms"],
    positions: Float[np.ndarray, "atoms 3"],
    *,
    cell: Float[np.ndarray, "3 3"] | None = None,
    pbc: Bool[np.ndarray, "3"] | bool = False,
    tolerance_A: float = BOND_TOLERANCE_A,
) -> Int[np.ndarray, "bonds 2"]:
    """Pairs i < j closer than the sum of their covalent radii (Cordero) plus `tolerance_A`, sorted."""
    atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc if cell is not None else False)
    radii = covalent_radii[numbers] + 0.5 * tolerance_A
    first, second = neighbor_list("ij", atoms, radii)
    half = first < second
    pairs = np.unique(np.stack([first[half], second[half]], axis=1), axis=0)
    return pairs.astype(np.int64).reshape(-1, 2)


def bonds_of_frame(trajectory: Trajectory, frame: int = 0) -> Int[np.ndarray, "bonds 2"]:
    """Covalent bonds of one frame."""
    return covalent_bonds(
        trajectory.numbers,
        trajectory.positions[frame],
        cell=None if trajectory.cell is None else trajectory.cells()[frame],
        pbc=np.asarray(trajectory.pbc),
    )


def molecules(n_atoms: int, bonds: Int[np.ndarray, "bonds 2"]) -> Int[np.ndarray, " atoms"]:
    """Number of the molecule (connected fragment) that each atom belongs to, counted by their first atoms."""
    ones = np.ones(len(bonds), dtype=np.int8)
    graph = coo_array((ones, (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)


def whole_molecules(trajectory: Trajectory, bonds: Int[np.ndarray, "bonds 2"]) -> Float[np.ndarray, "frames atoms 3"]:
    """Positions (Å) with no molecule cut by the cell boundary: along the bonds, each atom next to the one before."""
    positions = trajectory.positions.copy()
    if not trajectory.is_periodic or not len(bonds):
        return positions
    ones = np.ones(len(bonds), dtype=np.int8)
    n_atoms = len(trajectory.numbers)
    graph = coo_array((ones, (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms)).tocsr()
    roots = np.unique(molecules(n_atoms, bonds), return_index=True)[1]
    cells, pbc = trajectory.cells(), np.asarray(trajectory.pbc)
    for root in roots.tolist():
        order, before = breadth_first_order(graph, root, directed=False)
        for atom in order[1:].tolist():
            anchor = positions[:, int(before[atom])]
            step = nearest_image((positions[:, atom] - anchor)[:, None], cells, pbc)[:, 0]
            positions[:, atom] = anchor + step
    return positions


def fragment_counts(
    source: FrameSource, *, stop: int | None = None, tolerance_A: float = BOND_TOLERANCE_A
) -> Int[np.ndarray, " frames"]:
    """Number of fragments (molecules, ions, free atoms) in each frame.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
    """
    counts = []
    for chunk in iterate_chunks(source, stop=stop):
        for frame in range(len(chunk)):
            bonds = covalent_bonds(
                chunk.numbers,
                chunk.positions[frame],
                cell=None if chunk.cell is None else chunk.cells()[frame],
                pbc=np.asarray(chunk.pbc),
                tolerance_A=tolerance_A,
            )
            counts.append(int(molecules(len(chunk.numbers), bonds).max()) + 1)
    return np.array(counts, dtype=np.int64)


def nearest_image(
    vectors: Float[np.ndarray, "*frames pairs 3"],
    cells: Float[np.ndarray, "*#frames 3 3"],
    pbc: Bool[np.ndarray, "3"],
) -> Float[np.ndarray, "*frames pairs 3"]:
    """Vectors moved by lattice vectors until their fractional components lie in [-1/2, 1/2].

    This is the shortest image whenever that is shorter than half the smallest distance of lattice planes.
    """
    diagonal = np.diagonal(cells, axis1=-2, axis2=-1)
    off_diagonal = cells - diagonal[..., None] * np.eye(3)
    if not off_diagonal.any():
        lengths = np.where(pbc, diagonal, 1.0)[..., None, :]
        moved: Float[np.ndarray, "*frames pairs 3"] = vectors - np.rint(vectors / lengths) * np.where(pbc, lengths, 0.0)
        return moved
    complete = _complete(cells, pbc)
    shifts = np.rint(vectors @ np.linalg.inv(complete)) * pbc
    result: Float[np.ndarray, "*frames pairs 3"] = vectors - shifts @ complete
    return result


def plane_spacings(cells: Float[np.ndarray, "*frames 3 3"]) -> Float[np.ndarray, "*frames 3"]:
    """Distance (Å) of the lattice planes along each axis."""
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(cells), axis=-2))


def bond_lengths(chunk: Trajectory, bonds: Int[np.ndarray, "bonds 2"]) -> Float[np.ndarray, "frames bonds"]:
    """Length (Å) of each bond in each frame, to the nearest image in a periodic cell."""
    return in_slices(chunk, len(bonds), lambda part: np.linalg.norm(pair_vectors(part, bonds), axis=-1))


def in_slices(
    chunk: Trajectory, n_terms: int, measure: Callable[[Trajectory], Float[np.ndarray, "slice terms"]]
) -> Float[np.ndarray, "frames terms"]:
    """What `measure` gives, taken from few frames at a time, so that its intermediate results stay small.

    Args:
        chunk: frames.
        n_terms: numbers that `measure` gives for each frame.
        measure: of some of the frames.
    """
    result = np.empty((len(chunk), n_terms))
    end = 0
    for part in slices(chunk, n_terms):
        start, end = end, end + len(part)
        result[start:end] = measure(part)
    return result


def slices(chunk: Trajectory, n_terms: int) -> Iterator[Trajectory]:
    """Consecutive parts of a chunk with about `SLICE_TERMS` terms each, `n_terms` of every frame."""
    rows = max(1, SLICE_TERMS // max(1, n_terms))
    for start in range(0, len(chunk), rows):
        yield chunk.read(start, min(start + rows, len(chunk)))


def pair_vectors(chunk: Trajectory, pairs: Int[np.ndarray, "pairs 2"]) -> Float[np.ndarray, "frames pairs 3"]:
    """Vectors (Å) from the first to the second atom of each pair, to the nearest image in a periodic cell."""
    vectors = chunk.positions[:, pairs[:, 1]] - chunk.positions[:, pairs[:, 0]]
    return nearest_image(vectors, chunk.cells(), np.asarray(chunk.pbc)) if chunk.is_periodic else vectors


def _complete(cells: Float[np.ndarray, "*frames 3 3"], pbc: Bool[np.ndarray, "3"]) -> Float[np.ndarray, "*frames 3 3"]:
    """Cells whose missing vectors are replaced by the plane normals of the others."""
    if pbc.all():
        return cells
    flat = cells.reshape(-1, 3, 3).copy()
    for cell in flat:
        _, _, directions = np.linalg.svd(np.where(pbc[:, None], cell, 0.0))
        cell[~pbc] = directions[int(pbc.sum()) :]
    return flat.reshape(cells.shape)
