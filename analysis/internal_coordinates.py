"""Bonds, angles and dihedrals: which there are, their values along a trajectory, and the backbone of peptides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.histograms import BlockedHistogram, block_bounds
from e2former_calc.analysis.resampling import Resampling
from e2former_calc.analysis.statistics import DistributionDistance, distribution_distance
from e2former_calc.analysis.topology import in_slices, pair_vectors
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, iterate_chunks


@dataclass(frozen=True, eq=False)
class InternalCoordinates:
    """Bonded terms of a molecule.

    Attributes:
        bonds: pairs i < j.
        angles: triples i - j - k, j in the middle, i < k.
        dihedrals: quadruples i - j - k - l, one direction of each.
    """

    bonds: Int[np.ndarray, "bonds 2"]
    angles: Int[np.ndarray, "angles 3"]
    dihedrals: Int[np.ndarray, "dihedrals 4"]

    @staticmethod
    def from_bonds(bonds: Int[np.ndarray, "bonds 2"], n_atoms: int) -> InternalCoordinates:
        """All angles and proper dihedrals that the bonds imply."""
        neighbours = _neighbours(bonds, n_atoms)
        angles = [
            (a, j, b) for j in range(n_atoms) for k, a in enumerate(neighbours[j]) for b in neighbours[j][k + 1 :]
        ]
        dihedrals = [
            (a, j, k, b)
            for j, k in bonds.tolist()
            for a in neighbours[j]
            for b in neighbours[k]
            if a not in (k, b) and b != j
        ]
        return InternalCoordinates(
            bonds, np.array(angles, dtype=np.int64).reshape(-1, 3), np.array(dihedrals, dtype=np.int64).reshape(-1, 4)
        )


@dataclass(frozen=True, eq=False)
class Backbone:
    """Backbone of a peptide: atoms of phi and psi of each residue that has both.

    Attributes:
        phi: C(-1) - N - CA - C.
        psi: N - CA - C - N(+1).
    """

    phi: Int[np.ndarray, "residues 4"]
    psi: Int[np.ndarray, "residues 4"]


def bond_angles(chunk: Trajectory, angles: Int[np.ndarray, "angles 3"]) -> Float[np.ndarray, "frames angles"]:
    """Angles (degrees, 0 to 180) in each frame."""
    return in_slices(chunk, len(angles), lambda part: _angles(part, angles))


def _angles(chunk: Trajectory, angles: Int[np.ndarray, "angles 3"]) -> Float[np.ndarray, "frames angles"]:
    first, second = pair_vectors(chunk, angles[:, [1, 0]]), pair_vectors(chunk, angles[:, [1, 2]])
    sine = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.asarray(np.degrees(np.arctan2(sine, np.einsum("fak,fak->fa", first, second))))


def dihedral_angles(
    chunk: Trajectory, dihedrals: Int[np.ndarray, "dihedrals 4"]
) -> Float[np.ndarray, "frames dihedrals"]:
    """Dihedral angles (degrees, in (-180, 180], IUPAC sign: positive is clockwise looking from atom 2 to 3)."""
    return in_slices(chunk, len(dihedrals), lambda part: _dihedrals(part, dihedrals))


def _dihedrals(chunk: Trajectory, dihedrals: Int[np.ndarray, "dihedrals 4"]) -> Float[np.ndarray, "frames dihedrals"]:
    first, axis, last = (pair_vectors(chunk, dihedrals[:, [k, k + 1]]) for k in range(3))
    left, right = np.cross(first, axis), np.cross(axis, last)
    sine = np.einsum("fdk,fdk->fd", first, right) * np.linalg.norm(axis, axis=-1)
    angle = np.degrees(np.arctan2(sine, np.einsum("fdk,fdk->fd", left, right)))
    return np.where(angle <= -180.0, 180.0, angle)


def backbone(numbers: Int[np.ndarray, " atoms"], bonds: Int[np.ndarray, "bonds 2"]) -> Backbone:
    """Find phi and psi from elements and bonds: residues N - CA - C(=O) between two amide groups, in chain order.

    A residue counts if its N is bonded to another carbonyl carbon and its carbonyl carbon to another N.

    Raises:
        ValueError: if there is no such residue.
    """
    neighbours = _neighbours(bonds, len(numbers))

    def of(atom: int, number: int) -> list[int]:
        return [other for other in neighbours[atom] if numbers[other] == number]

    carbonyl = {c for c in np.flatnonzero(numbers == 6).tolist() if any(len(neighbours[o]) == 1 for o in of(c, 8))}
    phi, psi = [], []
    for n in np.flatnonzero(numbers == 7).tolist():
        for alpha in (c for c in of(n, 6) if c not in carbonyl):
            before = [c for c in of(n, 6) if c in carbonyl]
            for c in (c for c in of(alpha, 6) if c in carbonyl):
                after = [other for other in of(c, 7) if other != n]
                if before and after:
                    phi.append((before[0], n, alpha, c))
                    psi.append((n, alpha, c, after[0]))
    if not phi:
        raise ValueError("no residue with phi and psi found: this is not a peptide with two amide groups or more")
    order = _chain_order(phi, psi)
    return Backbone(np.array(phi)[order], np.array(psi)[order])


def ramachandran_angles(
    source: FrameSource, residues: Backbone, *, stop: int | None = None
) -> tuple[Float[np.ndarray, "frames residues"], Float[np.ndarray, "frames residues"]]:
    """Backbone dihedrals phi and psi (degrees) of every residue and frame, reading the source in parts.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
    """
    parts = [
        (dihedral_angles(chunk, residues.phi), dihedral_angles(chunk, residues.psi))
        for chunk in iterate_chunks(source, stop=stop)
    ]
    return np.concatenate([phi for phi, _ in parts]), np.concatenate([psi for _, psi in parts])


def rotatable_dihedrals(
    numbers: Int[np.ndarray, " atoms"], bonds: Int[np.ndarray, "bonds 2"]
) -> Int[np.ndarray, "dihedrals 4"]:
    """One dihedral for each bond that can turn: a bond outside rings whose atoms both have other neighbours.

    Its ends are the heaviest neighbours, of equal ones those with the lowest number. Dihedrals of four heavy atoms
    come first, those that end in hydrogen later.
    """
    neighbours = _neighbours(bonds, len(numbers))
    found = []
    for j, k in bonds.tolist():
        ends = [[a for a in neighbours[j] if a != k], [a for a in neighbours[k] if a != j]]
        if all(ends) and not _connected_without(neighbours, j, k):
            first, last = (max(atoms, key=lambda atom: (numbers[atom], -atom)) for atoms in ends)
            found.append((first, j, k, last))
    found.sort(key=lambda atoms: (int((numbers[list(atoms)] == 1).sum()), atoms[1:3]))
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def dihedral_distributions(
    source: FrameSource,
    dihedrals: Int[np.ndarray, "dihedrals 4"],
    *,
    n_bins: int = 36,
    stop: int | None = None,
    n_blocks: int = 10,
) -> list[BlockedHistogram]:
    """Distribution of each dihedral over -180 to 180 degrees, in 1/degree, normalised to 1, reading in parts.

    `BlockedHistogram.mae` of two of them is half the integral of |Δ|: the share of frames, 0 to 1, that would have to
    be elsewhere.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
        ValueError: if there is no frame, bin or block.
    """
    end = len(source) if stop is None else min(stop, len(source))
    bounds = list(block_bounds(end, n_blocks))
    edges = np.linspace(-180.0, 180.0, n_bins + 1)
    counts = np.zeros((len(dihedrals), len(bounds), n_bins))
    for block, (first, last) in enumerate(bounds):
        for chunk in iterate_chunks(source, start=first, stop=last):
            angles = dihedral_angles(chunk, dihedrals)
            for k in range(len(dihedrals)):
                counts[k, block] += np.histogram(angles[:, k], edges)[0]
    frames = np.array([last - first for first, last in bounds])
    return [BlockedHistogram(edges, part * (n_bins / 360.0), part.sum(axis=1), frames) for part in counts]


def basin_fractions(phi: Float[np.ndarray, " frames"], psi: Float[np.ndarray, " frames"]) -> dict[str, float]:
    """Share of frames in alpha_R, beta, PII, alpha_L and elsewhere, by boxes in the Ramachandran map.

    alpha_R: phi -160 ... -20, psi -120 ... 50; beta: phi below -90 and psi outside -120 ... 50; PII: phi -90 ... -20
    and psi outside -120 ... 50; alpha_L: phi 20 ... 120, psi -30 ... 100 (degrees).
    """
    helical = (psi >= -120) & (psi < 50)
    alpha_r = (phi >= -160) & (phi < -20) & helical
    beta, pii = (phi < -90) & ~helical, (phi >= -90) & (phi < -20) & ~helical
    alpha_l = (phi >= 20) & (phi < 120) & (psi >= -30) & (psi < 100)
    shares = {"alpha_R": alpha_r, "beta": beta, "PII": pii, "alpha_L": alpha_l}
    result = {name: float(inside.mean()) for name, inside in shares.items()}
    return result | {"other": 1.0 - sum(result.values())}


def compare_coordinates(
    rollout: Float[np.ndarray, "frames terms"],
    reference: Float[np.ndarray, "reference_frames terms"],
    *,
    periodic: bool = False,
    resampling: Resampling | None = None,
) -> list[DistributionDistance]:
    """Distance between the distributions of every bond, angle or dihedral, beside the one that sampling alone makes.

    Dihedrals (`periodic`, degrees) are measured from the circular mean of the reference, so that a peak at 180 degrees
    is one peak.

    Args:
        rollout: values in each frame.
        reference: the same of the reference, in the order of time.
        periodic: whether 360 degrees make no difference.
        resampling: of the frames of the reference, for the noise; None: its two halves.

    Raises:
        ValueError: if the numbers of terms differ.
    """
    if rollout.shape[1] != reference.shape[1]:
        raise ValueError(f"{rollout.shape[1]} terms in the rollout, {reference.shape[1]} in the reference")
    if periodic:
        mean = np.degrees(np.angle(np.exp(1j * np.radians(reference)).mean(axis=0)))
        rollout, reference = ((values - mean + 180.0) % 360.0 - 180.0 for values in (rollout, reference))
    return [distribution_distance(rollout[:, k], reference[:, k], resampling) for k in range(rollout.shape[1])]


def _neighbours(bonds: Int[np.ndarray, "bonds 2"], n_atoms: int) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    return [sorted(atoms) for atoms in neighbours]


def _connected_without(neighbours: list[list[int]], first: int, second: int) -> bool:
    """Whether two bonded atoms are in a ring: there is a way from one to the other beside their bond."""
    seen, waiting = {first}, [atom for atom in neighbours[first] if atom != second]
    while waiting:
        atom = waiting.pop()
        if atom == second:
            return True
        if atom not in seen:
            seen.add(atom)
            waiting += neighbours[atom]
    return False


def _chain_order(phi: list[tuple[int, int, int, int]], psi: list[tuple[int, int, int, int]]) -> list[int]:
    """Residues from the N to the C terminus of each chain: the next N of one is the N of the following."""
    by_nitrogen = {atoms[1]: k for k, atoms in enumerate(phi)}
    following = [by_nitrogen.get(atoms[3]) for atoms in psi]
    order: list[int] = []
    starts = [k for k in range(len(phi)) if k not in following]
    for start in [*starts, *range(len(phi))]:
        current: int | None = start
        while current is not None and current not in order:
            order.append(current)
            current = following[current]
    return order
