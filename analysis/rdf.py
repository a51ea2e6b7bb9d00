# ruff: noqa: N802 (units in names)
"""g(r): partial radial distribution functions of periodic systems, and running coordination numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.histograms import BlockedHistogram, block_bounds
from e2former_calc.analysis.pair_counts import Pair, PairList, RdfSettings, count_pairs
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, iterate_chunks

MDSIM_RDF: Final = RdfSettings(normalization="density", images="nearest")
"""Definition of the MDsim benchmark, for numbers that compare with published ones."""


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """g_ab(r) of one pair of elements.

    Attributes:
        pair: elements a (in the centre) and b; "*" for all elements.
        g: dimensionless, over r in Å.
        n_centers: number of atoms a.
    """

    pair: Pair
    g: BlockedHistogram
    n_centers: int

    def coordination_numbers(self) -> Float[np.ndarray, " bins"]:
        """Mean number of atoms b within the upper edge of each bin around an atom a."""
        counts = self.g.numerators.sum(axis=0) * shell_volumes_A3(self.g.edges)
        return np.asarray(np.cumsum(counts) / (self.n_centers * self.g.frames.sum()))


def radial_distributions(
    source: FrameSource,
    pairs: Sequence[Pair],
    settings: RdfSettings | None = None,
    *,
    stop: int | None = None,
    n_blocks: int = 10,
    molecule_of: Int[np.ndarray, " atoms"] | None = None,
) -> list[RadialDistribution]:
    """Partial radial distribution functions, reading the source in parts; the volume is that of each frame.

    Args:
        source: trajectory or open file, periodic in three directions.
        pairs: elements such as ("O", "H"); ("*", "*") for all atoms together.
        settings: range, bins and normalisation; default `RdfSettings()`.
        stop: use frames 0 ... stop - 1; default all.
        n_blocks: consecutive blocks kept apart for error bars.
        molecule_of: number of the molecule of each atom (`topology.molecules`): pairs inside one molecule are not
            counted.

    Raises:
        TrajectoryError: if the system is not periodic, or naming the first frame that is not finite.
        ValueError: if an element of `pairs` does not occur.
    """
    chosen = settings or RdfSettings()
    numbers = np.asarray(source.numbers)
    lists = [PairList.build(numbers, pair, molecule_of) for pair in pairs]
    end = len(source) if stop is None else min(stop, len(source))
    bounds = list(block_bounds(end, n_blocks))
    counts = np.zeros((len(lists), len(bounds), chosen.n_bins))
    density = np.zeros((len(lists), len(bounds)))
    for block, (first, last) in enumerate(bounds):
        for chunk in iterate_chunks(source, start=first, stop=last):
            inverse_volume = (1.0 / chunk.volumes_A3).sum()
            for k, pair_list in enumerate(lists):
                counts[k, block] += count_pairs(chunk, pair_list, chosen).sum(axis=0)
                density[k, block] += inverse_volume * pair_list.n_ordered(chosen.normalization)
    edges, frames = chosen.edges_A, np.array([last - first for first, last in bounds])
    return [
        RadialDistribution(
            pair, BlockedHistogram(edges, c / shell_volumes_A3(edges), d, frames), len(pair_list.centers)
        )
        for pair, pair_list, c, d in zip(pairs, lists, counts, density, strict=True)
    ]


def radial_distributions_by_frame(
    trajectory: Trajectory, pairs: Sequence[Pair], settings: RdfSettings
) -> list[RadialDistribution]:
    """Like `radial_distributions` with one block for each frame; all counts are in memory at once.

    Raises:
        TrajectoryError: if the system is not periodic, or naming the first frame that is not finite.
        ValueError: if an element of `pairs` does not occur.
    """
    trajectory.check_finite()
    edges, frames = settings.edges_A, np.ones(len(trajectory), dtype=np.int64)
    result = []
    for pair in pairs:
        atoms = PairList.build(trajectory.numbers, pair, None)
        counts = count_pairs(trajectory, atoms, settings) / shell_volumes_A3(edges)
        density = atoms.n_ordered(settings.normalization) / trajectory.volumes_A3
        result.append(RadialDistribution(pair, BlockedHistogram(edges, counts, density, frames), len(atoms.centers)))
    return result


def first_shell_A(curve: BlockedHistogram, *, smoothing_A: float = 0.2) -> float | None:
    """Where the first shell of g(r) ends: its lowest point between the first peak and 1.7 times its distance.

    The first peak is the first local maximum of the smoothed curve that reaches half of its highest value. None if
    there is no peak, or if the shell does not end within the range.
    """
    width = max(1, round(smoothing_A / float(curve.edges[1] - curve.edges[0])) // 2 * 2 + 1)
    smooth = np.convolve(curve.values(), np.full(width, 1.0 / width), mode="same")
    tops = np.flatnonzero(
        (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:]) & (smooth[1:-1] >= 0.5 * smooth.max())
    )
    if not len(tops) or smooth.max() <= 0:
        return None
    peak = int(tops[0]) + 1
    end = int(np.searchsorted(curve.centers, 1.7 * curve.centers[peak]))
    if end >= len(smooth):
        return None
    return float(curve.centers[peak + int(np.argmin(smooth[peak : end + 1]))])


def shell_volumes_A3(edges: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " bins"]:
    """Volume (Å^3) of the spherical shell of each bin."""
    return np.asarray(4.0 / 3.0 * np.pi * np.diff(edges**3))
