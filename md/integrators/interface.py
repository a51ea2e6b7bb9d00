"""What an integrator is: a frozen set of parameters with a step function from state to state.

Notation of all integrators: h half a time step, B a kick (velocities under forces), A a drift (positions under
velocities), O a thermostat move, K the kinetic energy, N_f the number of degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.schedules import Targets
from e2former_calc.md.state import State


@runtime_checkable
class Integrator(Protocol):
    """An ensemble and the way to sample it. Implementations are frozen dataclasses of numbers."""

    @property
    def timestep_fs(self) -> float:
        """Length of a step."""
        ...

    @property
    def target_temperature(self) -> Targets | None:
        """What the thermostat aims at; None without a thermostat."""
        ...

    @property
    def needs_stress(self) -> bool:
        """True if evaluations must give the stress."""
        ...

    @property
    def conserves_momentum(self) -> bool:
        """True if linear and angular momentum that are zero stay zero under internal forces."""
        ...

    @property
    def changes_cell(self) -> bool:
        """True if lattice vectors move."""
        ...

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """The variables of thermostat and barostat at step 0, one row per replica."""
        ...

    def step(self, state: State, dynamics: Dynamics) -> State:
        """The state one step later."""
        ...

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In eV, at the moment of the step when velocities follow the target distribution most closely."""
        ...

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """Energy (eV) that has gone into thermostat and barostat; with potential and kinetic energy it is conserved."""
        ...


def check_positive(name: str, value: float, unit: str) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        ValueError: naming the value.
    """
    if not 0.0 < value < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, got {value} {unit}")
