"""Histograms kept in blocks of frames, so that every curve has error bars and a noise floor.

All curves here - h(r), g(r), angle distributions - are a sum of counts divided by a sum of normalisations. Both
are kept per block of consecutive frames; any choice of blocks (halves, bootstrap samples) is then a new curve at
the cost of a small matrix product.

>>> import numpy as np
>>> counts = np.array([[2.0, 2.0], [1.0, 3.0]])
>>> curve = BlockedHistogram(np.array([0.0, 1.0, 2.0]), counts, np.array([4.0, 4.0]), np.array([5, 5]))
>>> curve.values().tolist()
[0.375, 0.625]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.resampling import REPETITIONS, resample


@dataclass(frozen=True, eq=False)
class BlockedHistogram:
    """A normalised histogram of frames, in blocks.

    Attributes:
        edges: bin edges, in the unit of the variable.
        numerators: counts of each block, divided by whatever depends on the bin alone.
        denominators: normalisation of each block.
        frames: number of frames of each block.
    """

    edges: Float[np.ndarray, " edges"]
    numerators: Float[np.ndarray, "blocks bins"]
    denominators: Float[np.ndarray, " blocks"]
    frames: Int[np.ndarray, " blocks"]

    @property
    def centers(self) -> Float[np.ndarray, " bins"]:
        """Middle of each bin."""
        return np.asarray(0.5 * (self.edges[1:] + self.edges[:-1]))

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.frames)

    def values(self, weights: Float[np.ndarray, "*samples blocks"] | None = None) -> Float[np.ndarray, "*samples bins"]:
        """The curve; `weights` say how often each block counts (default: once), in one or several samples.

        Where there is nothing to normalise by (no pair in range) the curve is 0.
        """
        chosen = np.ones(self.n_blocks) if weights is None else weights
        above, below = chosen @ self.numerators, np.asarray(chosen @ self.denominators)[..., None]
        result: Float[np.ndarray, "*samples bins"] = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        return result

    def errors(self) -> Float[np.ndarray, " bins"]:
        """Standard error of each bin by the jackknife over blocks; NaN for a single block."""
        n = self.n_blocks
        if n < 2:
            return np.full(self.numerators.shape[1], np.nan)
        left_out = self.values(1.0 - np.eye(n))
        return np.asarray(np.sqrt((n - 1) * left_out.var(axis=0)))

    def merged(self, n_blocks: int) -> BlockedHistogram:
        """The same in about `n_blocks` longer blocks of neighbours; unchanged if there are not twice as many."""
        starts = np.arange(0, self.n_blocks, max(1, self.n_blocks // max(1, n_blocks)))
        return BlockedHistogram(
            self.edges,
            np.add.reduceat(self.numerators, starts),
            np.add.reduceat(self.denominators, starts),
            np.add.reduceat(self.frames, starts),
        )

    def mae(self, reference: BlockedHistogram) -> float:
        """Mean absolute difference times the upper end of the range, as published for h(r) and g(r).

        For h(r) it is dimensionless (0 to 2), for g(r) in Å. Values for other ranges or bins are not comparable.

        Raises:
            ValueError: if the bins differ.
        """
        check_same_bins(self.edges, reference.edges)
        return mean_absolute_error(self.values(), reference.values(), upper=float(self.edges[-1]))


@dataclass(frozen=True, eq=False)
class NoiseFloor:
    """What `BlockedHistogram.mae` gives when nothing but sampling differs; same unit.

    Attributes:
        halves: between the first and the second half of the reference.
        mean: expected for a perfect model, by stretches of the reference as long as the rollouts.
        std: standard deviation of the same.
        upper_95: larger values have a probability of 5 %.
        n_blocks: blocks of the reference that were resampled; below about 10 the bootstrap is rough.
        band: half width of the band that 95 % of the differences in each bin keep within, unit of the curve.
    """

    halves: float
    mean: float
    std: float
    upper_95: float
    n_blocks: int
    band: Float[np.ndarray, " bins"]


def noise_floor(
    reference: BlockedHistogram,
    rng: np.random.Generator,
    *,
    lengths: Sequence[float] | None = None,
    repetitions: int = REPETITIONS,
) -> NoiseFloor | None:
    """Error that rollouts of a perfect model would show, from the reference alone.

    Two independent samples are put together from stretches of the reference (`resampling`), one as long as the
    reference, one with a stretch as long as each rollout, and compared. The reference should be longer than its
    correlations by far, or the floor comes out too low.

    Args:
        reference: curve of the reference in two blocks or more, none longer than a rollout if it can be.
        rng: source of random numbers.
        lengths: of each rollout, in blocks of the reference (by time); default: one, as long as the reference.
        repetitions: number of pairs of samples.

    Returns:
        None if most samples have nothing to normalise by.

    Raises:
        ValueError: if the reference has one block only, or a length is not positive.
    """
    n = reference.n_blocks
    if n < 2:
        raise ValueError("the reference has one block: a noise floor needs two or more, choose a larger `n_blocks`")
    drawn = resample(n, [float(n)] if lengths is None else lengths, rng, repetitions=repetitions)
    known = (drawn.rollouts @ reference.denominators > 0) & (drawn.reference @ reference.denominators > 0)
    if 2 * known.sum() < repetitions:
        return None
    upper = float(reference.edges[-1])
    difference = reference.values(drawn.rollouts[known]) - reference.values(drawn.reference[known])
    errors = upper * np.abs(difference).mean(axis=1)
    first = np.arange(n) < n // 2
    halves = mean_absolute_error(
        reference.values(first.astype(np.float64)), reference.values((~first).astype(np.float64)), upper=upper
    )
    return NoiseFloor(
        halves, float(errors.mean()), float(errors.std()), float(np.quantile(errors, 0.95)), n,
        np.asarray(1.96 * difference.std(axis=0)),
    )  # fmt: skip


def mean_absolute_error(
    values: Float[np.ndarray, " bins"], reference: Float[np.ndarray, " bins"], *, upper: float
) -> float:
    """`upper` times the mean over bins of the absolute difference."""
    return float(upper * np.abs(values - reference).mean())


def check_same_bins(edges: Float[np.ndarray, " edges"], other: Float[np.ndarray, " other_edges"]) -> None:
    """Refuse a comparison of different bins.

    Raises:
        ValueError: if they differ.
    """
    if edges.shape != other.shape or not np.allclose(edges, other, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"bins differ: {len(edges) - 1} up to {edges[-1]:g} against {len(other) - 1} up to {other[-1]:g}; "
            "use the same range and number of bins for both"
        )


def block_bounds(n_frames: int, n_blocks: int) -> Iterator[tuple[int, int]]:
    """Cut frames into blocks whose lengths differ by one at most; fewer blocks if there are not enough frames.

    Raises:
        ValueError: if there is no frame or no block.
    """
    if n_frames < 1 or n_blocks < 1:
        raise ValueError(f"cannot cut {n_frames} frames into {n_blocks} blocks: both must be 1 or more")
    bounds = np.linspace(0, n_frames, min(n_blocks, n_frames) + 1).round().astype(int).tolist()
    yield from pairwise(bounds)


def uniform_bin_index(
    values: Float[np.ndarray, "..."], lower: float, upper: float, n_bins: int
) -> Int[np.ndarray, "..."]:
    """Bin of each value for equal bins in [lower, upper); n_bins for whatever lies outside."""
    scaled = (values - lower) * (n_bins / (upper - lower))
    scaled[scaled < 0] = n_bins
    return np.asarray(np.minimum(scaled, n_bins, out=scaled).astype(np.intp))
