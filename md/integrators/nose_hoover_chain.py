"""Nosé–Hoover chains: constant temperature, deterministic and time reversible.

G. J. Martyna, M. L. Klein, M. E. Tuckerman, J. Chem. Phys. 97, 2635 (1992); NHC(h) B(h) A(dt) B(h) NHC(h) after
G. J. Martyna et al., Mol. Phys. 87, 1117 (1996), with the factorisations of Suzuki and Yoshida.
Symbols of the source: xi_k `chain_position`, v_xi_k `chain_velocity` (1/fs), Q_1 = N_f k T tau^2,
Q_k = k T tau^2. Conserved: E + sum_k Q_k v_xi_k^2 / 2 + N_f k T xi_1 + k T sum_(k>1) xi_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.verlet import verlet_step
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

POSITION, VELOCITY = "chain_position", "chain_velocity"

Number = TypeVar("Number", float, Tensor)
"""A number of one replica, or a tensor with a number for each of them."""
Exponential = Callable[[Number], Number]

_CUBE_ROOT = 2.0 ** (1.0 / 3.0)
_YOSHIDA_5 = 1.0 / (4.0 - 4.0 ** (1.0 / 3.0))
_YOSHIDA_7 = (0.784513610477560, 0.235573213359357, -1.17767998417887)
_WEIGHTS: Mapping[int, tuple[float, ...]] = {
    1: (1.0,),
    3: (1.0 / (2.0 - _CUBE_ROOT), -_CUBE_ROOT / (2.0 - _CUBE_ROOT), 1.0 / (2.0 - _CUBE_ROOT)),
    5: (_YOSHIDA_5, _YOSHIDA_5, 1.0 - 4.0 * _YOSHIDA_5, _YOSHIDA_5, _YOSHIDA_5),
    7: (*_YOSHIDA_7, 1.0 - 2.0 * sum(_YOSHIDA_7), *reversed(_YOSHIDA_7)),
}


@dataclass(frozen=True)
class NoseHooverChain:
    """Velocity Verlet between two half steps of a chain of thermostats.

    A chain does not make a few harmonic oscillators ergodic; use `Langevin` for them.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        relaxation_time_fs: tau, period of the thermostat divided by 2 pi; 100 fs is usual.
        chain_length: number of thermostats, at least 1.
        order: number of Suzuki–Yoshida weights: 1, 3, 5 or 7.
        substeps: the thermostat's half step is divided by this too.

    Raises:
        ValueError: for times that are not positive, a temperature below 1e-6 K, or numbers that are not allowed.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    relaxation_time_fs: float = 100.0
    chain_length: int = 3
    order: int = 3
    substeps: int = 1

    needs_stress = False
    conserves_momentum = True
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")
        check_positive("relaxation_time_fs", self.relaxation_time_fs, "fs")
        check_targets("temperature_K", self.temperature_K, minimum=1e-6, unit="K")
        if self.order not in _WEIGHTS:
            raise ValueError(f"`order` must be 1, 3, 5 or 7, got {self.order}")
        if self.chain_length < 1 or self.substeps < 1:
            raise ValueError(
                f"`chain_length` and `substeps` must be at least 1, got {self.chain_length} and {self.substeps}"
            )

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """A chain at rest."""
        del dynamics
        zeros = state.energy.new_zeros(len(state.energy), self.chain_length)
        return {POSITION: zeros, VELOCITY: zeros.clone()}

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        thermal = dynamics.thermal_energy(self.temperature_K, state.step)
        state = self._half_step(state, dynamics, thermal)
        state = verlet_step(state, dynamics, self.timestep_fs)
        return self._half_step(state, dynamics, thermal)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """At the whole step."""
        return dynamics.kinetic_energy(state.velocities)

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Energy of the chain."""
        thermal = dynamics.thermal_energy(self.temperature_K, max(state.step - 1, 0))
        number = dynamics.degrees_of_freedom
        total = torch.zeros_like(thermal)
        for k in range(self.chain_length):
            weight = number if k == 0 else torch.ones_like(number)
            inertia = weight * thermal * self.relaxation_time_fs**2
            total = total + 0.5 * inertia * state.extended[VELOCITY][:, k] ** 2
            total = total + weight * thermal * state.extended[POSITION][:, k]
        return total

    def _half_step(self, state: State, dynamics: Dynamics, thermal: Tensor) -> State:
        """exp(L_NHC dt / 2) on the chain and the velocities.

        The links of a chain need a hundred operations on single numbers, one after the other. On the processor they
        are numbers of Python, replica by replica, which takes a small part of the time of tensors with one element.
        """
        number = dynamics.degrees_of_freedom
        drive = dynamics.kinetic_energy(state.velocities) * (2.0 / self.relaxation_time_fs**2) / (number * thermal)
        positions, velocities = state.extended[POSITION], state.extended[VELOCITY]
        if drive.device.type == "cpu":
            rows = (positions.tolist(), velocities.tolist(), drive.tolist(), number.tolist())
            moved = [self._advance_or_break(*row) for row in zip(*rows, strict=True)]
            positions, velocities, growth = (torch.tensor(x, dtype=torch.float64) for x in zip(*moved, strict=True))
        else:
            columns = self._advance(list(positions.unbind(1)), list(velocities.unbind(1)), drive, number, torch.exp)
            positions, velocities, growth = torch.stack(columns[0], 1), torch.stack(columns[1], 1), columns[2]
        state = dynamics.scale_velocities(state, (-growth).exp())
        return state.changed(extended={**state.extended, POSITION: positions, VELOCITY: velocities})

    def _advance_or_break(
        self, positions: list[float], velocities: list[float], drive: float, number: float
    ) -> tuple[list[float], list[float], float]:
        """`_advance`; NaN, which stops the replica, where its numbers become too large."""
        try:
            return self._advance(positions, velocities, drive, number, math.exp)
        except OverflowError:
            return [math.nan] * self.chain_length, [math.nan] * self.chain_length, math.nan

    def _advance(
        self, positions: list[Number], velocities: list[Number], drive: Number, number: Number, exp: Exponential[Number]
    ) -> tuple[list[Number], list[Number], Number]:
        """Half a step of the links.

        Args:
            positions: xi_k.
            velocities: v_xi_k; the list is changed.
            drive: 2 K / (N_f k T tau^2).
            number: N_f.
            exp: exponential function of such numbers.

        Returns:
            Positions and velocities of the links, and minus the logarithm of the factor on the velocities of atoms.
        """
        growth = 0.0 * drive
        links = range(self.chain_length)
        for weight in _WEIGHTS[self.order] * self.substeps:
            duration = 0.5 * weight * self.timestep_fs / self.substeps
            self._accelerate(velocities, drive, number, exp, 0.5 * duration, reversed(links))
            positions = [x + duration * v for x, v in zip(positions, velocities, strict=True)]
            passed = duration * velocities[0]
            growth = growth + passed
            drive = drive * exp(-2.0 * passed)
            self._accelerate(velocities, drive, number, exp, 0.5 * duration, links)
        return positions, velocities, growth

    def _accelerate(
        self, velocities: list[Number], drive: Number, number: Number, exp: Exponential[Number], duration: float,
        links: Iterable[int],
    ) -> None:  # fmt: skip
        """Change the velocities of the links in the list, one after the other.

        Accelerations are 2 K / (N_f k T tau^2) - 1 / tau^2 for the first link, N_f v_1^2 - 1 / tau^2 for the second
        and v_(k-1)^2 - 1 / tau^2 for the others.
        """
        last, rate, slowing = self.chain_length - 1, 1.0 / self.relaxation_time_fs**2, -0.5 * duration
        for k in links:
            source = drive if k == 0 else velocities[k - 1] * velocities[k - 1]
            if k == 1:
                source = source * number
            push = duration * (source - rate)
            if k == last:
                velocities[k] = velocities[k] + push
            else:
                drag = exp(slowing * velocities[k + 1])
                velocities[k] = (velocities[k] * drag + push) * drag
