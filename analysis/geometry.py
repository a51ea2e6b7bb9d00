"""Size and shape of molecules: radius of gyration, end-to-end distance, RMSD after alignment."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from e2former_calc.analysis.topology import pair_vectors
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError, iterate_chunks


def radii_of_gyration(source: FrameSource, *, stop: int | None = None) -> Float[np.ndarray, " frames"]:
    """sqrt(sum m |r - r_com|^2 / M) of each frame in Å; the molecule must not be cut by a cell boundary.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
    """
    return np.concatenate([_gyration(chunk) for chunk in iterate_chunks(source, stop=stop)])


def end_to_end_distances(
    source: FrameSource, first: int, last: int, *, stop: int | None = None
) -> Float[np.ndarray, " frames"]:
    """Distance of two atoms in each frame in Å, to the nearest image in a periodic cell.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
        ValueError: if there are no such atoms.
    """
    n_atoms = len(source.numbers)
    if not (0 <= first < n_atoms and 0 <= last < n_atoms):
        raise ValueError(f"there are no atoms {first} and {last} in a system of {n_atoms} atoms (counted from 0)")
    pair = np.array([[first, last]])
    parts = [np.linalg.norm(pair_vectors(chunk, pair)[:, 0], axis=-1) for chunk in iterate_chunks(source, stop=stop)]
    return np.concatenate(parts)


def chain_ends(numbers: Int[np.ndarray, " atoms"], bonds: Int[np.ndarray, "bonds 2"]) -> tuple[int, int]:
    """The two heavy atoms with the most bonds between them; the natural ends for an end-to-end distance.

    Raises:
        ValueError: for fewer than two heavy atoms.
    """
    heavy = np.flatnonzero(numbers > 1)
    if len(heavy) < 2:
        raise ValueError(f"ends need two heavy atoms, got {len(heavy)}")
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(len(numbers), len(numbers)))
    steps = shortest_path(graph.tocsr(), directed=False, unweighted=True)[np.ix_(heavy, heavy)]
    steps[~np.isfinite(steps)] = -1.0
    first, last = np.unravel_index(int(np.argmax(steps)), steps.shape)
    return int(heavy[first]), int(heavy[last])


def rmsd(
    source: FrameSource,
    reference_A: Float[np.ndarray, "atoms 3"],
    *,
    atoms: Int[np.ndarray, " chosen"] | None = None,
    stop: int | None = None,
) -> Float[np.ndarray, " frames"]:
    """Root mean square deviation (Å) from a structure after the best translation and rotation (Kabsch), unweighted.

    Raises:
        TrajectoryError: if the number of atoms differs, or naming the first frame that is not finite.
    """
    if len(reference_A) != len(source.numbers):
        raise TrajectoryError(f"the structure has {len(reference_A)} atoms, the trajectory {len(source.numbers)}")
    chosen = np.arange(len(reference_A)) if atoms is None else atoms
    target = reference_A[chosen] - reference_A[chosen].mean(axis=0)
    parts = [_aligned_deviation(chunk.positions[:, chosen], target) for chunk in iterate_chunks(source, stop=stop)]
    return np.concatenate(parts)


def _gyration(chunk: Trajectory) -> Float[np.ndarray, " frames"]:
    share = np.asarray(chunk.masses) / np.asarray(chunk.masses).sum()
    relative = chunk.positions - np.einsum("a,fak->fk", share, chunk.positions)[:, None]
    return np.asarray(np.sqrt(np.einsum("a,fak,fak->f", share, relative, relative)))


def _aligned_deviation(
    positions: Float[np.ndarray, "frames atoms 3"], target: Float[np.ndarray, "atoms 3"]
) -> Float[np.ndarray, " frames"]:
    """From the singular values of the covariance: |x|^2 + |y|^2 - 2 (s1 + s2 +- s3), no rotation is built."""
    centered = positions - positions.mean(axis=1, keepdims=True)
    covariance = np.einsum("fai,aj->fij", centered, target)
    singular = np.linalg.svd(covariance, compute_uv=False)
    singular[:, 2] *= np.sign(np.linalg.det(covariance))
    squares = np.einsum("fak,fak->f", centered, centered) + np.einsum("ak,ak->", target, target)
    return np.asarray(np.sqrt(np.maximum(squares - 2.0 * singular.sum(axis=1), 0.0) / positions.shape[1]))
