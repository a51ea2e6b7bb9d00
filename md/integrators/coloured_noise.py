"""Random forces with a given power spectrum: noise for the quantum thermal baths.

White noise w (a function of seed, replica, step and atom only) is convolved with a symmetric kernel h:
eta(n) = sum_k h(k) w(n - k), |k| <= S / 2, in segments of S steps by fast Fourier transforms of length 2 S
(overlap-save; J.-L. Barrat, D. Rodney, J. Stat. Phys. 144, 679 (2011) filter in time too). The kernel is the transform
of the square root of the power spectrum at S frequencies. White noise of later steps is simply looked up, so
that nothing but the step is needed to make any segment again.

A harmonic oscillator of frequency w_0 with the friction gamma answers to a band of width gamma around w_0. What it
has on average is K S, the spectrum S convolved with its response. `power_spectrum` solves K S = theta for the
potential energy, with theta of the quantum harmonic oscillator. K is exact for the splitting that the baths
use: with the response to impulses f at the thermostat move, v = f / (g + i X), g = 2 (1 - c) / (1 + c),
X = 2 (t (1 - s) - s / t), t = tan(W / 2), s = (w_0 dt / 2)^2, W = w dt, where v is the mean of the velocities
before and after the move, positions at whole steps are |x|^2 = dt^2 |v|^2 (1 + t^2) / 4 t^2. The solution is found by
multiplying S with theta / K S repeatedly (compare M. Rossi, V. Kapil, M. Ceriotti, J. Chem. Phys. 148, 102301 (2018)).

The transform is made of additions and multiplications of single elements: libraries may round differently in other
batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.noise import Noise, Purpose
from e2former_calc.md.schedules import Targets
from e2former_calc.md.units import BOLTZMANN, HBAR

ANGULAR_FREQUENCY = 2.0 * math.pi * 2.99792458e-5
"""Angular frequency in 1/fs of a wavenumber of 1/cm."""

_EDGE = 0.02
"""Width of the decline at the cutoff, as a share of it."""
_ITERATIONS = 10
_NODES = 128
"""Points of the quadrature over the response of an oscillator: relative error below 1e-5 up to gamma dt = 0.05."""
_COLUMNS = 1 << 20
"""Numbers transformed in one go."""


@dataclass(frozen=True)
class Bath:
    """What decides the spectrum of the noise, apart from the temperature.

    Args:
        timestep_fs: length of a step.
        friction_per_ps: gamma in 1/ps.
        cutoff_per_cm: wavenumber above which there is no noise.
        segment_steps: S, a power of two.
        deconvolution: correct for the width of the response of oscillators.
    """

    timestep_fs: float
    friction_per_ps: float
    cutoff_per_cm: float
    segment_steps: int
    deconvolution: bool

    @property
    def keep(self) -> float:
        """Share c = exp(-gamma dt) of the velocity that a thermostat move leaves."""
        return math.exp(-1e-3 * self.friction_per_ps * self.timestep_fs)

    @property
    def coupling(self) -> float:
        """The friction g = 2 (1 - c) / (1 + c) in v' - v = -g (v + v') / 2 + f, without unit."""
        return 2.0 * (1.0 - self.keep) / (1.0 + self.keep)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Angular frequencies in 1/fs of the spectrum: S / 2 + 1 from 0 to pi / dt."""
        return np.linspace(0.0, math.pi / self.timestep_fs, self.segment_steps // 2 + 1)


def oscillator_energy(frequency: NDArray[np.float64], temperature_K: float) -> NDArray[np.float64]:
    """Theta = (hbar w / 2) coth(hbar w / 2 k T) in eV, mean energy of a quantum harmonic oscillator.

    Args:
        frequency: w in 1/fs.
        temperature_K: T; at 0 K the zero-point energy is left.
    """
    thermal, zero_point = BOLTZMANN * temperature_K, 0.5 * HBAR * frequency
    ratio = np.divide(zero_point, thermal, out=np.full_like(zero_point, np.inf), where=np.full(1, thermal > 0.0))
    classical = ratio < 1e-6
    return np.where(classical | (zero_point == 0.0), thermal, zero_point / np.tanh(np.where(classical, 1.0, ratio)))


def natural_frequencies(bath: Bath) -> NDArray[np.float64]:
    """Frequencies w_0 of the oscillators that appear at the frequencies of the bath: w_0 dt / 2 = sin(w dt / 2)."""
    return 2.0 / bath.timestep_fs * np.sin(0.5 * bath.timestep_fs * bath.frequencies)


@lru_cache(maxsize=256)
def power_spectrum(bath: Bath, temperature_K: float) -> NDArray[np.float64]:
    """Spectrum of the noise in eV at the frequencies of the bath, read-only; k T at all of them if T is high."""
    natural = natural_frequencies(bath)
    edge = (bath.frequencies / (ANGULAR_FREQUENCY * bath.cutoff_per_cm) - 1.0) / _EDGE
    wanted = oscillator_energy(natural, temperature_K) / (1.0 + np.exp(np.clip(edge, -50.0, 50.0)))
    spectrum = wanted.copy()
    if bath.deconvolution:
        weight, left, share = _response(bath)
        for _ in range(_ITERATIONS):
            felt = (weight * (spectrum[left] * (1.0 - share) + spectrum[left + 1] * share)).sum(1)
            spectrum = spectrum * np.pad(wanted[1:-1] / felt, 1, mode="edge")
    spectrum.setflags(write=False)
    return spectrum


@lru_cache(maxsize=4)
def _response(bath: Bath) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Potential energy of oscillators: weights (oscillators, nodes), and where the nodes lie in the spectrum.

    Nodes are equidistant in asinh(2 (W - W_0) / g), close at the resonance W_0. The zero frequency and the
    highest one are left out, there is no oscillator there.
    """
    g = bath.coupling
    s = (0.5 * bath.timestep_fs * natural_frequencies(bath)[1:-1, None]) ** 2
    resonance = bath.timestep_fs * bath.frequencies[1:-1, None]
    first, last = np.arcsinh(-2.0 * resonance / g), np.arcsinh(2.0 * (math.pi - resonance) / g)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    u = 0.5 * (first + last) + 0.5 * (last - first) * nodes
    angle = np.clip(resonance + 0.5 * g * np.sinh(u), 1e-12, math.pi - 1e-12)
    t = np.tan(0.5 * angle)
    x = 2.0 * (t * (1.0 - s) - s / t)
    measure = 0.5 * g * np.cosh(u) * 0.5 * (last - first) * weights / math.pi
    kernel = measure * 2.0 * g / (g * g + x * x) * s * (1.0 + t * t) / (t * t)
    place = angle / math.pi * (bath.segment_steps // 2)
    left = np.minimum(place.astype(np.int64), bath.segment_steps // 2 - 1)
    return kernel, left, place - left


@dataclass(frozen=True, eq=False)
class _Segment:
    """A segment of noise and what it was made from."""

    key: tuple[object, ...]
    gain: Tensor | None
    values: Float[Tensor, "steps atoms 3"]


_SEGMENTS: WeakKeyDictionary[Noise, _Segment] = WeakKeyDictionary()
"""The segment used last by each random generator."""


def bath_segment(
    dynamics: Dynamics,
    bath: Bath,
    temperature_K: Targets,
    step: int,
    *,
    gain: Float[Tensor, "replicas species frequencies"] | None = None,
) -> Float[Tensor, "steps atoms 3"]:
    """Noise (square root of eV) of the segment that a step lies in.

    Args:
        dynamics: random numbers, masses and replicas.
        bath: spectrum.
        temperature_K: its value at the first step of the segment counts.
        step: from 0.
        gain: factor on the power spectrum for each species, see `species`; 1 unless given.
    """
    number = step // bath.segment_steps
    stored = _SEGMENTS.get(dynamics.noise)
    key = (bath, temperature_K, number)
    if stored is not None and stored.key == key and _same(stored.gain, gain):
        return stored.values
    power = spectra(dynamics, bath, temperature_K, step)
    if gain is None:
        amplitude, row = power.sqrt(), dynamics.replicas.batch
    else:
        amplitude = (power[:, None] * gain).sqrt().flatten(0, 1)
        row = dynamics.replicas.batch * gain.shape[1] + species(dynamics)[0]
    values = coloured_segment(dynamics.noise, number, amplitude, row)
    _SEGMENTS[dynamics.noise] = _Segment(key, gain, values)
    return values


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


def spectra(dynamics: Dynamics, bath: Bath, temperature_K: Targets, step: int) -> Float[Tensor, "replicas frequencies"]:
    """Power spectrum (eV) of each replica in the segment of a step."""
    first = step - step % bath.segment_steps
    each = [power_spectrum(bath, value) for value in dynamics.targets(temperature_K, first).tolist()]
    return torch.from_numpy(np.stack(each)).to(dynamics.masses)


def species(dynamics: Dynamics) -> tuple[Int[Tensor, " atoms"], int]:
    """For each atom the number of its mass among the masses of its replica, and the largest count of them."""
    found = [torch.unique(dynamics.masses[atoms, 0], return_inverse=True)[1] for atoms in dynamics.replicas.slices()]
    index = torch.cat(found)
    return index, int(index.max()) + 1


def coloured_segment(
    noise: Noise, segment: int, amplitude: Float[Tensor, "rows frequencies"], row: Int[Tensor, " atoms"]
) -> Float[Tensor, "steps atoms 3"]:
    """Noise of the steps segment * S to (segment + 1) * S - 1.

    Args:
        noise: white noise.
        segment: number of the segment, from 0.
        amplitude: square roots of power spectra at S / 2 + 1 frequencies.
        row: the spectrum of each atom.
    """
    length = 2 * (amplitude.shape[1] - 1)
    # Half a segment earlier and later; steps of the generator start at 0, half a segment before those of the dynamics.
    first = segment * length
    white = torch.stack([noise.normals(first + k, Purpose.COLOURED) for k in range(2 * length)])
    response = _interpolated(amplitude).T
    atoms = max(1, _COLUMNS // (4 * length))
    parts = [
        _filtered(white[:, start : start + atoms], response[:, row[start : start + atoms], None])
        for start in range(0, white.shape[1], atoms)
    ]
    return torch.cat(parts, 1)


def _filtered(
    white: Float[Tensor, "steps atoms 3"], response: Float[Tensor, "steps atoms 1"]
) -> Float[Tensor, "half atoms 3"]:
    """The middle half of the circular convolution; x and y of an atom travel as one complex number, z as another."""
    length = white.shape[0]
    imaginary = torch.zeros_like(white[:, :, :2])
    imaginary[:, :, 0] = white[:, :, 1]
    real, imaginary = fourier(white[:, :, 0::2], imaginary)
    real, imaginary = fourier(real * response, imaginary * response, inverse=True)
    middle = slice(length // 4, 3 * length // 4)
    return torch.stack([real[middle, :, 0], imaginary[middle, :, 0], real[middle, :, 1]], -1) / length


def _interpolated(amplitude: Float[Tensor, "rows frequencies"]) -> Float[Tensor, "rows twice"]:
    """The response at 2 S frequencies of the kernel that has this response at S frequencies and 2 S + 1 lags."""
    half = amplitude.shape[1] - 1
    full = torch.cat([amplitude, amplitude[:, 1:-1].flip(1)], 1).T
    kernel = fourier(full, torch.zeros_like(full), inverse=True)[0] / (2 * half)
    # The largest lag stands for both its signs.
    longest = 0.5 * kernel[half : half + 1]
    zeros = torch.zeros_like(kernel)[:-1]
    kernel = torch.cat([kernel[:half], longest, zeros, longest, kernel[half + 1 :]])
    return fourier(kernel, torch.zeros_like(kernel))[0].T


def fourier(
    real: Float[Tensor, "steps *shape"], imaginary: Float[Tensor, "steps *shape"], *, inverse: bool = False
) -> tuple[Float[Tensor, "steps *shape"], Float[Tensor, "steps *shape"]]:
    """Discrete Fourier transform along the first axis, whose length is a power of two; not normalised.

    sum_n (real + i imaginary)(n) exp(-2 pi i k n / steps), with the other sign if `inverse`. The decimation of
    Stockham (W. T. Cochran et al., Proc. IEEE 55, 1664 (1967)) in factors of two.
    """
    shape, n, stride = real.shape, real.shape[0], 1
    while n > 1:
        half = n // 2
        angle = (2.0 if inverse else -2.0) * math.pi * np.arange(half) / n
        cosine, sine = (torch.from_numpy(f(angle)).to(real)[:, None, None] for f in (np.cos, np.sin))
        a, b = real.reshape(n, stride, -1), imaginary.reshape(n, stride, -1)
        c, d = a[:half] - a[half:], b[:half] - b[half:]
        real = torch.stack([a[:half] + a[half:], c * cosine - d * sine], 1)
        imaginary = torch.stack([b[:half] + b[half:], c * sine + d * cosine], 1)
        n, stride = half, 2 * stride
    return real.reshape(shape), imaginary.reshape(shape)
