# ruff: noqa: N802 (units in names)
"""Free-energy surfaces of two dihedrals: from samples, from metadynamics hills, and their one-dimensional profiles.

Angles on grids are in radians here, as in the files of PLUMED; surfaces have psi along rows and phi along columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.constants import BOLTZMANN_EV_PER_K, KJ_PER_MOL_EV
from e2former_calc.analysis.histograms import block_bounds
from e2former_calc.analysis.resampling import Resampling
from e2former_calc.analysis.statistics import jensen_shannon_divergence

KT_KJ_PER_MOL_PER_K: Final = BOLTZMANN_EV_PER_K / KJ_PER_MOL_EV
MDSIM_RANGE_RAD: Final = 6.28
PLUMED_CUTOFF: Final = 6.25


@dataclass(frozen=True, eq=False)
class RamachandranMap:
    """Histogram of phi and psi.

    Attributes:
        edges_degrees: bin edges of both angles, from -180 to 180.
        probability: share of the frames in each bin, psi along rows, phi along columns; sums to 1.
        n_frames: number of frames.
    """

    edges_degrees: Float[np.ndarray, " edges"]
    probability: Float[np.ndarray, "psi phi"]
    n_frames: int

    def free_energy_kJ_per_mol(self, temperature_K: float) -> Float[np.ndarray, "psi phi"]:
        """-k_B T ln P, lowest value 0, infinite where no frame is."""
        return _from_probability(self.probability, KT_KJ_PER_MOL_PER_K * temperature_K)

    def profiles_kJ_per_mol(self, temperature_K: float) -> tuple[Float[np.ndarray, " phi"], Float[np.ndarray, " psi"]]:
        """Free-energy profiles along phi and along psi, lowest value 0, infinite where no frame is."""
        thermal = KT_KJ_PER_MOL_PER_K * temperature_K
        along_phi = _from_probability(self.probability.sum(axis=0), thermal)
        return along_phi, _from_probability(self.probability.sum(axis=1), thermal)


def ramachandran_map(
    phi_degrees: Float[np.ndarray, " frames"], psi_degrees: Float[np.ndarray, " frames"], *, n_bins: int = 60
) -> RamachandranMap:
    """Histogram of a residue's phi and psi.

    Raises:
        ValueError: if there is no frame, or numbers differ.
    """
    if not len(phi_degrees) or len(phi_degrees) != len(psi_degrees):
        raise ValueError(
            f"one phi and one psi for each frame are needed, got {len(phi_degrees)} and {len(psi_degrees)}"
        )
    edges = np.linspace(-180.0, 180.0, n_bins + 1)
    counts, _, _ = np.histogram2d(_wrap(psi_degrees), _wrap(phi_degrees), bins=(edges, edges))
    return RamachandranMap(edges, counts / counts.sum(), len(phi_degrees))


@dataclass(frozen=True, eq=False)
class MapDistance:
    """How far two Ramachandran maps are apart.

    Attributes:
        divergence: Jensen-Shannon divergence (base 2, 0 to 1).
        error: its standard error by the jackknife over blocks of the rollout; NaN for a single block.
        noise: divergence of pairs of samples that were drawn from the reference; one number for its two halves.
    """

    divergence: float
    error: float
    noise: Float[np.ndarray, " repetitions"]


def compare_maps(
    rollout_degrees: tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " frames"]],
    reference_degrees: tuple[Float[np.ndarray, " reference_frames"], Float[np.ndarray, " reference_frames"]],
    *,
    n_bins: int = 36,
    n_blocks: int = 5,
    resampling: Resampling | None = None,
) -> MapDistance:
    """Divergence of the maps of one residue.

    Args:
        rollout_degrees: phi and psi of every frame.
        reference_degrees: the same of the reference.
        n_bins: bins along each angle; few frames need wide bins.
        n_blocks: consecutive blocks of the rollout for the error.
        resampling: of consecutive parts of the reference, for the noise; None: its two halves.

    Raises:
        ValueError: for an empty rollout, or fewer than two frames of the reference.
    """

    def counts(angles: Sequence[Float[np.ndarray, " frames"]], first: int, last: int) -> Float[np.ndarray, "psi phi"]:
        found = ramachandran_map(angles[0][first:last], angles[1][first:last], n_bins=n_bins)
        return found.probability * found.n_frames

    n, n_reference = len(rollout_degrees[0]), len(reference_degrees[0])
    if n < 1 or n_reference < 2:
        raise ValueError(f"too few frames: {n} of the rollout and {n_reference} of the reference")
    target = counts(reference_degrees, 0, n_reference)
    blocks = [counts(rollout_degrees, a, b) for a, b in block_bounds(n, n_blocks)]
    total = np.sum(blocks, axis=0)
    error = float("nan")
    if len(blocks) > 1:
        left_out = np.array([jensen_shannon_divergence(total - block, target) for block in blocks])
        error = float(np.sqrt((len(blocks) - 1) * left_out.var()))
    part = np.arange(n_reference) * (2 if resampling is None else resampling.rollouts.shape[1]) // n_reference
    pairs = [(np.array([1.0, 0.0]), np.array([0.0, 1.0]))]
    if resampling is not None:
        pairs = list(zip(resampling.rollouts, resampling.reference, strict=True))
    edges = np.linspace(-180.0, 180.0, n_bins + 1)
    cell = _cell_of(reference_degrees, edges)
    noise = [
        jensen_shannon_divergence(*(np.bincount(cell, chosen[part], minlength=n_bins**2) for chosen in pair))
        for pair in pairs
    ]
    return MapDistance(jensen_shannon_divergence(total, target), error, np.array(noise))


def _cell_of(
    angles_degrees: tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " frames"]],
    edges: Float[np.ndarray, " edges"],
) -> Int[np.ndarray, " frames"]:
    """Number of the bin of phi and psi that each frame falls in."""
    phi, psi = (np.searchsorted(edges, _wrap(angles), side="right") - 1 for angles in angles_degrees)
    return np.asarray(psi * (len(edges) - 1) + phi)


def surface_profiles(
    surface_kJ_per_mol: Float[np.ndarray, "psi phi"], thermal_kJ_per_mol: float
) -> tuple[Float[np.ndarray, " phi"], Float[np.ndarray, " psi"]]:
    """One-dimensional profiles of a surface along phi and along psi, lowest value 0.

    Args:
        surface_kJ_per_mol: free energy on a grid.
        thermal_kJ_per_mol: k_B T; the MDsim code uses 2.49.
    """
    weight = np.exp(-(surface_kJ_per_mol - surface_kJ_per_mol.min()) / thermal_kJ_per_mol)
    weight /= weight.sum()
    along_phi = _from_probability(weight.sum(axis=0), thermal_kJ_per_mol)
    return along_phi, _from_probability(weight.sum(axis=1), thermal_kJ_per_mol)


def profile_error(
    profile_kJ_per_mol: Float[np.ndarray, " bins"], reference_kJ_per_mol: Float[np.ndarray, " bins"]
) -> float:
    """6.28 times the mean absolute difference of two profiles (kJ/mol rad), as published."""
    return float(MDSIM_RANGE_RAD * np.abs(profile_kJ_per_mol - reference_kJ_per_mol).mean())


def sum_hills(
    centers_rad: Float[np.ndarray, "hills 2"],
    widths_rad: Float[np.ndarray, "hills 2"],
    heights_kJ_per_mol: Float[np.ndarray, " hills"],
    *,
    n_bins: int = 60,
) -> Float[np.ndarray, "psi phi"]:
    """Free energy (kJ/mol, lowest value 0) as minus the sum of the Gaussian hills of a metadynamics run.

    The grid points are -pi + 2 pi k / n_bins. Hills of well-tempered runs are stored already multiplied by
    gamma / (gamma - 1), which is what is needed here. A hill reaches as many grid points as in PLUMED, sqrt(12.5)
    standard deviations rounded up, so that the numbers of its `sum_hills` are reproduced.

    Args:
        centers_rad: phi and psi of each hill.
        widths_rad: standard deviation along each.
        heights_kJ_per_mol: height of each.
        n_bins: grid points along each angle.

    Raises:
        ValueError: if a width is not positive.
    """
    if not (widths_rad > 0).all():
        raise ValueError("widths of hills must be positive")
    spacing = 2.0 * np.pi / n_bins
    points = np.arange(n_bins)
    factors = []
    for axis in (0, 1):
        center, width = centers_rad[:, axis, None], widths_rad[:, axis, None]
        delta = -np.pi + spacing * points - center
        delta -= 2.0 * np.pi * np.rint(delta / (2.0 * np.pi))
        home = np.floor((center + np.pi) / spacing)
        away = np.abs((points - home + n_bins // 2) % n_bins - n_bins // 2)
        reached = away <= np.ceil(np.sqrt(2.0 * PLUMED_CUTOFF) * width / spacing)
        factors.append(np.where(reached, np.exp(-0.5 * (delta / width) ** 2), 0.0))
    surface = -np.einsum("h,hy,hx->yx", heights_kJ_per_mol, factors[1], factors[0], optimize=True)
    return np.asarray(surface - surface.min())


def _from_probability(probability: Float[np.ndarray, "..."], thermal: float) -> Float[np.ndarray, "..."]:
    energy = np.full(probability.shape, np.inf)
    inside = probability > 0
    energy[inside] = -thermal * np.log(probability[inside] / probability.max())
    return energy


def _wrap(degrees: Float[np.ndarray, " frames"]) -> Float[np.ndarray, " frames"]:
    return np.asarray((degrees + 180.0) % 360.0 - 180.0)
