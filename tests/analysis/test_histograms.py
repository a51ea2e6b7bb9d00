"""Blocks of a histogram add up to the whole, and noise floors are what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.analysis.histograms import BlockedHistogram, block_bounds, noise_floor


def sampled(rng: np.random.Generator, *, blocks: int = 20, samples: int = 400, shift: float = 0.0) -> BlockedHistogram:
    """Histogram of independent normal numbers."""
    edges = np.linspace(0.0, 10.0, 51)
    counts = np.array([np.histogram(rng.normal(5.0 + shift, 1.0, samples), edges)[0] for _ in range(blocks)])
    return BlockedHistogram(edges, counts / 0.2, counts.sum(axis=1).astype(float), np.full(blocks, samples))


def test_whole_is_the_weighted_mean_of_halves(rng: np.random.Generator) -> None:
    curve = sampled(rng)
    first = np.arange(20) < 10
    halves = curve.values(np.stack([first, ~first]).astype(float))
    np.testing.assert_allclose(halves.mean(axis=0), curve.values(), atol=1e-3)


def test_a_curve_does_not_differ_from_itself(rng: np.random.Generator) -> None:
    curve = sampled(rng)
    assert curve.mae(curve) == 0.0


def test_errors_are_those_of_counting(rng: np.random.Generator) -> None:
    curve = sampled(rng, blocks=200)
    middle = int(np.argmax(curve.values()))
    share = curve.values()[middle] * 0.2
    expected = np.sqrt(share * (1 - share) / (200 * 400)) / 0.2
    assert curve.errors()[middle] == pytest.approx(expected, rel=0.25)


def test_one_block_has_no_error(rng: np.random.Generator) -> None:
    assert np.isnan(sampled(rng, blocks=1).errors()).all()


def test_floor_is_the_error_between_independent_samples(rng: np.random.Generator) -> None:
    reference = sampled(rng)
    errors = [sampled(rng).mae(sampled(rng)) for _ in range(40)]
    floor = noise_floor(reference, rng)
    assert floor.mean == pytest.approx(np.mean(errors), rel=0.2)
    assert floor.upper_95 < 1.6 * np.max(errors)


def test_floor_of_a_shorter_rollout_is_higher(rng: np.random.Generator) -> None:
    reference = sampled(rng)
    assert noise_floor(reference, rng, lengths=[2.0]).mean > 1.5 * noise_floor(reference, rng).mean


def test_band_holds_most_differences(rng: np.random.Generator) -> None:
    reference = sampled(rng, blocks=40)
    floor = noise_floor(reference, rng, lengths=[2.0])
    assert floor is not None
    outside = [
        np.abs(sampled(rng, blocks=2).values() - sampled(rng, blocks=40).values()) > floor.band for _ in range(40)
    ]
    seen = reference.values() > 0.02
    assert np.mean(np.array(outside)[:, seen]) == pytest.approx(0.05, abs=0.04)


def test_floor_needs_samples_with_something_in_them(rng: np.random.Generator) -> None:
    curve = sampled(rng)
    empty = np.where(np.arange(20) == 3, curve.denominators, 0.0)
    assert noise_floor(BlockedHistogram(curve.edges, curve.numerators, empty, curve.frames), rng, lengths=[1.0]) is None


@pytest.mark.parametrize(("n_blocks", "expected"), [(5, 5), (20, 20), (30, 20), (7, 10), (1, 1)])
def test_merged_blocks_are_the_same_curve(n_blocks: int, expected: int, rng: np.random.Generator) -> None:
    curve = sampled(rng)
    merged = curve.merged(n_blocks)
    assert merged.n_blocks == expected
    assert (merged.frames.sum(), merged.mae(curve)) == (curve.frames.sum(), pytest.approx(0.0, abs=1e-12))


def test_other_physics_is_above_the_floor(rng: np.random.Generator) -> None:
    reference = sampled(rng)
    assert sampled(rng, shift=0.3).mae(reference) > 3 * noise_floor(reference, rng).upper_95


def test_floor_needs_blocks(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="has one block"):
        noise_floor(sampled(rng, blocks=1), rng)


def test_different_bins_are_refused(rng: np.random.Generator) -> None:
    curve = sampled(rng)
    other = BlockedHistogram(curve.edges * 1.5, curve.numerators, curve.denominators, curve.frames)
    with pytest.raises(ValueError, match="50 up to 10 against 50 up to 15"):
        curve.mae(other)


@pytest.mark.parametrize(("frames", "blocks"), [(10, 3), (3, 10), (1, 1)])
def test_blocks_cover_every_frame(frames: int, blocks: int) -> None:
    bounds = list(block_bounds(frames, blocks))
    lengths = [last - first for first, last in bounds]
    assert sum(lengths) == frames
    assert len(bounds) == min(frames, blocks)
    assert max(lengths) - min(lengths) <= 1
