"""Nosé–Hoover chains: constant temperature, deterministic and time reversible.

G. J. Martyna, M. L. Klein, M. E. Tuckerman, J. Chem. Phys. 97, 2635 (1992); NHC(h) B(h) A(dt) B(h) NHC(h) after
G. J. Martyna et al., Mol. Phys. 87, 1117 (1996), with the factorisations of Suzuki and Yoshida.
Symbols of the source: xi_k `chain_position`, v_xi_k `chain_velocity` (1/fs), Q_1 = N_f k T tau^2,
Q_k = k T tau^2. Conserved: E + sum_k Q_k v_xi_k^2 / 2 + N_f k T xi_1 + k T sum_(k>1) xi_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.integrators.verlet import verlet_step
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.state import State

POSITION, VELOCITY = "chain_position", "chain_velocity"

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
        """exp(L_NHC dt / 2) on the chain and the velocities."""
        velocities, positions = (list(state.extended[name].unbind(1)) for name in (VELOCITY, POSITION))
        inertia = thermal * self.relaxation_time_fs**2
        number = dynamics.degrees_of_freedom
        first = (number * inertia, number * thermal)
        kinetic = 2.0 * dynamics.kinetic_energy(state.velocities)
        scale = torch.ones_like(kinetic)
        for weight in _WEIGHTS[self.order] * self.substeps:
            duration = 0.5 * weight * self.timestep_fs / self.substeps
            self._accelerate(velocities, kinetic, first, (inertia, thermal), duration, outwards=False)
            factor = (-duration * velocities[0]).exp()
            scale = scale * factor
            kinetic = kinetic * factor * factor
            positions = [x + duration * v for x, v in zip(positions, velocities, strict=True)]
            self._accelerate(velocities, kinetic, first, (inertia, thermal), duration, outwards=True)
        state = dynamics.with_velocities(state, state.velocities * dynamics.replicas.spread(scale)[:, None])
        chain = {POSITION: torch.stack(positions, 1), VELOCITY: torch.stack(velocities, 1)}
        return replace(state, extended={**state.extended, **chain})

    def _accelerate(
        self,
        velocities: list[Tensor],
        kinetic: Tensor,
        first: tuple[Tensor, Tensor],
        rest: tuple[Tensor, Tensor],
        duration_fs: float,
        *,
        outwards: bool,
    ) -> None:
        """Half of `duration_fs` for the velocities of the chain, in place of the list, from its end or to its end.

        `kinetic` is 2 K; `first` and `rest` hold (Q, twice the mean energy) of the first and the other links.
        """
        last = self.chain_length - 1
        for k in range(last + 1) if outwards else range(last, -1, -1):
            inertia, mean = first if k == 0 else rest
            energy = kinetic if k == 0 else (first if k == 1 else rest)[0] * velocities[k - 1] ** 2
            push = 0.5 * duration_fs * (energy - mean) / inertia
            if k == last:
                velocities[k] = velocities[k] + push
            else:
                drag = (-0.25 * duration_fs * velocities[k + 1]).exp()
                velocities[k] = (velocities[k] * drag + push) * drag
