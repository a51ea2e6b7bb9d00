"""Kaplan-Meier against a textbook table and its own laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from e2former_calc.analysis.stability import Stability
from e2former_calc.analysis.survival import kaplan_meier, survival_of

# Remission times (weeks) of the 6-MP group of Freireich et al. (1963), as in every textbook.
TIMES = [float(week) for week in (6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35)]
FAILED = [True] * 3 + [False, True, False, True, False, False, True, True] + [False] * 3 + [True, True] + [False] * 5


def test_textbook_table() -> None:
    curve = kaplan_meier(TIMES, FAILED)
    assert curve.times_ps.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    np.testing.assert_allclose(curve.survival, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=6e-4)
    assert curve.median_ps == 23


def test_textbook_band() -> None:
    curve = kaplan_meier(TIMES, FAILED)
    np.testing.assert_allclose(curve.lower[[0, -1]], [0.620, 0.188], atol=1e-3)
    np.testing.assert_allclose(curve.upper[[0, -1]], [0.952, 0.680], atol=1e-3)


def test_without_censoring_it_is_the_share_that_is_left() -> None:
    curve = kaplan_meier([1.0, 2.0, 3.0, 4.0], [True] * 4)
    np.testing.assert_allclose(curve.survival, [0.75, 0.5, 0.25, 0.0], atol=1e-12)
    assert curve.restricted_mean_ps() == pytest.approx(2.5)


def test_band_contains_the_curve_and_stays_a_probability(rng: np.random.Generator) -> None:
    curve = kaplan_meier(rng.exponential(size=30), rng.random(30) < 0.7)
    assert (curve.lower <= curve.survival + 1e-12).all()
    assert (curve.survival <= curve.upper + 1e-12).all()
    assert curve.lower.min() >= 0
    assert curve.upper.max() <= 1


def test_band_covers_the_truth(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(200):
        times, limits = rng.exponential(size=40), rng.exponential(2.0, size=40)
        curve = kaplan_meier(np.minimum(times, limits), times <= limits)
        k = np.searchsorted(curve.times_ps, 0.7, side="right") - 1
        inside += curve.lower[k] <= np.exp(-0.7) <= curve.upper[k]
    assert 180 <= inside <= 199


def test_replicas_that_all_survive() -> None:
    curve = kaplan_meier([100.0] * 5, [False] * 5)
    assert len(curve.times_ps) == 0
    assert curve.median_ps is None
    assert curve.restricted_mean_ps() == pytest.approx(100.0)


def test_replicas_that_all_fail_at_once() -> None:
    curve = kaplan_meier([2.0] * 3, [True] * 3)
    assert curve.survival.tolist() == [0.0]
    assert (curve.lower[0], curve.upper[0]) == (0.0, 1.0)


def test_verdicts_become_a_curve() -> None:
    stable = Stability("bonds", None, None, 10.0, 100, 101, 101, 101, 100.0)
    broken = replace(stable, frame=31, reason="bond 2-3", stable_ps=3.0)
    curve = survival_of([stable, broken, stable, broken])
    assert curve.times_ps.tolist() == [3.0]
    np.testing.assert_allclose(curve.survival, [0.5])


@pytest.mark.parametrize(
    ("times", "failed", "message"),
    [([], [], "one time and one flag"), ([1.0], [True, False], "one time"), ([-1.0], [True], "not negative")],
)
def test_bad_input_is_refused(times: list[float], failed: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kaplan_meier(times, failed)


def test_level_is_checked() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95\.0"):
        kaplan_meier([1.0], [True], confidence=95.0)
