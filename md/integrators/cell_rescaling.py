"""Langevin dynamics at constant pressure by stochastic cell rescaling, isotropic.

M. Bernetti, G. Bussi, J. Chem. Phys. 153, 114107 (2020), in the variable lambda = sqrt(V), whose noise is constant:

d lambda = -(beta lambda / 2 tau) (P_0 - P - k T / 2 V) dt + sqrt(k T beta / 2 tau) dW,

with the isothermal compressibility beta, the target P_0 and the internal pressure P = 2 K / 3 V - tr(stress) / 3.
Positions scale with the cell, velocities with its inverse, so that volumes follow the isothermal-isobaric
distribution exactly in the limit of small steps, whatever tau and beta are; beta only sets the pace.
One step is B(h) A(h) O(dt) C(dt) A(h) B(h); C takes the stress of the last evaluation and the kinetic energy after O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.langevin import HALF_STEP_KINETIC_ENERGY, HEAT, ornstein_uhlenbeck
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State
from e2former_calc.md.units import BAR


@dataclass(frozen=True)
class StochasticCellRescaling:
    """Constant temperature and pressure; needs the stress of the model.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        pressure_bar: target pressure, given in the same ways.
        friction_per_ps: of the Langevin thermostat, in 1/ps.
        pressure_relaxation_time_fs: tau.
        compressibility_per_bar: beta, a rough value; that of water is 4.5e-5.

    Raises:
        ValueError: for numbers out of range.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    pressure_bar: Targets
    friction_per_ps: float = 1.0
    pressure_relaxation_time_fs: float = 1000.0
    compressibility_per_bar: float = 4.5e-5

    needs_stress = True
    conserves_momentum = False
    changes_cell = True

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_positive("pressure_relaxation_time_fs", self.pressure_relaxation_time_fs, "fs")
        check_positive("compressibility_per_bar", self.compressibility_per_bar, "1/bar")
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")
        check_targets("pressure_bar", self.pressure_bar, minimum=-math.inf, unit="bar")
        check_targets("friction_per_ps", self.friction_per_ps, minimum=0.0, unit="1/ps")

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat yet; the kinetic energy of the first velocities."""
        dynamics.targets(self.pressure_bar, 0)
        return {
            HEAT: torch.zeros_like(state.energy),
            HALF_STEP_KINETIC_ENERGY: dynamics.kinetic_energy(state.velocities),
        }

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        half = 0.5 * self.timestep_fs
        state = dynamics.drift(dynamics.kick(state, half), half)
        state = ornstein_uhlenbeck(
            state, dynamics, self.temperature_K, friction_per_ps=self.friction_per_ps, duration_fs=self.timestep_fs
        )
        state = self._rescale(state, dynamics)
        state = dynamics.evaluate(dynamics.drift(state, half))
        return replace(dynamics.kick(state, half), step=state.step + 1)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In the middle of the last step."""
        del dynamics
        return state.extended[HALF_STEP_KINETIC_ENERGY]

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """NaN: the work of the cell is not accounted for."""
        del dynamics
        return torch.full_like(state.energy, torch.nan)

    def _rescale(self, state: State, dynamics: Dynamics) -> State:
        """C: volume, positions and velocities."""
        volume = dynamics.volume(state.cell)
        thermal = dynamics.thermal_energy(self.temperature_K, state.step)
        target = BAR * dynamics.targets(self.pressure_bar, state.step)
        tension = state.stress[:, 0, 0] + state.stress[:, 1, 1] + state.stress[:, 2, 2]
        pressure = (2.0 * state.extended[HALF_STEP_KINETIC_ENERGY] / volume - tension) / 3.0
        pace = self.compressibility_per_bar / BAR * self.timestep_fs / (2.0 * self.pressure_relaxation_time_fs)
        root = volume.sqrt()
        random = dynamics.noise.replica_normals(state.step, Purpose.BAROSTAT)[:, 0]
        change = -pace * root * (target - pressure - 0.5 * thermal / volume) + (thermal * pace).sqrt() * random
        # A power of torch rounds differently inside and at the end of an array, exp and log do not.
        scale = ((2.0 / 3.0) * ((root + change).abs() / root).log()).exp()
        state = scaled(state, dynamics, scale)
        velocities = state.velocities / dynamics.replicas.spread(scale)[:, None]
        return dynamics.with_velocities(state, velocities)


def scaled(
    state: State, dynamics: Dynamics, scale: Float[Tensor, " replicas"], centers: Float[Tensor, "atoms 3"] | None = None
) -> State:
    """Cell and positions multiplied about the centre of mass; with `centers` atoms move rigidly with their centre."""
    factor = dynamics.replicas.spread(scale)[:, None]
    moving = state.positions if centers is None else centers
    middle = dynamics.replicas.spread(dynamics.center_of_mass(state.positions))
    positions = state.positions + (factor - 1.0) * (moving - middle)
    return replace(state, positions=positions, cell=state.cell * scale[:, None, None])
