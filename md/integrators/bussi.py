"""Stochastic velocity rescaling: constant temperature with little influence on the dynamics.

G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007). After a velocity Verlet step all
velocities of a replica are multiplied by alpha, which makes K follow an exact step of length dt of
dK = (K_t - K) dt / tau + 2 sqrt(K K_t / N_f) dW / sqrt(tau), K_t = N_f k T / 2:

alpha^2 = c + (1 - c) K_t / (N_f K) (R_1^2 + S) + 2 R_1 sqrt(c (1 - c) K_t / (N_f K)), c = exp(-dt / tau),

with a normal number R_1 and the sum S of N_f - 1 squared ones. The sign of alpha is that of
R_1 + sqrt(c N_f K / ((1 - c) K_t)) (G. Bussi, M. Parrinello, Comput. Phys. Commun. 179, 26 (2008)).
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
from e2former_calc.md.integrators.verlet import verlet_step
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

HEAT = "heat"


@dataclass(frozen=True)
class Bussi:
    """Velocity Verlet with stochastic velocity rescaling (CSVR, "V-rescale").

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        relaxation_time_fs: tau, how fast the kinetic energy forgets; 100 fs is usual.

    Raises:
        ValueError: for times that are not positive or a negative temperature.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    relaxation_time_fs: float = 100.0

    needs_stress = False
    conserves_momentum = True
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_positive("relaxation_time_fs", self.relaxation_time_fs, "fs")
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat yet."""
        del dynamics
        return {HEAT: torch.zeros_like(state.energy)}

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        turn = state.step
        state = verlet_step(state, dynamics, self.timestep_fs)
        kinetic = dynamics.kinetic_energy(state.velocities)
        unit = 0.5 * dynamics.thermal_energy(self.temperature_K, turn)
        alpha = self._alpha(kinetic, unit, dynamics, turn)
        state = dynamics.scale_velocities(state, alpha)
        heat = state.extended[HEAT] + (alpha * alpha - 1.0) * kinetic
        return state.changed(extended={**state.extended, HEAT: heat})

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """At the whole step."""
        return dynamics.kinetic_energy(state.velocities)

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Minus the heat taken up from the bath."""
        del dynamics
        return -state.extended[HEAT]

    def _alpha(self, kinetic: Tensor, unit: Tensor, dynamics: Dynamics, turn: int) -> Tensor:
        """Factor on velocities; `unit` is k T / 2 = K_t / N_f. Atoms at rest have nothing to be scaled."""
        ratio = self.timestep_fs / self.relaxation_time_fs
        keep, renew = math.exp(-ratio), -math.expm1(-ratio)
        normals = dynamics.noise.normals(turn, Purpose.THERMOSTAT)
        first = normals[dynamics.replicas.first_atom, 0]
        total = dynamics.sum_of_counted_squares(normals)
        moving = kinetic > 0.0
        share = unit / torch.where(moving, kinetic, unit + (unit == 0.0))
        root = (keep * renew * share).sqrt()
        square = keep + renew * share * total + 2.0 * first * root
        # With root = sqrt(c (1 - c) k T / 2 K), the sign of R_1 + c / root.
        sign = torch.where(first * root + keep < 0.0, -1.0, 1.0)
        alpha = sign * square.clamp(min=0.0).sqrt()
        return torch.where(moving, alpha, torch.ones_like(alpha))
