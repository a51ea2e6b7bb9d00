"""A rollout's curves beside those of its reference: difference, and the noise floor it has to be seen against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e2former_calc.analysis.distances import distance_distribution
from e2former_calc.analysis.histograms import BlockedHistogram, NoiseFloor, noise_floor
from e2former_calc.analysis.pair_counts import Pair, RdfSettings
from e2former_calc.analysis.rdf import radial_distributions
from e2former_calc.analysis.resampling import block_count
from e2former_calc.analysis.trajectory import FrameSource, TrajectoryError, check_same_atoms


@dataclass(frozen=True, eq=False)
class ComparedCurve:
    """One curve of a rollout and of its reference.

    Attributes:
        label: "h(r)", "h(r) C-H", "g(r) O-O" and so on.
        rollout: curve of the rollout.
        reference: curve of the reference.
        mae: difference as published (`BlockedHistogram.mae`).
        floor: what a perfect model would show in a rollout of this length; None if the reference has one block only.
            A shuffled reference gives the floor of independent frames, which a correlated rollout cannot reach.
    """

    label: str
    rollout: BlockedHistogram
    reference: BlockedHistogram
    mae: float
    floor: NoiseFloor | None

    @property
    def in_units_of_noise(self) -> float | None:
        """`mae` over the mean of the floor: about 1 for a perfect model; None without a floor."""
        return None if self.floor is None or self.floor.mean == 0 else self.mae / self.floor.mean


def compare_distances(
    rollout: FrameSource,
    reference: FrameSource,
    rng: np.random.Generator,
    *,
    r_max_A: float = 10.0,
    n_bins: int = 500,
    stop: int | None = None,
    n_blocks: int = 10,
) -> list[ComparedCurve]:
    """h(r) and every h_ab(r) of a rollout against its reference; the total comes first.

    Args:
        rollout: trajectory or open file.
        reference: the same atoms in the same order.
        rng: for the bootstrap of the noise floor.
        r_max_A: end of the range; published 10, 15, 25.
        n_bins: number of bins.
        stop: use frames 0 ... stop - 1 of the rollout (`Stability.usable_frames`); default all.
        n_blocks: blocks of each trajectory; of the reference more if the rollout is shorter than one of them.

    Raises:
        TrajectoryError: if atoms differ, if no frame is left, or naming a frame that is not finite.
    """
    length = _check(rollout, reference, stop)
    share = _relative_length(rollout, reference, length)
    first = distance_distribution(rollout, r_max_A=r_max_A, n_bins=n_bins, stop=length, n_blocks=n_blocks)
    second = distance_distribution(reference, r_max_A=r_max_A, n_bins=n_bins, n_blocks=block_count([share], n_blocks))
    curves = [_compare("h(r)", first.total, second.total, rng, share=share)]
    for label, partial in first.partial.items():
        curves.append(_compare(f"h(r) {label}", partial, second.partial[label], rng, share=share))
    return curves


def compare_radial_distributions(
    rollout: FrameSource,
    reference: FrameSource,
    pairs: Sequence[Pair],
    rng: np.random.Generator,
    *,
    settings: RdfSettings | None = None,
    stop: int | None = None,
    n_blocks: int = 10,
) -> list[ComparedCurve]:
    """Partial g(r) of a rollout against its reference.

    Args:
        rollout: trajectory or open file, periodic.
        reference: the same atoms in the same order.
        pairs: pairs of elements.
        rng: for the bootstrap of the noise floor.
        settings: range, bins and normalisation; default `RdfSettings()`, published numbers need `MDSIM_RDF`.
        stop: use frames 0 ... stop - 1 of the rollout (`Stability.usable_frames`); default all.
        n_blocks: blocks of each trajectory; of the reference more if the rollout is shorter than one of them.

    Raises:
        TrajectoryError: if atoms differ, if no frame is left, or naming a frame that is not finite.
    """
    length = _check(rollout, reference, stop)
    share = _relative_length(rollout, reference, length)
    first = radial_distributions(rollout, pairs, settings, stop=length, n_blocks=n_blocks)
    second = radial_distributions(reference, pairs, settings, n_blocks=block_count([share], n_blocks))
    return [
        _compare(f"g(r) {'-'.join(a.pair)}", a.g, b.g, rng, share=share) for a, b in zip(first, second, strict=True)
    ]


def _check(rollout: FrameSource, reference: FrameSource, stop: int | None) -> int:
    check_same_atoms(np.asarray(reference.numbers), np.asarray(rollout.numbers))
    length = len(rollout) if stop is None else min(stop, len(rollout))
    if length < 1:
        raise TrajectoryError("no frame of the rollout is stable: there is nothing to compare")
    return length


def _relative_length(rollout: FrameSource, reference: FrameSource, length: int) -> float:
    """Length of the rollout over that of the reference: in time, or in frames where a time is missing."""
    spacings = [_spacing(rollout), _spacing(reference)]
    if None in spacings:
        return length / len(reference)
    return float(length * (spacings[0] or 0.0) / (len(reference) * (spacings[1] or 1.0)))


def _spacing(source: FrameSource) -> float | None:
    if len(source) < 2:
        return None
    times = source.read(0, 2).times_fs
    return None if times is None or times[1] <= times[0] else float(times[1] - times[0])


def _compare(
    label: str,
    rollout: BlockedHistogram,
    reference: BlockedHistogram,
    rng: np.random.Generator,
    *,
    share: float,
) -> ComparedCurve:
    floor = None
    if reference.n_blocks > 1:
        floor = noise_floor(reference, rng, lengths=[share * reference.n_blocks])
    return ComparedCurve(label, rollout, reference, rollout.mae(reference), floor)
