"""Error bars of correlated series, and distances between one-dimensional distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float

from e2former_calc.analysis.correlation import autocorrelation
from e2former_calc.analysis.resampling import Resampling


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes:
        value: in the unit of the series.
        error: standard error of `value`; NaN if it cannot be estimated.
        n_independent: effective number of independent samples behind it.
    """

    value: float
    error: float
    n_independent: float


@dataclass(frozen=True, eq=False)
class DistributionDistance:
    """How far two samples are apart.

    Attributes:
        wasserstein: W1 in the unit of the samples.
        ks_statistic: Kolmogorov-Smirnov statistic, 0 to 1.
        noise: W1 of pairs of samples that were drawn from the reference; one number if these are its two halves.
        noise_ks: mean Kolmogorov-Smirnov statistic of the same.
    """

    wasserstein: float
    ks_statistic: float
    noise: Float[np.ndarray, " repetitions"]
    noise_ks: float

    @property
    def noise_wasserstein(self) -> float:
        """Mean W1 if nothing but sampling differs."""
        return float(self.noise.mean())


def statistical_inefficiency(series: Float[np.ndarray, " frames"]) -> float:
    """Number of consecutive samples that count as one independent sample, at least 1.

    1 + 2 times the integrated autocorrelation, cut by the window of Sokal (first lag beyond 5 inefficiencies / 2).

    Raises:
        ValueError: for fewer than two samples.
    """
    if len(series) < 2:
        raise ValueError(f"`series` needs two samples or more, got {len(series)}")
    if np.ptp(series) == 0.0:
        return 1.0
    correlation = autocorrelation(np.asarray(series - series.mean(), dtype=np.float64)[:, None])
    running = 1.0 + 2.0 * np.cumsum(correlation[1:] / correlation[0])
    inside = np.arange(1, len(running) + 1) >= 2.5 * running
    window = int(np.argmax(inside)) if inside.any() else len(running) - 1
    return float(max(1.0, running[window]))


def mean_with_error(series: Float[np.ndarray, " frames"]) -> Estimate:
    """Mean of a correlated series with its standard error.

    Raises:
        ValueError: for fewer than two samples.
    """
    effective = len(series) / statistical_inefficiency(series)
    error = float(np.std(series, ddof=1) / np.sqrt(effective))
    return Estimate(float(np.mean(series)), error, effective)


def block_error(block_values: Float[np.ndarray, " blocks"]) -> Estimate:
    """Mean of the values of independent blocks with its standard error.

    Raises:
        ValueError: if there is no block.
    """
    if not len(block_values):
        raise ValueError("`block_values` is empty: give the value of each block")
    error = float(np.std(block_values, ddof=1) / np.sqrt(len(block_values))) if len(block_values) > 1 else float("nan")
    return Estimate(float(np.mean(block_values)), error, float(len(block_values)))


def bootstrap_errors(
    samples: Float[np.ndarray, " samples"], rng: np.random.Generator, *, repetitions: int = 200
) -> tuple[float, float]:
    """Standard errors of the mean and of the standard deviation of independent samples, by bootstrap.

    Raises:
        ValueError: for fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"`samples` needs two values or more, got {len(samples)}")
    drawn = samples[rng.integers(len(samples), size=(repetitions, len(samples)))]
    return float(drawn.mean(axis=1).std()), float(drawn.std(axis=1).std())


def decorrelated(series: Float[np.ndarray, " frames"]) -> Float[np.ndarray, " samples"]:
    """Every n-th sample, n being the statistical inefficiency rounded up.

    Raises:
        ValueError: for fewer than two samples.
    """
    return series[:: int(np.ceil(statistical_inefficiency(series)))]


def distribution_distance(
    samples: Float[np.ndarray, " samples"],
    reference: Float[np.ndarray, " reference_samples"],
    resampling: Resampling | None = None,
) -> DistributionDistance:
    """Wasserstein-1 and Kolmogorov-Smirnov distance, beside those that sampling alone makes.

    Args:
        samples: of the rollouts.
        reference: in the order of time.
        resampling: of the samples of the reference, for the noise; None: its two halves.

    Raises:
        ValueError: for an empty sample, fewer than two samples of the reference, or a resampling of other samples.
    """
    if not len(samples) or len(reference) < 2:
        raise ValueError(f"too few samples: {len(samples)} against {len(reference)}; needed are 1 and 2 or more")
    if resampling is None:
        first = np.arange(len(reference)) < len(reference) // 2
        differences = (first / first.sum() - ~first / (~first).sum())[None]
    else:
        differences = resampling.differences
    if differences.shape[1] != len(reference):
        raise ValueError(f"the resampling is of {differences.shape[1]} samples, the reference has {len(reference)}")
    noise, noise_ks = _weighted_distances(reference, differences)
    return DistributionDistance(
        wasserstein=float(scipy.stats.wasserstein_distance(samples, reference)),
        ks_statistic=_ks_statistic(samples, reference),
        noise=noise,
        noise_ks=float(noise_ks.mean()),
    )


def _weighted_distances(
    values: Float[np.ndarray, " samples"], differences: Float[np.ndarray, "repetitions samples"]
) -> tuple[Float[np.ndarray, " repetitions"], Float[np.ndarray, " repetitions"]]:
    """W1 and Kolmogorov-Smirnov statistic of two sets of weights on the same values, from their difference.

    Both follow from the difference of the cumulative distributions: W1 is its integral, KS its largest value; equal
    values make one step.
    """
    order = np.argsort(values)
    gaps = np.diff(values[order])
    steps = np.cumsum(differences[:, order], axis=1)[:, :-1]
    heights = np.abs(steps)
    return heights @ gaps, (heights * (gaps > 0)).max(axis=1, initial=0.0)


def jensen_shannon_divergence(p: Float[np.ndarray, "*bins"], q: Float[np.ndarray, "*bins"]) -> float:
    """Jensen-Shannon divergence (base 2, from 0 to 1) of two histograms, which need not be normalised.

    Raises:
        ValueError: if shapes differ or a histogram is empty.
    """
    if p.shape != q.shape or p.sum() <= 0 or q.sum() <= 0:
        raise ValueError(f"histograms of shapes {p.shape} and {q.shape} must be alike and not empty")
    first, second = p.ravel() / p.sum(), q.ravel() / q.sum()
    middle = 0.5 * (first + second)
    return float(0.5 * (scipy.stats.entropy(first, middle, base=2) + scipy.stats.entropy(second, middle, base=2)))


def _ks_statistic(first: Float[np.ndarray, " a"], second: Float[np.ndarray, " b"]) -> float:
    values = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())
