"""What rollouts of a perfect model could have looked like: stretches of the reference, drawn at random.

A circular moving-block bootstrap (Politis and Romano, 1992): as many stretches as there are rollouts, each as long as
one of them, so that what is correlated in a rollout is correlated in its stand-in, too.

>>> import numpy as np
>>> drawn = resample(50, [2.0, 3.0], np.random.default_rng(0), repetitions=4)
>>> drawn.rollouts.sum(axis=1).tolist(), drawn.reference.sum(axis=1).tolist()
([5.0, 5.0, 5.0, 5.0], [50.0, 50.0, 50.0, 50.0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float, Int

REPETITIONS: Final = 200
STRETCHES: Final = 5
"""A stretch is no longer than one in so many parts of the reference; more are put together."""

MAX_BLOCKS: Final = 500
"""Blocks that a histogram of the reference is kept in, at most."""


@dataclass(frozen=True, eq=False)
class Resampling:
    """How often each unit (frame or block of frames) of the reference counts in samples drawn from it.

    Attributes:
        rollouts: in stand-ins for the rollouts.
        reference: in stand-ins for the reference, independent of the former.
    """

    rollouts: Float[np.ndarray, "repetitions units"]
    reference: Float[np.ndarray, "repetitions units"]

    @property
    def repetitions(self) -> int:
        """Number of pairs of samples."""
        return len(self.rollouts)

    @cached_property
    def differences(self) -> Float[np.ndarray, "repetitions units"]:
        """Weight of each unit in the rollouts less that in the reference; each row sums to 0."""
        return np.asarray(
            self.rollouts / self.rollouts.sum(axis=1, keepdims=True)
            - self.reference / self.reference.sum(axis=1, keepdims=True)
        )


def resample(
    n_units: int, lengths: Sequence[float], rng: np.random.Generator, *, repetitions: int = REPETITIONS
) -> Resampling:
    """Draw stand-ins for rollouts and for the reference.

    Args:
        n_units: units of the reference, consecutive in time.
        lengths: of each rollout, in units of the reference; what is shorter than half a unit is left out.
        rng: source of random numbers.
        repetitions: pairs of samples.

    Raises:
        ValueError: if the reference has fewer than two units, or a length is not positive.
    """
    if n_units < 2:
        raise ValueError(f"the reference has {n_units} unit: a noise floor needs two or more")
    if not lengths or min(lengths) <= 0:
        raise ValueError(f"`lengths` must be positive, got {list(lengths)}")
    longest = max(1, n_units // STRETCHES)
    return Resampling(
        _drawn(n_units, _stretches(lengths, longest), rng, repetitions),
        _drawn(n_units, _stretches([n_units], longest), rng, repetitions),
    )


def block_count(shares: Sequence[float], least: int) -> int:
    """Blocks of the reference such that one is about as long as a rollout, within bounds.

    Args:
        shares: length of each rollout over that of the reference.
        least: more if rollouts are shorter than that part of the reference, up to `MAX_BLOCKS`.
    """
    mean = float(np.mean(shares))
    return max(least, min(MAX_BLOCKS, round(1.0 / mean))) if mean > 0 else least


def _stretches(lengths: Sequence[float], longest: int) -> Int[np.ndarray, " stretches"]:
    found: list[int] = []
    for length in lengths:
        whole, rest = divmod(round(length), longest)
        found += [longest] * whole + [rest] * bool(rest)
    return np.array(found or [1])


def _drawn(
    n_units: int, stretches: Int[np.ndarray, " stretches"], rng: np.random.Generator, repetitions: int
) -> Float[np.ndarray, "repetitions units"]:
    """Each stretch begins anywhere; beyond the last unit it goes on with the first."""
    starts = rng.integers(n_units, size=(repetitions, len(stretches)))
    steps = np.zeros((repetitions, 2 * n_units + 1), dtype=np.int32)
    rows = np.arange(repetitions)[:, None]
    np.add.at(steps, (rows, starts), 1)
    np.add.at(steps, (rows, starts + stretches), -1)
    counts = steps.cumsum(axis=1)
    return np.asarray(counts[:, :n_units] + counts[:, n_units : 2 * n_units], dtype=np.float64)
