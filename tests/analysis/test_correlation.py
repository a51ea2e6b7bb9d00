"""FFT correlations against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.analysis.correlation import autocorrelation, mean_squared_displacement


def test_autocorrelation_is_its_definition(rng: np.random.Generator) -> None:
    series, weights = rng.normal(size=(50, 200)), rng.random(200)
    expected = [np.mean((series[: 50 - t] * series[t:]) @ weights) for t in range(20)]
    np.testing.assert_allclose(autocorrelation(series, weights=weights, max_lag=19), expected, atol=1e-10)


def test_displacement_is_its_definition(rng: np.random.Generator) -> None:
    positions = rng.normal(size=(40, 5, 3)).cumsum(axis=0) + 100.0
    expected = [np.mean(np.sum((positions[t:] - positions[: 40 - t]) ** 2, axis=-1)) for t in range(40)]
    np.testing.assert_allclose(mean_squared_displacement(positions), expected, rtol=1e-9, atol=1e-9)


def test_free_particle_moves_ballistically() -> None:
    velocity = np.array([[[0.3, -0.4, 1.2]]])
    positions = velocity * np.arange(100.0)[:, None, None]
    np.testing.assert_allclose(mean_squared_displacement(positions), 1.69 * np.arange(100.0) ** 2, rtol=1e-9, atol=1e-9)


def test_lag_beyond_the_series_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 0 \.\.\. 9 for 10 frames, got 10"):
        autocorrelation(np.zeros((10, 1)), max_lag=10)
