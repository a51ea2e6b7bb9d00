"""Motion whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from e2former_calc.analysis.constants import LIGHT_CM_PER_FS
from e2former_calc.analysis.dynamics import (
    diffusion,
    finite_size_correction_A2_per_ps,
    green_kubo_diffusion,
    mdsim_diffusion,
    remove_center,
    unwrap,
    velocity_autocorrelation,
    verlet_wavenumber_cm1,
    vibrational_spectrum,
)
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

SKEWED = np.array([[9.0, 0.0, 0.0], [4.0, 8.0, 0.0], [-1.0, 3.5, 10.0]])


@pytest.fixture
def walk(rng: np.random.Generator) -> Trajectory:
    """Random walk with D = 0.05 Å^2/frame, frames 100 fs apart: D = 0.5 Å^2/ps."""
    steps = np.sqrt(2 * 0.05) * rng.normal(size=(1500, 60, 3))
    return Trajectory(steps.cumsum(axis=0), np.full(60, 3), times_fs=100.0 * np.arange(1500))


def oscillator(wavenumber_cm1: float, *, frames: int = 4000, spacing_fs: float = 1.0) -> Trajectory:
    times = spacing_fs * np.arange(frames)
    velocity = np.cos(2 * np.pi * LIGHT_CM_PER_FS * wavenumber_cm1 * times)
    velocities = velocity[:, None, None] * np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    return Trajectory(np.zeros((frames, 2, 3)), np.array([1, 1]), times_fs=times, velocities=velocities)


@pytest.mark.parametrize("cell", [9.0 * np.eye(3), SKEWED], ids=["cube", "skewed"])
def test_unwrapping_undoes_wrapping(walk: Trajectory, cell: np.ndarray) -> None:
    short = walk.read(0, 300)
    wrapped = (short.positions @ np.linalg.inv(cell)) % 1.0 @ cell
    found = unwrap(replace(short, positions=wrapped, cell=cell, pbc=np.ones(3, dtype=bool)))
    np.testing.assert_allclose(found.positions - wrapped[0], short.positions - short.positions[0], atol=1e-9)


def test_open_boundaries_need_no_unwrapping(walk: Trajectory) -> None:
    assert unwrap(walk) is walk


def test_diffusion_of_a_random_walk(walk: Trajectory) -> None:
    result = diffusion(walk, np.arange(60), fit_window_ps=(0.5, 3.0))
    assert result.D_A2_per_ps == pytest.approx(0.5, abs=4 * result.error_A2_per_ps)
    assert result.error_A2_per_ps < 0.05
    assert result.exponent == pytest.approx(1.0, abs=0.05)
    assert result.D_1e9_m2_per_s == pytest.approx(10 * result.D_A2_per_ps)


def test_common_drift_is_no_diffusion(walk: Trajectory) -> None:
    drifting = replace(walk, positions=walk.positions + 0.1 * np.arange(1500)[:, None, None])
    window = (0.5, 3.0)
    first, second = (diffusion(source, np.arange(60), fit_window_ps=window) for source in (walk, drifting))
    assert first.D_A2_per_ps == pytest.approx(second.D_A2_per_ps, rel=1e-6)


def test_short_trajectory_has_one_block_and_no_error(walk: Trajectory) -> None:
    result = diffusion(walk.read(0, 50), np.arange(60), fit_window_ps=(0.5, 3.0))
    assert (result.n_blocks, np.isnan(result.error_A2_per_ps)) == (1, True)


def test_fit_window_beyond_the_trajectory_is_refused(walk: Trajectory) -> None:
    with pytest.raises(ValueError, match=r"0.5 to 300 ps does not fit 1500 frames 0.1 ps apart"):
        diffusion(walk, np.arange(60), fit_window_ps=(0.5, 300.0))


def test_published_diffusivity_miscounts_origins(walk: Trajectory) -> None:
    positions = remove_center(walk.positions[:40])
    published = mdsim_diffusion(positions)
    third = np.mean(np.sum((positions[3:] - positions[:-3]) ** 2, axis=-1)) / 18
    assert published[2] == pytest.approx(third * 37 / 36)
    assert np.isinf(published[-1])


def test_finite_size_correction_of_water() -> None:
    # 2.837297 k_B T / (6 pi eta L) for 0.9 mPa s, 300 K and 12.44 Å, by hand: 0.557e-9 m^2/s.
    assert finite_size_correction_A2_per_ps(300.0, 0.9, 12.44) == pytest.approx(0.0557, rel=2e-3)


def test_green_kubo_agrees_with_einstein(rng: np.random.Generator) -> None:
    frames, friction = 20_000, 0.05
    decay = np.exp(-friction)
    noise = rng.normal(size=(frames, 20, 3)) * 0.01 * np.sqrt(1 - decay**2)
    velocities = np.empty((frames, 20, 3))
    velocities[0] = 0.01 * rng.normal(size=(20, 3))
    for k in range(1, frames):
        velocities[k] = decay * velocities[k - 1] + noise[k]
    gas = Trajectory(
        velocities.cumsum(axis=0), np.full(20, 18), times_fs=1.0 * np.arange(frames), velocities=velocities
    )
    expected = 1e-4 / friction * 1e3
    assert green_kubo_diffusion(gas, np.arange(20), max_lag_fs=100.0)[-1] == pytest.approx(expected, rel=0.1)
    result = diffusion(gas, np.arange(20), fit_window_ps=(0.2, 0.8), drift_free=False)
    assert result.D_A2_per_ps == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("wavenumber", [500.0, 1650.0, 3700.0])
def test_harmonic_oscillator_has_one_line(wavenumber: float) -> None:
    correlation = velocity_autocorrelation(oscillator(wavenumber), max_lag_frames=1999)
    spectrum = vibrational_spectrum(correlation, 1.0)
    peaks = spectrum.peaks_cm1(relative_height=0.5)
    assert len(peaks) == 1
    assert peaks[0] == pytest.approx(wavenumber, abs=0.5)


def test_area_of_the_spectrum_is_one_half() -> None:
    spectrum = vibrational_spectrum(velocity_autocorrelation(oscillator(1000.0), max_lag_frames=1000), 1.0)
    area = np.trapezoid(spectrum.intensities_fs, spectrum.wavenumbers_cm1) * LIGHT_CM_PER_FS
    assert area == pytest.approx(0.5, rel=1e-3)


def test_spectra_differ_from_0_to_2() -> None:
    grid = np.arange(0.0, 4000.0, 4.0)
    first, second = (
        vibrational_spectrum(
            velocity_autocorrelation(oscillator(wavenumber), max_lag_frames=1999), 1.0, wavenumbers_cm1=grid
        )
        for wavenumber in (1000.0, 3000.0)
    )
    assert first.difference(first) == 0.0
    assert first.difference(second) == pytest.approx(2.0, abs=0.1)


def test_other_wavenumbers_are_refused() -> None:
    correlation = velocity_autocorrelation(oscillator(1000.0), max_lag_frames=100)
    with pytest.raises(ValueError, match="different wavenumbers"):
        vibrational_spectrum(correlation, 1.0).difference(vibrational_spectrum(correlation, 0.5))


def test_frames_too_far_apart_for_the_spectrum_are_refused() -> None:
    with pytest.raises(ValueError, match=r"up to 4000 1/cm need frames closer than 4.17 fs, but they are 5 fs"):
        vibrational_spectrum(np.ones(50), 5.0, wavenumbers_cm1=np.array([0.0, 4000.0]))


@pytest.mark.parametrize(("wavenumber", "timestep_fs", "shift"), [(3000.0, 0.5, 10.0), (3700.0, 1.0, 77.0)])
def test_velocity_verlet_shifts_lines_up(wavenumber: float, timestep_fs: float, shift: float) -> None:
    found = float(verlet_wavenumber_cm1(np.array(wavenumber), timestep_fs)) - wavenumber
    assert found == pytest.approx(shift, rel=0.05)


def test_shift_is_that_of_a_velocity_verlet_run() -> None:
    omega, step = 2 * np.pi * LIGHT_CM_PER_FS * 3000.0, 1.0
    x, v, velocities = 0.0, 1.0, []
    for _ in range(6000):
        velocities.append(v)
        half = v - 0.5 * step * omega**2 * x
        x += step * half
        v = half - 0.5 * step * omega**2 * x
    run = replace(oscillator(1.0, frames=6000), velocities=np.array(velocities)[:, None, None] * np.ones((1, 2, 3)))
    spectrum = vibrational_spectrum(velocity_autocorrelation(run, max_lag_frames=2999), step)
    expected = float(verlet_wavenumber_cm1(np.array(3000.0), step))
    assert spectrum.peaks_cm1(relative_height=0.5)[0] == pytest.approx(expected, abs=0.5)


def test_velocities_are_needed(walk: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="holds no velocities"):
        velocity_autocorrelation(walk, max_lag_frames=10)


def test_resting_atoms_have_no_correlation() -> None:
    resting = replace(oscillator(1.0, frames=20), velocities=np.zeros((20, 2, 3)))
    with pytest.raises(TrajectoryError, match="all velocities are zero"):
        velocity_autocorrelation(resting, max_lag_frames=5)
