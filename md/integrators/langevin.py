"""Langevin dynamics in the BAOAB splitting: constant temperature.

B(h) A(h) O(dt) A(h) B(h) with O: v <- c v + sqrt((1 - c^2) k T / m) xi, c = exp(-gamma dt)
(B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34). For a harmonic oscillator of frequency w the
positions are sampled exactly at any stable step, w dt < 2. So are the velocities in the middle of the step,
after O (Z. Zhang et al., J. Phys. Chem. A 123, 6056 (2019)), from which the temperature is reported; those at
whole steps are too small by the factor 1 - (w dt)^2 / 4 in their square. With constraints every sub-step is
projected: g-BAOAB (B. Leimkuhler, C. Matthews, Proc. R. Soc. A 472, 20160138 (2016)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

HEAT, HALF_STEP_KINETIC_ENERGY = "heat", "half_step_kinetic_energy"


@dataclass(frozen=True)
class Langevin:
    """Newton's equations with friction and noise.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        friction_per_ps: gamma in 1/ps; 0 gives velocity Verlet.

    Raises:
        ValueError: for a step that is not positive, a negative temperature or a negative friction.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    friction_per_ps: float

    needs_stress = False
    conserves_momentum = False
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")
        check_targets("friction_per_ps", self.friction_per_ps, minimum=0.0, unit="1/ps")

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat yet; the kinetic energy of the first velocities."""
        return {
            HEAT: torch.zeros_like(state.energy),
            HALF_STEP_KINETIC_ENERGY: dynamics.kinetic_energy(state.velocities),
        }

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        half, keep, renew = 0.5 * self.timestep_fs, *_shares(self.friction_per_ps, self.timestep_fs)
        speed = dynamics.thermal_speed_at(self.temperature_K, state.step)
        state, after, gain = dynamics.langevin_moves(state, half, speed, keep=keep, renew=renew)
        state = dynamics.kick(dynamics.evaluate(state), half)
        return state.changed(step=state.step + 1, extended=_with_heat(state, after, gain))

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In the middle of the last step."""
        del dynamics
        return state.extended[HALF_STEP_KINETIC_ENERGY]

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Minus the heat taken up from the bath."""
        del dynamics
        return -state.extended[HEAT]


def ornstein_uhlenbeck(
    state: State, dynamics: Dynamics, temperature_K: Targets, *, friction_per_ps: float, duration_fs: float
) -> State:
    """Exact solution of dv = -gamma v dt + sqrt(2 gamma k T / m) dW; adds to the heat."""
    keep, renew = _shares(friction_per_ps, duration_fs)
    speed = dynamics.thermal_speed_at(temperature_K, state.step)
    noise = dynamics.noise.normals(state.step, Purpose.THERMOSTAT)
    state, after, gain = dynamics.renew_velocities(state, noise, speed, keep=keep, renew=renew)
    return state.changed(extended=_with_heat(state, after, gain))


def _shares(friction_per_ps: float, duration_fs: float) -> tuple[float, float]:
    """Of the old velocity and of the noise: c and sqrt(1 - c^2)."""
    exponent = 1e-3 * friction_per_ps * duration_fs
    return math.exp(-exponent), math.sqrt(-math.expm1(-2.0 * exponent))


def _with_heat(state: State, kinetic_energy: Tensor, gain: Tensor) -> dict[str, Tensor]:
    """The variables of the thermostat after a move that raised the kinetic energy by `gain`."""
    return {**state.extended, HEAT: state.extended[HEAT] + gain, HALF_STEP_KINETIC_ENERGY: kinetic_energy}
