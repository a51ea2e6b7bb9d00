"""Free energies from samples whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.analysis.free_energy import (
    KT_KJ_PER_MOL_PER_K,
    compare_maps,
    profile_error,
    ramachandran_map,
    sum_hills,
    surface_profiles,
)
from e2former_calc.analysis.resampling import resample
from e2former_calc.analysis.statistics import jensen_shannon_divergence


def test_thermal_energy_at_300_kelvin() -> None:
    assert pytest.approx(2.4943, abs=1e-4) == 300 * KT_KJ_PER_MOL_PER_K


def test_profiles_of_a_sampled_map(rng: np.random.Generator) -> None:
    phi, psi = 20.0 * rng.normal(size=(2, 200_000))
    profile, _ = ramachandran_map(phi, psi).profiles_kJ_per_mol(300.0)
    x = np.linspace(-177, 177, 60)
    near = np.abs(x) < 50
    expected = 0.5 * (x[near] / 20.0) ** 2 * 2.4943
    np.testing.assert_allclose(profile[near] - profile.min(), expected - expected.min(), atol=0.35)


def test_empty_bins_are_infinitely_high(rng: np.random.Generator) -> None:
    surface = ramachandran_map(10 * rng.normal(size=500), 10 * rng.normal(size=500)).free_energy_kJ_per_mol(300.0)
    assert np.isinf(surface[0, 0])
    assert np.nanmin(surface) == 0.0


def test_angles_beyond_half_a_turn_are_wrapped() -> None:
    first, second = (ramachandran_map(np.array([angle]), np.zeros(1)).probability for angle in (-170.0, 190.0))
    np.testing.assert_array_equal(first, second)


def test_profiles_of_a_sum_are_its_parts() -> None:
    x = np.linspace(-3, 3, 61)
    surface = 4.0 * (1 - np.cos(x))[None, :] + 7.0 * (1 - np.cos(2 * x))[:, None]
    along_phi, along_psi = surface_profiles(surface, 2.49)
    np.testing.assert_allclose(along_phi, 4.0 * (1 - np.cos(x)), atol=1e-9)
    np.testing.assert_allclose(along_psi, 7.0 * (1 - np.cos(2 * x)), atol=1e-9)


def test_error_of_a_profile_is_scaled_as_published() -> None:
    assert profile_error(np.full(60, 2.0), np.zeros(60)) == pytest.approx(12.56)


def test_one_hill_is_a_periodic_well() -> None:
    surface = sum_hills(np.array([[np.pi, 0.0]]), np.array([[0.4, 0.4]]), np.array([3.0]))
    assert np.unravel_index(np.argmin(surface), surface.shape) == (30, 0)
    np.testing.assert_allclose(surface[:, 1], surface[:, -1], atol=1e-12)
    assert surface.max() == pytest.approx(3.0)


def test_equal_maps_differ_by_noise(rng: np.random.Generator) -> None:
    rollout, reference = ((30 * rng.normal(size=4000), 20 * rng.normal(size=4000)) for _ in range(2))
    found = compare_maps(rollout, reference)
    assert found.divergence < 1.2 * found.noise
    assert 0 < found.error < found.noise


def test_other_basin_stands_out(rng: np.random.Generator) -> None:
    phi, psi = 10 * rng.normal(size=(2, 3000))
    assert compare_maps((phi, psi + 120.0), (phi, psi)).divergence == pytest.approx(1.0)


def test_noise_of_a_map_is_higher_for_shorter_rollouts(rng: np.random.Generator) -> None:
    phi, psi = 40.0 * rng.normal(size=(2, 3000))
    long, short = (
        compare_maps((phi, psi), (phi, psi), resampling=resample(1000, [length], rng, repetitions=40)).noise
        for length in (900.0, 9.0)
    )
    assert short.mean() > 4 * long.mean()


def test_noise_of_a_map_counts_frames_in_their_bins(rng: np.random.Generator) -> None:
    phi, psi = 40.0 * rng.normal(size=(2, 401))
    found = compare_maps((phi, psi), (phi, psi), n_bins=12).noise
    first, second = (
        ramachandran_map(p[0], p[1], n_bins=12).probability for p in ((phi[:201], psi[:201]), (phi[201:], psi[201:]))
    )
    assert found == pytest.approx([jensen_shannon_divergence(first, second)])


def test_hills_need_a_width() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        sum_hills(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1))


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(ValueError, match="one phi and one psi"):
        ramachandran_map(np.zeros(0), np.zeros(0))
