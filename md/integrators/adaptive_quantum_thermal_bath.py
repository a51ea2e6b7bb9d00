"""Adaptive quantum thermal bath: the noise is corrected until no zero-point energy leaks.

E. Mangaud et al., J. Chem. Theory Comput. 15, 2863 (2019), the variant that adapts the random force. The noise
of `QuantumThermalBath` has the power spectrum 2 m gamma_r(w) theta(w, T) with a coefficient gamma_r for each element;
the friction gamma stays. After each segment the fluctuation-dissipation theorem is tested:

Re C_vF(w) = m gamma_r(w) C_vv(w)

holds in quantum equilibrium, with the spectrum C_vv of the velocities and their cross spectrum C_vF with the random
force. Where the left side is larger the system has too little energy at this frequency, and gamma_r grows; otherwise
it is reduced. This takes as much from low frequencies as leaks into them, and gives it back to the high ones, if
the friction is large enough: a gain that reaches its lower bound says that it is not.

Both sides are divided by 2 gamma_r theta, which leaves the response h = gamma Re chi(w) and the fluctuation
q = gamma m C_vv / 2 theta, means over the atoms of an element and the directions in one replica, smoothed over
neighbouring frequencies. With r = gamma_r / gamma, every segment of duration D adds D / tau (h - q) / (Q + Q_max / 20)
to ln r, where Q is a running mean of q. For a single oscillator at its resonance tau is the time in which r settles.
In discrete time v is the mean of the velocities before and after the thermostat move; then the theorem holds
exactly for oscillators, see `coloured_noise`.

Atoms of one mass in a replica count as one element, so that isotopes have coefficients of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.coloured_noise import (
    ANGULAR_FREQUENCY,
    Bath,
    bath_segment,
    fourier,
    natural_frequencies,
    oscillator_energy,
    species,
)
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.langevin import HALF_STEP_KINETIC_ENERGY, HEAT
from e2former_calc.md.integrators.quantum_thermal_bath import check_bath, thermostat_move
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

GAIN, RESPONSE, FLUCTUATION = "noise_gain", "response", "fluctuation"
RECORD, RECENT = "velocity_record", "recent_velocities"

LOWEST_GAIN, HIGHEST_GAIN = 0.01, 10.0
_BLOCK = 32
"""Steps after which recent velocities go into the record of the segment, which is then copied."""
_RENEWAL = 0.1
"""Weight of the last segment in running means."""
_FLOOR = 0.05
"""Fluctuations below this share of the largest one do not drive the gain at full speed."""
_LARGEST_CHANGE = 3.0
"""Bound on the change of ln r in one segment, in units of D / tau."""


@dataclass(frozen=True)
class AdaptiveQuantumThermalBath:
    """Quantum thermal bath with coefficients of the noise that adapt (adQTB-r).

    Let the coefficients settle for several `adaptation_time_ps` before taking averages.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        friction_per_ps: gamma in 1/ps; 20 is usual, strong coupling of modes needs more.
        cutoff_per_cm: wavenumber in 1/cm above which there is no noise.
        segment_steps: length of a segment of noise and of a test of the theorem, a power of two.
        deconvolution: correct the spectrum for the friction, as in `QuantumThermalBath`.
        adaptation_time_ps: tau; longer times give coefficients with less noise, later.

    Raises:
        ValueError: for numbers out of range.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    friction_per_ps: float
    cutoff_per_cm: float = 15000.0
    segment_steps: int = 2048
    deconvolution: bool = True
    adaptation_time_ps: float = 10.0

    needs_stress = False
    conserves_momentum = False
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")
        check_bath(self.bath)
        check_positive("adaptation_time_ps", self.adaptation_time_ps, "ps")

    @property
    def bath(self) -> Bath:
        """What decides the spectrum of the noise before it adapts."""
        return Bath(self.timestep_fs, self.friction_per_ps, self.cutoff_per_cm, self.segment_steps, self.deconvolution)

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath; the kinetic temperature is higher."""
        return self.temperature_K

    @property
    def wavenumbers_per_cm(self) -> NDArray[np.float64]:
        """Wavenumbers (1/cm) of the coefficients."""
        return self.bath.frequencies / ANGULAR_FREQUENCY

    def adapted_friction_per_ps(self, state: State) -> Float[Tensor, "replicas species frequencies"]:
        """The coefficients gamma_r of the noise in 1/ps, by ascending mass of the elements in each replica."""
        return self.friction_per_ps * state.extended[GAIN]

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat, no correction of the noise, nothing recorded."""
        replicas, atoms = dynamics.replicas.n_replicas, int(dynamics.replicas.sizes.max())
        table = state.energy.new_zeros(replicas, species(dynamics)[1], self.segment_steps // 2 + 1)
        return {
            HEAT: torch.zeros_like(state.energy),
            HALF_STEP_KINETIC_ENERGY: dynamics.kinetic_energy(state.velocities),
            GAIN: torch.ones_like(table),
            RESPONSE: table,
            FLUCTUATION: table.clone(),
            RECORD: state.energy.new_zeros(replicas, self.segment_steps, atoms, 3),
            RECENT: state.energy.new_zeros(replicas, _BLOCK, atoms, 3),
        }

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step; the last one of a segment adapts the noise of the next."""
        half = 0.5 * self.timestep_fs
        state = dynamics.kick_and_drift(state, half, half)
        segment, before = self._segment(state, dynamics), state.velocities
        state = thermostat_move(state, dynamics, self.bath, segment[state.step % self.segment_steps])
        state = self._record(state, dynamics, 0.5 * (before + state.velocities))
        if (state.step + 1) % self.segment_steps == 0:
            state = self._adapt(state, dynamics, segment)
        state = dynamics.evaluate(dynamics.drift(state, half))
        return dynamics.kick(state, half).changed(step=state.step + 1)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In the middle of the last step; contains the zero-point energy."""
        del dynamics
        return state.extended[HALF_STEP_KINETIC_ENERGY]

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Minus the heat taken up from the bath."""
        del dynamics
        return -state.extended[HEAT]

    def _segment(self, state: State, dynamics: Dynamics) -> Float[Tensor, "steps atoms 3"]:
        gain = state.extended[GAIN]
        return bath_segment(dynamics, self.bath, self.temperature_K, state.step, gain=gain)

    def _record(self, state: State, dynamics: Dynamics, velocities: Float[Tensor, "atoms 3"]) -> State:
        """Keep velocities, times sqrt(m) in the square root of eV; replicas with fewer atoms are padded with zeros."""
        replicas, unit = dynamics.replicas, dynamics.thermal_speed(torch.ones_like(state.energy))
        offset = state.step % self.segment_steps
        recent = state.extended[RECENT].clone()
        recent[replicas.batch, offset % _BLOCK, replicas.local_index] = velocities / unit
        extended = {**state.extended, RECENT: recent}
        if (offset + 1) % _BLOCK == 0:
            extended[RECORD] = state.extended[RECORD].clone()
            extended[RECORD][:, offset + 1 - _BLOCK : offset + 1] = recent
        return state.changed(extended=extended)

    def _adapt(self, state: State, dynamics: Dynamics, segment: Float[Tensor, "steps atoms 3"]) -> State:
        """The next gain, from the velocities of the segment and its noise."""
        old, replicas = state.extended, dynamics.replicas
        velocities = old[RECORD][replicas.batch, :, replicas.local_index].movedim(0, 1)
        cross, power = (_mean_of_species(values, dynamics) for values in _spectra(velocities, segment))
        bath, first = self.bath, state.step - state.step % self.segment_steps
        theta = _energies(bath, dynamics, self.temperature_K, first)[:, None]
        response = _smooth(math.sqrt(2.0 * bath.coupling) * cross / (2.0 * theta * old[GAIN]))
        fluctuation = _smooth(bath.coupling * power / (2.0 * theta))
        running = {
            RESPONSE: _renewed(old[RESPONSE], response),
            FLUCTUATION: _renewed(old[FLUCTUATION], fluctuation),
        }
        scale = running[FLUCTUATION] + _FLOOR * running[FLUCTUATION].amax(-1, keepdim=True)
        change = (response - fluctuation) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        pace = min(1.0, 1e-3 * self.segment_steps * self.timestep_fs / self.adaptation_time_ps)
        gain = old[GAIN] * (pace * change.clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)).exp()
        return state.changed(extended={**old, **running, GAIN: gain.clamp(LOWEST_GAIN, HIGHEST_GAIN)})


def _spectra(
    velocities: Float[Tensor, "steps atoms 3"], noise: Float[Tensor, "steps atoms 3"]
) -> tuple[Float[Tensor, "atoms frequencies"], Float[Tensor, "atoms frequencies"]]:
    """Real part of the cross spectrum and power spectrum of the velocities, means over directions.

    Both go through one transform, Z(k) = V(k) + i F(k) with Z*(-k) = V(k) - i F(k).
    """
    steps = len(velocities)
    real, imaginary = fourier(velocities, noise)
    index = torch.arange(steps // 2 + 1, device=real.device)
    opposite = (-index) % steps
    a, b, c, d = real[index], imaginary[index], real[opposite], imaginary[opposite]
    cross = ((a + c) * (b + d) + (b - d) * (c - a)) / (4.0 * steps)
    power = ((a + c) * (a + c) + (b - d) * (b - d)) / (4.0 * steps)
    return _mean_of_directions(cross), _mean_of_directions(power)


def _mean_of_directions(values: Float[Tensor, "frequencies atoms 3"]) -> Float[Tensor, "atoms frequencies"]:
    return ((values[..., 0] + values[..., 1] + values[..., 2]) / 3.0).T


def _mean_of_species(
    values: Float[Tensor, "atoms frequencies"], dynamics: Dynamics
) -> Float[Tensor, "replicas species frequencies"]:
    """Zero where a replica has fewer elements than others."""
    index, count = species(dynamics)
    means = []
    for number in range(count):
        mine = (index == number)[:, None]
        members = dynamics.replicas.sum(mine.to(values.dtype)).clamp(min=1.0)
        means.append(dynamics.replicas.sum(torch.where(mine, values, 0.0)) / members)
    return torch.stack(means, 1)


def _energies(
    bath: Bath, dynamics: Dynamics, temperature_K: Targets, step: int
) -> Float[Tensor, "replicas frequencies"]:
    """Theta in eV for each replica, without the cutoff; at the frequency 0 that of the next one."""
    frequencies = natural_frequencies(bath)
    frequencies[0] = frequencies[1]
    each = [oscillator_energy(frequencies, value) for value in dynamics.targets(temperature_K, step).tolist()]
    return torch.from_numpy(np.stack(each)).to(dynamics.masses)


def _smooth(values: Float[Tensor, "*shape frequencies"]) -> Float[Tensor, "*shape frequencies"]:
    """Means over neighbours with the weights 1 4 6 4 1."""
    for _ in range(2):
        padded = torch.cat([values[..., :1], values, values[..., -1:]], -1)
        values = 0.25 * (padded[..., :-2] + 2.0 * values + padded[..., 2:])
    return values


def _renewed(mean: Tensor, value: Tensor) -> Tensor:
    """Running mean; the first value replaces the zeros of the start."""
    first = (mean == 0.0).all(-1, keepdim=True)
    return torch.where(first, value, mean + _RENEWAL * (value - mean))
