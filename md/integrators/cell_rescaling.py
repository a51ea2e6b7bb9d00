"""Langevin dynamics at constant pressure by stochastic cell rescaling, isotropic.

M. Bernetti, G. Bussi, J. Chem. Phys. 153, 114107 (2020), in the variable lambda = sqrt(V), whose noise is constant:

d lambda = -(beta lambda / 2 tau) (P_0 - P - k T / 2 V) dt + sqrt(k T beta / 2 tau) dW,

with the isothermal compressibility beta, the target P_0 and the internal pressure P = 2 K / 3 V - tr(stress) / 3.
Positions scale with the cell, velocities with its inverse, so that volumes follow the isothermal-isobaric
distribution exactly in the limit of small steps, whatever tau and beta are; beta only sets the pace.
One step is B(h) A(h) O(dt) C(dt) A(h) B(h); C takes the stress of the last evaluation and the kinetic energy after O.

The equation is the overdamped motion of lambda under f = -d(E + P_0 V - k T ln lambda)/d lambda with the mobility
mu = beta / 4 tau. The effective energy (G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007)) changes in C by
minus k T times the logarithm of the ratio of the probabilities of the move back and forth, weighted by the ensemble,

d(E + P_0 V - k T ln lambda) + (f + f') d lambda / 2 + mu dt (f'^2 - f^2) / 4, f' after the move,

and stays constant as far as the time step is short enough. f' takes the stress of the evaluation that ends the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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

BAROSTAT_ENERGY = "barostat_energy"


@dataclass(frozen=True, eq=False)
class VolumeMove:
    """A move of lambda, remembered until the pressure after it is known.

    Attributes:
        thermal_energy: k T in eV.
        target: P_0 in eV/Å^3.
        pace: 2 mu dt = beta dt / 2 tau in Å^3/eV.
        root: lambda before the move, Å^1.5.
        new_root: lambda after the move.
        force: f before the move, eV/Å^1.5.
    """

    thermal_energy: Float[Tensor, " replicas"]
    target: Float[Tensor, " replicas"]
    pace: float
    root: Float[Tensor, " replicas"]
    new_root: Float[Tensor, " replicas"]
    force: Float[Tensor, " replicas"]

    @property
    def scale(self) -> Float[Tensor, " replicas"]:
        """Factor on lengths. A power of torch rounds differently inside and at the end of an array, exp does not."""
        return ((2.0 / 3.0) * (self.new_root / self.root).log()).exp()

    def effective_energy(self, virial: Float[Tensor, " replicas"]) -> Float[Tensor, " replicas"]:
        """Effective energy (eV) of the move without dE, from P V after it."""
        force = volume_force(self.new_root, virial, self.target, self.thermal_energy)
        change = self.new_root - self.root
        state = self.target * change * (self.new_root + self.root) - self.thermal_energy * (
            (self.new_root / self.root).log()
        )
        squares = force * force - self.force * self.force
        return state + 0.5 * (force + self.force) * change + 0.125 * self.pace * squares


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
        check_rescaling(self)

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat and no work yet; the kinetic energy of the first velocities."""
        return first_variables(self, state, dynamics)

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        half = 0.5 * self.timestep_fs
        state = dynamics.kick_and_drift(state, half, half)
        state = ornstein_uhlenbeck(
            state, dynamics, self.temperature_K, friction_per_ps=self.friction_per_ps, duration_fs=self.timestep_fs
        )
        kinetic = state.extended[HALF_STEP_KINETIC_ENERGY]
        random = dynamics.noise.replica_normals(state.step, Purpose.BAROSTAT)[:, 0]
        move = volume_move(self, state, dynamics, kinetic_energy=kinetic, random=random)
        state = scaled(state, dynamics, move.scale)
        velocities = state.velocities / dynamics.replicas.spread(move.scale)[:, None]
        state = dynamics.evaluate(dynamics.drift(dynamics.with_velocities(state, velocities), half))
        virial = total_virial(state, dynamics, kinetic / (move.scale * move.scale))
        state = with_barostat_energy(state, move.effective_energy(virial))
        return dynamics.kick(state, half).changed(step=state.step + 1)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In the middle of the last step."""
        del dynamics
        return state.extended[HALF_STEP_KINETIC_ENERGY]

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """What makes the sum the effective energy: minus the heat taken up and the work done by the cell."""
        del dynamics
        return state.extended[BAROSTAT_ENERGY] - state.extended[HEAT]


@runtime_checkable
class Rescaling(Protocol):
    """The parameters that cell rescaling has in all its forms."""

    @property
    def timestep_fs(self) -> float:
        """Length of a step."""
        ...

    @property
    def temperature_K(self) -> Targets:  # noqa: N802
        """Of the bath."""
        ...

    @property
    def pressure_bar(self) -> Targets:
        """P_0."""
        ...

    @property
    def friction_per_ps(self) -> float:
        """Of the thermostat."""
        ...

    @property
    def pressure_relaxation_time_fs(self) -> float:
        """Tau."""
        ...

    @property
    def compressibility_per_bar(self) -> float:
        """Beta."""
        ...


def check_rescaling(parameters: Rescaling) -> None:
    """Refuse parameters out of range.

    Raises:
        ValueError: naming the value.
    """
    check_positive("timestep_fs", parameters.timestep_fs, "fs")
    check_positive("pressure_relaxation_time_fs", parameters.pressure_relaxation_time_fs, "fs")
    check_positive("compressibility_per_bar", parameters.compressibility_per_bar, "1/bar")
    check_targets("temperature_K", parameters.temperature_K, minimum=0.0, unit="K")
    check_targets("pressure_bar", parameters.pressure_bar, minimum=-math.inf, unit="bar")
    check_targets("friction_per_ps", parameters.friction_per_ps, minimum=0.0, unit="1/ps")


def first_variables(parameters: Rescaling, state: State, dynamics: Dynamics) -> dict[str, Tensor]:
    """Heat, energy of the barostat and kinetic energy at step 0.

    Raises:
        ValueError: if the number of target pressures is not that of the replicas.
    """
    dynamics.targets(parameters.pressure_bar, 0)
    return {
        HEAT: torch.zeros_like(state.energy),
        BAROSTAT_ENERGY: torch.zeros_like(state.energy),
        HALF_STEP_KINETIC_ENERGY: dynamics.kinetic_energy(state.velocities),
    }


def volume_force(
    root: Float[Tensor, " replicas"],
    virial: Float[Tensor, " replicas"],
    target: Float[Tensor, " replicas"],
    thermal_energy: Float[Tensor, " replicas"],
) -> Float[Tensor, " replicas"]:
    """F = -2 lambda (P_0 - P - k T / 2 V) from P V."""
    return (2.0 * virial + thermal_energy) / root - 2.0 * root * target


def total_virial(
    state: State, dynamics: Dynamics, kinetic_energy: Float[Tensor, " replicas"]
) -> Float[Tensor, " replicas"]:
    """P V = (2 K - V tr(stress)) / 3 in eV."""
    tension = state.stress[:, 0, 0] + state.stress[:, 1, 1] + state.stress[:, 2, 2]
    return (2.0 * kinetic_energy - dynamics.volume(state.cell) * tension) / 3.0


def volume_move(
    parameters: Rescaling,
    state: State,
    dynamics: Dynamics,
    *,
    kinetic_energy: Float[Tensor, " replicas"],
    random: Float[Tensor, " replicas"],
) -> VolumeMove:
    """A step of the equation of lambda; `random` has a normal number for each replica."""
    thermal = dynamics.thermal_energy(parameters.temperature_K, state.step)
    target = BAR * dynamics.targets(parameters.pressure_bar, state.step)
    pace = parameters.compressibility_per_bar / BAR * parameters.timestep_fs
    pace = pace / (2.0 * parameters.pressure_relaxation_time_fs)
    root = dynamics.volume(state.cell).sqrt()
    force = volume_force(root, total_virial(state, dynamics, kinetic_energy), target, thermal)
    new_root = (root + 0.5 * pace * force + (thermal * pace).sqrt() * random).abs()
    return VolumeMove(thermal, target, pace, root, new_root, force)


def with_barostat_energy(state: State, change: Float[Tensor, " replicas"]) -> State:
    """The state with this added to the energy of the barostat."""
    total = state.extended[BAROSTAT_ENERGY] + change
    return state.changed(extended={**state.extended, BAROSTAT_ENERGY: total})


def scaled(
    state: State, dynamics: Dynamics, scale: Float[Tensor, " replicas"], centers: Float[Tensor, "atoms 3"] | None = None
) -> State:
    """Cell and positions multiplied about the centre of mass; with `centers` atoms move rigidly with their centre."""
    factor = dynamics.replicas.spread(scale)[:, None]
    moving = state.positions if centers is None else centers
    middle = dynamics.replicas.spread(dynamics.center_of_mass(state.positions))
    positions = state.positions + (factor - 1.0) * (moving - middle)
    return state.changed(positions=positions, cell=state.cell * scale[:, None, None])
