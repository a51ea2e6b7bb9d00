"""Survival of replicas: the Kaplan-Meier estimate with its confidence band.

>>> curve = kaplan_meier([6, 6, 6, 6, 7, 9, 10], [True, True, True, False, True, False, True])
>>> curve.times_ps.tolist(), [round(p, 4) for p in curve.survival.tolist()]
([6.0, 7.0, 10.0], [0.5714, 0.381, 0.0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import CensoredData, ecdf, norm

from e2former_calc.analysis.stability import Stability


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """Probability that a rollout is still stable, a step function that falls at `times_ps`.

    Attributes:
        times_ps: times at which replicas failed.
        survival: probability just after each of them; 1 before the first.
        lower: lower end of the pointwise confidence band.
        upper: upper end.
        at_risk: replicas still observed just before each time.
        failures: replicas that failed at each time.
        n_replicas: all replicas.
        last_ps: end of the longest observation; nothing is known beyond it.
        confidence: level of the band.
    """

    times_ps: Float[np.ndarray, " times"]
    survival: Float[np.ndarray, " times"]
    lower: Float[np.ndarray, " times"]
    upper: Float[np.ndarray, " times"]
    at_risk: Int[np.ndarray, " times"]
    failures: Int[np.ndarray, " times"]
    n_replicas: int
    last_ps: float
    confidence: float

    @property
    def median_ps(self) -> float | None:
        """Time at which half of the replicas have failed; None if more than half survive."""
        below = self.survival <= 0.5
        return float(self.times_ps[np.argmax(below)]) if below.any() else None

    def restricted_mean_ps(self) -> float:
        """Mean stable time within the observation, the area under the curve up to `last_ps`."""
        inside = self.times_ps <= self.last_ps
        edges = np.concatenate([[0.0], self.times_ps[inside], [self.last_ps]])
        heights = np.concatenate([[1.0], self.survival[inside]])
        return float(np.sum(np.diff(edges) * heights))


def kaplan_meier(
    times_ps: Sequence[float] | Float[np.ndarray, " replicas"],
    failed: Sequence[bool] | Bool[np.ndarray, " replicas"],
    *,
    confidence: float = 0.95,
) -> SurvivalCurve:
    """Kaplan-Meier estimate from the time of failure, or of the end of observation, of each replica.

    The band is pointwise, by Greenwood's formula for log(-log S), so it stays within 0 and 1. At times when all have
    failed it is not defined; there the upper end of the step before holds and the lower end is 0.

    Args:
        times_ps: one time for each replica.
        failed: True for a failure, False for a replica that was stable to the end of its observation.
        confidence: level of the band.

    Raises:
        ValueError: for no replica, lengths that differ, negative or infinite times, or a level outside (0, 1).
    """
    times, observed = np.asarray(times_ps, dtype=np.float64), np.asarray(failed, dtype=bool)
    if times.ndim != 1 or times.shape != observed.shape or not len(times):
        raise ValueError(f"one time and one flag for each replica are needed, got {times.shape} and {observed.shape}")
    if not np.isfinite(times).all() or (times < 0).any():
        raise ValueError(f"times must be finite and not negative, got {times.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}")
    estimate = ecdf(CensoredData.right_censored(times, ~observed)).sf
    steps, failures = np.unique(times[observed], return_counts=True)
    at_risk = (times[None, :] >= steps[:, None]).sum(axis=1)
    survival = np.asarray(estimate.evaluate(steps), dtype=np.float64)
    lower, upper = _log_log_band(survival, at_risk, failures, confidence)
    return SurvivalCurve(steps, survival, lower, upper, at_risk, failures, len(times), float(times.max()), confidence)


def survival_of(verdicts: Sequence[Stability], *, confidence: float = 0.95) -> SurvivalCurve:
    """Survival curve of replicas from their verdicts; complete stable rollouts are censored at their length.

    Raises:
        ValueError: if there is no verdict.
    """
    return kaplan_meier(
        [verdict.stable_ps for verdict in verdicts],
        [not verdict.survived for verdict in verdicts],
        confidence=confidence,
    )


def _log_log_band(
    survival: Float[np.ndarray, " times"],
    at_risk: Int[np.ndarray, " times"],
    failures: Int[np.ndarray, " times"],
    confidence: float,
) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
    inside = (survival > 0) & (survival < 1)
    lower, upper = np.zeros_like(survival), np.ones_like(survival)
    left = np.maximum(at_risk - failures, 1)
    greenwood = np.cumsum(failures / (at_risk * left))
    log_survival = np.log(survival[inside])
    width = norm.ppf(0.5 + 0.5 * confidence) * np.sqrt(greenwood[inside]) / np.abs(log_survival)
    lower[inside], upper[inside] = survival[inside] ** np.exp(width), survival[inside] ** np.exp(-width)
    for step in np.flatnonzero(survival == 0):
        upper[step] = upper[step - 1] if step else 1.0
    return lower, upper
