"""Error bars of series whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from e2former_calc.analysis.resampling import resample
from e2former_calc.analysis.statistics import (
    block_error,
    bootstrap_errors,
    decorrelated,
    distribution_distance,
    jensen_shannon_divergence,
    mean_with_error,
    statistical_inefficiency,
)


def correlated(rng: np.random.Generator, memory: float, n: int = 20_000) -> np.ndarray:
    """Autoregressive series of unit variance; its inefficiency is (1 + memory) / (1 - memory)."""
    noise = rng.normal(size=n) * np.sqrt(1 - memory**2)
    series = np.empty(n)
    series[0] = rng.normal()
    for k in range(1, n):
        series[k] = memory * series[k - 1] + noise[k]
    return series


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_inefficiency_of_an_autoregressive_series(rng: np.random.Generator, memory: float) -> None:
    expected = (1 + memory) / (1 - memory)
    assert statistical_inefficiency(correlated(rng, memory)) == pytest.approx(expected, rel=0.25)


def test_error_of_a_correlated_mean(rng: np.random.Generator) -> None:
    means = [correlated(rng, 0.9, 2000).mean() for _ in range(60)]
    estimate = mean_with_error(correlated(rng, 0.9, 2000))
    assert estimate.error == pytest.approx(np.std(means), rel=0.45)


def test_constant_series_has_no_error() -> None:
    estimate = mean_with_error(np.full(50, 3.0))
    assert (estimate.value, estimate.error) == (3.0, 0.0)


def test_decorrelated_samples_are(rng: np.random.Generator) -> None:
    thin = decorrelated(correlated(rng, 0.9))
    assert statistical_inefficiency(thin) < 1.5


def test_block_error_is_that_of_independent_values(rng: np.random.Generator) -> None:
    assert block_error(rng.normal(size=400)).error == pytest.approx(0.05, rel=0.15)


def test_one_block_has_no_error() -> None:
    assert np.isnan(block_error(np.ones(1)).error)


def test_bootstrap_errors_of_normal_samples(rng: np.random.Generator) -> None:
    mean, width = bootstrap_errors(rng.normal(size=500), rng, repetitions=400)
    assert mean == pytest.approx(1 / np.sqrt(500), rel=0.2)
    assert width == pytest.approx(1 / np.sqrt(1000), rel=0.2)


def test_distance_of_a_shifted_distribution(rng: np.random.Generator) -> None:
    reference = rng.normal(size=4000)
    found = distribution_distance(reference + 0.5, reference)
    assert found.wasserstein == pytest.approx(0.5)
    assert found.noise_wasserstein < 0.1
    assert found.ks_statistic == pytest.approx(scipy.stats.ks_2samp(reference + 0.5, reference).statistic)


def test_noise_is_the_distance_of_the_samples_that_were_drawn(rng: np.random.Generator) -> None:
    reference = rng.normal(size=60).round(1)
    drawn = resample(60, [7.0, 4.0], rng, repetitions=5)
    expected = [
        scipy.stats.wasserstein_distance(reference, reference, first, second)
        for first, second in zip(drawn.rollouts, drawn.reference, strict=True)
    ]
    np.testing.assert_allclose(distribution_distance(reference, reference, drawn).noise, expected, atol=1e-12)


def test_noise_of_the_halves_is_their_distance(rng: np.random.Generator) -> None:
    reference = rng.normal(size=101)
    found = distribution_distance(reference, reference)
    first, second = reference[:50], reference[50:]
    assert found.noise_wasserstein == pytest.approx(scipy.stats.wasserstein_distance(first, second))
    assert found.noise_ks == pytest.approx(scipy.stats.ks_2samp(first, second).statistic)


def test_a_resampling_of_other_samples_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="is of 30 samples, the reference has 40"):
        distribution_distance(np.zeros(4), np.zeros(40), resample(30, [4.0], rng))


def test_jensen_shannon_divergence_has_its_limits() -> None:
    left, right = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [2.0, 2.0]])
    assert jensen_shannon_divergence(left, right) == pytest.approx(1.0)
    assert jensen_shannon_divergence(left, 5 * left) == pytest.approx(0.0)


@pytest.mark.parametrize("length", [0, 1])
def test_too_few_samples_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="two"):
        mean_with_error(np.zeros(length))
