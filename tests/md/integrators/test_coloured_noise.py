"""Laws of the noise of the quantum thermal baths: its spectrum, and where its numbers come from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from e2former_calc.md.integrators.coloured_noise import (
    ANGULAR_FREQUENCY,
    Bath,
    coloured_segment,
    fourier,
    natural_frequencies,
    oscillator_energy,
    power_spectrum,
)
from e2former_calc.md.noise import Noise, Purpose
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.units import BOLTZMANN, HBAR

EPS = torch.finfo(torch.float64).eps
T = 300.0
BATH = Bath(timestep_fs=0.5, friction_per_ps=20.0, cutoff_per_cm=15000.0, segment_steps=1024, deconvolution=False)


def segment(sizes: list[int], number: int = 1, *, bath: Bath = BATH, ids: list[int] | None = None) -> torch.Tensor:
    replicas = Replicas.of_sizes(sizes, ids=ids)
    amplitude = torch.from_numpy(np.sqrt(power_spectrum(bath, T)))[None]
    return coloured_segment(Noise(5, replicas), number, amplitude, torch.zeros_like(replicas.batch))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("length", [2, 64, 1024])
def test_transform_equals_that_of_torch(length: int, inverse: bool, generator: torch.Generator) -> None:
    x, y = torch.randn(2, length, 3, dtype=torch.float64, generator=generator)
    real, imaginary = fourier(x, y, inverse=inverse)
    z = torch.complex(x, y)
    expected = length * torch.fft.ifft(z, dim=0) if inverse else torch.fft.fft(z, dim=0)
    tolerance = 8 * EPS * length * math.log2(length)
    assert float((torch.complex(real, imaginary) - expected).abs().max()) < tolerance


def test_transform_of_a_column_has_the_same_bits_in_every_batch(generator: torch.Generator) -> None:
    x, y = torch.randn(2, 256, 37, dtype=torch.float64, generator=generator)
    for columns in (slice(0, 1), slice(5, 12), slice(36, 37)):
        alone, batch = fourier(x[:, columns], y[:, columns]), fourier(x, y)
        assert torch.equal(alone[0], batch[0][:, columns])
        assert torch.equal(alone[1], batch[1][:, columns])


def test_energy_of_an_oscillator_follows_plancks_formula() -> None:
    w = ANGULAR_FREQUENCY * np.array([100.0, 1000.0, 3700.0])
    quanta = HBAR * w
    expected = quanta * (0.5 + 1.0 / np.expm1(quanta / (BOLTZMANN * T)))
    assert oscillator_energy(w, T) == pytest.approx(expected, rel=1e-12)


def test_energy_of_an_oscillator_has_its_limits() -> None:
    w = np.array([0.0, 1e-9, 0.5])
    assert oscillator_energy(w, 0.0) == pytest.approx(0.5 * HBAR * w)
    assert oscillator_energy(w, 1e7) == pytest.approx(np.full(3, BOLTZMANN * 1e7), rel=1e-6)
    assert oscillator_energy(w, T)[0] == pytest.approx(BOLTZMANN * T, rel=1e-15)


def test_a_wavenumber_of_light_with_a_period_of_one_femtosecond() -> None:
    assert pytest.approx(2 * math.pi, rel=1e-12) == ANGULAR_FREQUENCY * 33356.40951981521


def test_spectrum_is_the_energy_of_oscillators_below_the_cutoff() -> None:
    power, wavenumber = power_spectrum(BATH, T), BATH.frequencies / ANGULAR_FREQUENCY
    theta = oscillator_energy(natural_frequencies(BATH), T)
    assert power[wavenumber < 11000] == pytest.approx(theta[wavenumber < 11000], rel=1e-5)
    assert (power[wavenumber > 18000] < 1e-4 * theta[wavenumber > 18000]).all()
    assert np.interp(15000.0, wavenumber, power / theta) == pytest.approx(0.5, abs=0.01)


def potential_energy(bath: Bath, frequency: float, temperature: float) -> float:
    """Mean potential energy of two degrees of freedom, from the matrix of one step and dense frequencies."""
    h, c = 0.5 * bath.timestep_fs, bath.keep
    kick = np.array([[1.0, 0.0], [-h * frequency**2, 1.0]])
    drift = np.array([[1.0, h], [0.0, 1.0]])
    matrix = kick @ drift @ np.diag([1.0, c]) @ drift @ kick
    force = kick @ drift @ np.array([0.0, math.sqrt(1.0 - c * c)])
    angle = (np.arange(1 << 19) + 0.5) * math.pi / (1 << 19)
    z = np.exp(1j * angle)
    determinant = (z - matrix[0, 0]) * (z - matrix[1, 1]) - matrix[0, 1] * matrix[1, 0]
    position = ((z - matrix[1, 1]) * force[0] + matrix[0, 1] * force[1]) / determinant
    power = np.interp(angle, bath.frequencies * bath.timestep_fs, power_spectrum(bath, temperature))
    return float((np.abs(position) ** 2 * power).mean()) * frequency**2


@pytest.mark.parametrize("wavenumber", [150.0, 1000.0, 3700.0])
@pytest.mark.parametrize("friction", [2.0, 20.0, 60.0])
@pytest.mark.parametrize("timestep", [0.5, 1.0])
def test_deconvolution_gives_oscillators_their_energy(wavenumber: float, friction: float, timestep: float) -> None:
    bath = replace(BATH, friction_per_ps=friction, timestep_fs=timestep, deconvolution=True)
    frequency = ANGULAR_FREQUENCY * wavenumber
    theta = oscillator_energy(np.array([frequency]), T)[0]
    assert potential_energy(bath, frequency, T) == pytest.approx(theta, rel=2e-3)


def test_without_deconvolution_friction_changes_the_energy() -> None:
    bath = replace(BATH, friction_per_ps=60.0)
    frequency = ANGULAR_FREQUENCY * 1000.0
    assert potential_energy(bath, frequency, T) < 0.96 * oscillator_energy(np.array([frequency]), T)[0]


@pytest.mark.parametrize("deconvolution", [False, True])
def test_noise_has_its_power_spectrum(deconvolution: bool) -> None:
    bath = replace(BATH, segment_steps=256, friction_per_ps=50.0, deconvolution=deconvolution)
    noise = segment([1500], bath=bath).numpy()
    window = np.hanning(257)[:-1, None, None]
    found = (np.abs(np.fft.rfft(noise * window, axis=0)) ** 2).mean((1, 2)) / (window**2).sum()
    wavenumber = bath.frequencies / ANGULAR_FREQUENCY
    inside = (wavenumber > 500) & (wavenumber < 13000)
    ratio = found[inside] / power_spectrum(bath, T)[inside]
    error = 1.0 / math.sqrt(noise[0].size)
    assert np.abs(ratio - 1.0).max() < 5 * error
    assert ratio.mean() == pytest.approx(1.0, abs=5 * error / math.sqrt(len(ratio) / 2))


def test_segments_join_without_a_seam() -> None:
    small = replace(BATH, segment_steps=64)
    noise = torch.cat([segment([3000], number, bath=small) for number in (0, 1)]).flatten(1)
    power = power_spectrum(small, T)
    angle = np.arange(len(power)) * math.pi / (len(power) - 1)
    weight = np.r_[0.5, np.ones(len(power) - 2), 0.5] / (len(power) - 1)
    error = 5 * power.mean() * math.sqrt(2 / noise.shape[1])
    for lag in (0, 1, 2, 5):
        expected = float((weight * power * np.cos(lag * angle)).sum())
        for first in (20, 64 - lag, 63):
            assert float((noise[first] * noise[first + lag]).mean()) == pytest.approx(expected, abs=error)


def test_noise_is_the_convolution_of_white_noise_with_a_symmetric_kernel() -> None:
    replicas = Replicas.of_sizes([2])
    small = replace(BATH, segment_steps=128)
    amplitude = np.sqrt(power_spectrum(small, T))
    kernel = np.fft.irfft(amplitude)
    white = Noise(5, replicas)
    found = segment([2], 3, bath=small)[10]
    lags = np.arange(-64, 65)
    weights = np.where(np.abs(lags) == 64, 0.5, 1.0) * kernel[np.abs(lags)]
    terms = [
        w * white.normals(3 * 128 + 10 + 64 - int(k), Purpose.COLOURED) for k, w in zip(lags, weights, strict=True)
    ]
    assert torch.allclose(found, torch.stack(terms).sum(0), rtol=0.0, atol=1e-13)


def test_noise_of_a_replica_has_the_same_bits_in_every_batch() -> None:
    small = replace(BATH, segment_steps=256)
    batch = segment([4, 3, 700], bath=small, ids=[2, 8, 1])
    assert torch.equal(segment([3], bath=small, ids=[8]), batch[:, 4:7])
    assert torch.equal(segment([700], bath=small, ids=[1]), batch[:, 7:])


def test_atoms_and_directions_have_independent_noise() -> None:
    noise = segment([40], bath=replace(BATH, segment_steps=1024)).flatten(1)
    correlation = torch.corrcoef(noise.T) - torch.eye(120)
    assert float(correlation.abs().max()) < 6 / math.sqrt(len(noise) / 3)
