"""Velocity Verlet: constant number of atoms, volume and energy.

B(h) A(dt) B(h), symplectic and time reversible (W. C. Swope et al., J. Chem. Phys. 76, 637 (1982)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.interface import check_positive
from e2former_calc.md.state import State


@dataclass(frozen=True)
class VelocityVerlet:
    """Newton's equations.

    Args:
        timestep_fs: length of a step.

    Raises:
        ValueError: if it is not positive.
    """

    timestep_fs: float

    target_temperature = None
    needs_stress = False
    conserves_momentum = True
    changes_cell = False

    def __post_init__(self) -> None:
        check_positive("timestep_fs", self.timestep_fs, "fs")

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No variables."""
        del state, dynamics
        return {}

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        return verlet_step(state, dynamics, self.timestep_fs)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """At the whole step."""
        return dynamics.kinetic_energy(state.velocities)

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Zero."""
        del dynamics
        return torch.zeros_like(state.energy)


def verlet_step(state: State, dynamics: Dynamics, timestep_fs: float) -> State:
    """B(h) A(dt) B(h); counts the step."""
    half = 0.5 * timestep_fs
    state = dynamics.kick_and_drift(state, half, timestep_fs)
    state = dynamics.kick(dynamics.evaluate(state), half)
    return state.changed(step=state.step + 1)
