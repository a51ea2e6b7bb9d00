"""Stand-ins for rollouts, drawn from the reference."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.analysis.resampling import MAX_BLOCKS, block_count, resample


@pytest.mark.parametrize(
    ("lengths", "total"), [([3.0], 3), ([3.2, 4.6], 8), ([250.0], 250), ([0.2], 1), ([0.2, 2.0], 2)]
)
def test_stand_ins_are_as_long_as_the_rollouts(lengths: list[float], total: int, rng: np.random.Generator) -> None:
    drawn = resample(100, lengths, rng, repetitions=20)
    assert (drawn.rollouts.sum(axis=1) == total).all()
    assert (drawn.reference.sum(axis=1) == 100).all()


def test_each_rollout_is_one_stretch(rng: np.random.Generator) -> None:
    for counts in resample(100, [7.0], rng, repetitions=50).rollouts:
        ends = np.flatnonzero(np.diff(np.append(counts, counts[0])))
        assert len(ends) == 2
        assert counts.max() == 1


def test_every_unit_is_drawn_equally_often(rng: np.random.Generator) -> None:
    counts = resample(40, [3.0, 5.0], rng, repetitions=4000).rollouts.mean(axis=0)
    np.testing.assert_allclose(counts, 8 / 40, rtol=5 * np.sqrt(40 / 8 / 4000))


def test_a_mean_scatters_as_much_as_that_of_correlated_rollouts(rng: np.random.Generator) -> None:
    noise = rng.normal(size=20_000)
    series = np.convolve(noise, np.ones(50) / np.sqrt(50), mode="valid")
    rollouts = series[: 20 * (len(series) // 20)].reshape(-1, 20).mean(axis=1)
    drawn = resample(len(series), [20.0], rng, repetitions=400).rollouts
    assert (drawn @ series / 20).std() == pytest.approx(rollouts.std(), rel=0.15)


def test_weights_differ_by_nothing_in_all(rng: np.random.Generator) -> None:
    np.testing.assert_allclose(resample(30, [4.0], rng).differences.sum(axis=1), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("shares", "count"), [([0.5], 10), ([2.0, 3.0], 10), ([0.02, 0.02], 50), ([1e-6], MAX_BLOCKS), ([0.0], 10)]
)  # fmt: skip
def test_blocks_are_as_long_as_a_rollout(shares: list[float], count: int) -> None:
    assert block_count(shares, 10) == count


@pytest.mark.parametrize(
    ("units", "lengths", "message"), [(1, [1.0], "two or more"), (9, [], "must be positive"), (9, [0.0], "positive")]
)
def test_nothing_to_draw_from_is_refused(
    units: int, lengths: list[float], message: str, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match=message):
        resample(units, lengths, rng)
