"""Tests of ensembles pass for the right ensemble and fail for wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.analysis.constants import BOLTZMANN_EV_PER_K
from e2former_calc.analysis.ensembles import (
    configurational_temperature,
    ensemble_check,
    hutchinson_laplacian,
    kinetic_energy_test,
)

KT = BOLTZMANN_EV_PER_K * 300.0


def test_canonical_kinetic_energy_passes(rng: np.random.Generator) -> None:
    result = kinetic_energy_test(rng.gamma(13.5, KT, size=2000), 27, 300.0, rng)
    assert result.deviation_mean < 3.5
    assert result.deviation_width < 3.5
    assert result.ks_p_value > 1e-3


def test_wrong_temperature_fails(rng: np.random.Generator) -> None:
    result = kinetic_energy_test(rng.gamma(13.5, 1.1 * KT, size=2000), 27, 300.0, rng)
    assert result.T_mean_K == pytest.approx(330.0, rel=0.03)
    assert result.deviation_mean > 5
    assert result.ks_p_value < 1e-4


def test_berendsen_passes_the_mean_and_fails_the_width(rng: np.random.Generator) -> None:
    canonical = rng.gamma(13.5, KT, size=2000)
    narrow = 13.5 * KT + 0.5 * (canonical - canonical.mean())
    result = kinetic_energy_test(narrow, 27, 300.0, rng)
    assert result.deviation_mean < 1
    assert result.deviation_width > 10


def test_two_canonical_runs_agree(rng: np.random.Generator) -> None:
    first, second = (rng.gamma(20.0, BOLTZMANN_EV_PER_K * T, size=3000) for T in (300.0, 330.0))
    result = ensemble_check((first, second), (300.0, 330.0), rng)
    expected = (1 / 300.0 - 1 / 330.0) / BOLTZMANN_EV_PER_K
    assert result.expected_slope_per_eV == pytest.approx(expected)
    assert result.deviation < 3.5


def test_wrong_pair_of_temperatures_fails(rng: np.random.Generator) -> None:
    first, second = (rng.gamma(20.0, BOLTZMANN_EV_PER_K * T, size=3000) for T in (300.0, 330.0))
    assert ensemble_check((first, second), (300.0, 380.0), rng).deviation > 5


def test_energies_without_overlap_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="do not overlap"):
        ensemble_check((rng.random(10), 5.0 + rng.random(10)), (300.0, 900.0), rng)


def test_configurational_temperature_of_an_oscillator(rng: np.random.Generator) -> None:
    stiffness = np.array([3.0, 5.0, 9.0])
    positions = rng.normal(size=(4000, 4, 3)) * np.sqrt(KT / stiffness)
    result = configurational_temperature(-stiffness * positions, np.full(4000, 4 * stiffness.sum()))
    assert result.value == pytest.approx(300.0, abs=4 * result.error)
    assert result.error < 10.0


def test_laplacian_of_a_harmonic_potential(rng: np.random.Generator) -> None:
    stiffness = np.array([3.0, 5.0, 9.0])
    found = hutchinson_laplacian(lambda x: -stiffness * x, rng.normal(size=(4, 3)), rng)
    assert found == pytest.approx(4 * stiffness.sum())


def test_negative_curvature_is_refused() -> None:
    with pytest.raises(ValueError, match="a positive mean"):
        configurational_temperature(np.ones((3, 2, 3)), -np.ones(3))


@pytest.mark.parametrize(("degrees", "temperature_K"), [(0, 300.0), (3, 0.0)])
def test_no_ensemble_is_refused(degrees: int, temperature_K: float, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="no ensemble"):
        kinetic_energy_test(np.ones(10), degrees, temperature_K, rng)
