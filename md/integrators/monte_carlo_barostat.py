"""Constant pressure by Monte Carlo moves of the volume: needs energies only, no stress.

Every few steps of a thermostat a change of ln V, uniform in +-w, is tried; the centres of mass of molecules (or the
atoms) scale with the cell. It is accepted with the probability
min(1, exp(-[dE + P dV - (M + 1) k T ln(V'/V)] / k T)) for M molecules (D. Frenkel, B. Smit, Understanding
Molecular Simulation, 2nd ed., section 5.4.2; K.-H. Chow, D. M. Ferguson, Comput. Phys. Commun. 91, 283 (1995)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.bussi import Bussi
from e2former_calc.md.integrators.cell_rescaling import scaled
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.langevin import Langevin
from e2former_calc.md.integrators.nose_hoover_chain import NoseHooverChain
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State
from e2former_calc.md.units import BAR

ATTEMPTS, ACCEPTED, WORK = "volume_attempts", "volume_accepted", "volume_energy"


@dataclass(frozen=True)
class MonteCarloBarostat:
    """Volume moves on top of a thermostat.

    Args:
        thermostat: `Langevin`, `Bussi` or `NoseHooverChain`; gives time step and temperature.
        pressure_bar: target pressure: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        every: number of steps between attempts.
        max_log_volume_change: w; about a third to a half of the attempts should be accepted.
        rigid_molecules: scale the centres of molecules (bonded by distance at the start), not the atoms.

    Raises:
        ValueError: for numbers out of range.
    """

    thermostat: Langevin | Bussi | NoseHooverChain
    pressure_bar: Targets
    every: int = 25
    max_log_volume_change: float = 0.01
    rigid_molecules: bool = True

    needs_stress = False
    changes_cell = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1 step, got {self.every}")
        check_positive("max_log_volume_change", self.max_log_volume_change, "")
        check_targets("pressure_bar", self.pressure_bar, minimum=-math.inf, unit="bar")

    @property
    def timestep_fs(self) -> float:
        """Length of a step."""
        return self.thermostat.timestep_fs

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the thermostat."""
        return self.thermostat.temperature_K

    @property
    def conserves_momentum(self) -> bool:
        """As the thermostat."""
        return self.thermostat.conserves_momentum

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """Variables of the thermostat, and counters of moves."""
        dynamics.targets(self.pressure_bar, 0)
        zeros = {name: torch.zeros_like(state.energy) for name in (ATTEMPTS, ACCEPTED, WORK)}
        return {**self.thermostat.start(state, dynamics), **zeros}

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step of the thermostat, and a move of the volume if it is due."""
        state = self.thermostat.step(state, dynamics)
        return self._move(state, dynamics) if state.step % self.every == 0 else state

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """As the thermostat reports it."""
        return self.thermostat.kinetic_energy(state, dynamics)

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Energy of the thermostat, minus what accepted moves have added to the potential energy."""
        return self.thermostat.bath_energy(state, dynamics) - state.extended[WORK]

    def _move(self, state: State, dynamics: Dynamics) -> State:
        molecule, count = self._molecules(dynamics)
        uniform = dynamics.noise.replica_uniforms(state.step, Purpose.ACCEPTANCE)
        log_change = self.max_log_volume_change * (2.0 * uniform[:, 0] - 1.0)
        volume = dynamics.volume(state.cell)
        centers = None if molecule is None else _centers(state.positions, molecule, dynamics.masses)
        trial = dynamics.evaluate(scaled(state, dynamics, (log_change / 3.0).exp(), centers))
        thermal = dynamics.thermal_energy(self.target_temperature, state.step)
        pressure = BAR * dynamics.targets(self.pressure_bar, state.step)
        cost = (
            trial.energy - state.energy + pressure * volume * log_change.expm1() - (count + 1.0) * thermal * log_change
        )
        # A trial that is not finite compares as False and is refused.
        accepted = thermal * uniform[:, 1].log() < -cost
        refused = ~accepted
        kept = trial.keep(refused, refused[dynamics.replicas.batch], state)
        counters = {
            ATTEMPTS: state.extended[ATTEMPTS] + 1.0,
            ACCEPTED: state.extended[ACCEPTED] + accepted.to(torch.float64),
            WORK: state.extended[WORK] + (kept.energy - state.energy),
        }
        return replace(kept, extended={**state.extended, **counters})

    def _molecules(self, dynamics: Dynamics) -> tuple[Int[Tensor, " atoms"] | None, Float[Tensor, " replicas"]]:
        """Molecule of each atom and number of molecules; None and the number of atoms if atoms scale."""
        if not self.rigid_molecules or dynamics.molecule is None:
            return None, dynamics.replicas.sizes.to(torch.float64)
        first = torch.zeros_like(dynamics.masses[:, 0])
        first[1:] = (dynamics.molecule[1:] > torch.cummax(dynamics.molecule, 0).values[:-1]).to(torch.float64)
        first[:1] = 1.0
        return dynamics.molecule, dynamics.replicas.sum(first)


def _centers(
    positions: Float[Tensor, "atoms 3"], molecule: Int[Tensor, " atoms"], masses: Float[Tensor, "atoms 1"]
) -> Float[Tensor, "atoms 3"]:
    """Centre of mass of the molecule of each atom; unwrapped positions keep molecules whole."""
    order = torch.argsort(molecule, stable=True)
    sizes = torch.bincount(molecule)
    total, weight = (
        torch.segment_reduce(values[order], "sum", lengths=sizes, unsafe=True)
        for values in (positions * masses, masses)
    )
    return (total / weight)[molecule]
