"""Quantum thermal bath: Langevin dynamics whose noise gives every vibration its quantum mean energy.

H. Dammak et al., Phys. Rev. Lett. 103, 190601 (2009). The noise has the power spectrum 2 m gamma theta(w, T) with
theta = (hbar w / 2) coth(hbar w / 2 k T) instead of 2 m gamma k T, so that a harmonic oscillator of frequency w has the
mean energy of the quantum one, zero-point energy included. The step is that of `Langevin`,
B(h) A(h) O(dt) A(h) B(h), with O: v <- c v + sqrt((1 - c^2) / m) eta and noise eta from `coloured_noise`. At high
temperature eta is sqrt(k T) times white noise, and the two are the same.

What to expect:

* Harmonic modes have the mean potential energy and the distribution of positions of quantum mechanics, with
  deconvolution at any friction. Their kinetic energy is larger by about (gamma hbar / 2 pi) ln(w_c / w) with the
  cutoff w_c: for 300 K and 20/ps by 30 % at 500/cm and 4 % at 3000/cm, for 1/ps by less than 2 %.
* The kinetic temperature is that of a classical system with the same kinetic energy, zero-point energy included: around
  1000 K for molecules with hydrogen at 300 K. It says nothing about the temperature of the bath.
* Coupled modes of different frequencies exchange energy like classical ones: zero-point energy leaks from high
  frequencies to low ones. A large friction and `AdaptiveQuantumThermalBath` work against it.
* Ramps of the temperature go in stairs, one step per segment of noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.coloured_noise import Bath, bath_segment
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.langevin import HALF_STEP_KINETIC_ENERGY, HEAT
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

SHORTEST, LONGEST = 64, 8192


@dataclass(frozen=True)
class QuantumThermalBath:
    """Langevin dynamics with noise of the quantum power spectrum.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        friction_per_ps: gamma in 1/ps. Large values (20) hold the energy of each mode against leakage, small ones (1)
            disturb the motion less.
        cutoff_per_cm: wavenumber in 1/cm above which there is no noise, far above all vibrations; it has
            no effect where pi / dt is below it.
        segment_steps: length of a segment of noise, a power of two; it resolves the spectrum to
            33356 / (`segment_steps` `timestep_fs`) in 1/cm and takes 24 `segment_steps` bytes of memory per atom.
        deconvolution: correct the spectrum for the friction, so that the mean potential energy of harmonic
            modes is theta whatever the friction is.

    Raises:
        ValueError: for numbers out of range.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    friction_per_ps: float
    cutoff_per_cm: float = 15000.0
    segment_steps: int = 2048
    deconvolution: bool = True

    needs_stress = False
    conserves_momentum = False
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")
        check_bath(self.bath)

    @property
    def bath(self) -> Bath:
        """What decides the spectrum of the noise."""
        return Bath(self.timestep_fs, self.friction_per_ps, self.cutoff_per_cm, self.segment_steps, self.deconvolution)

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath; the kinetic temperature is higher."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat yet; the kinetic energy of the first velocities."""
        return {
            HEAT: torch.zeros_like(state.energy),
            HALF_STEP_KINETIC_ENERGY: dynamics.kinetic_energy(state.velocities),
        }

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        half = 0.5 * self.timestep_fs
        state = dynamics.kick_and_drift(state, half, half)
        segment = bath_segment(dynamics, self.bath, self.temperature_K, state.step)
        state = thermostat_move(state, dynamics, self.bath, segment[state.step % self.segment_steps])
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


def thermostat_move(state: State, dynamics: Dynamics, bath: Bath, noise: Float[Tensor, "atoms 3"]) -> State:
    """O: v <- c v + sqrt((1 - c^2) / m) noise, with noise in the square root of eV; adds to the heat."""
    unit, renew = dynamics.thermal_speed(torch.ones_like(state.energy)), math.sqrt(1.0 - bath.keep * bath.keep)
    state, after, gain = dynamics.renew_velocities(state, noise, unit, keep=bath.keep, renew=renew)
    heat = state.extended[HEAT] + gain
    return state.changed(extended={**state.extended, HEAT: heat, HALF_STEP_KINETIC_ENERGY: after})


def check_bath(bath: Bath) -> None:
    """Refuse baths without friction, without noise, or with segments that cannot be transformed.

    Raises:
        ValueError: naming the value.
    """
    check_positive("friction_per_ps", bath.friction_per_ps, "1/ps")
    check_positive("cutoff_per_cm", bath.cutoff_per_cm, "1/cm")
    steps = bath.segment_steps
    if not SHORTEST <= steps <= LONGEST or steps & (steps - 1):
        raise ValueError(f"`segment_steps` must be a power of two from {SHORTEST} to {LONGEST}, got {steps}")
