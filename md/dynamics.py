"""What does not change during a simulation, and the elementary moves that integrators are made of.

Integrators split a step into kicks (velocities move under the forces), drifts (positions move under the
velocities) and thermostat moves. All sums run within a replica, in the order of its atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.md.constraints import Constraints
from e2former_calc.md.noise import Noise
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.running_forces import RunningForces
from e2former_calc.md.schedules import Targets, is_constant, targets_at
from e2former_calc.md.state import State
from e2former_calc.md.units import ACCELERATION, BOLTZMANN
from e2former_calc.potentials.neighbors import squared_length


@dataclass(eq=False)
class Dynamics:
    """Masses, forces, constraints and random numbers of a batch of replicas.

    Attributes:
        replicas: which atom belongs where.
        masses: amu, one column.
        pbc: periodicity along each lattice vector.
        forces: gives energies and forces of the replicas that run.
        constraints: on positions and velocities.
        noise: random numbers.
        degrees_of_freedom: of each replica, constraints and conserved motions at rest taken off.
        molecule: index of the molecule that each atom belongs to; None if nobody asked.
        counted: the first N_f coordinates of each replica: as many as it has degrees of freedom.
        held: replicas that have been stopped; drifts leave them where they are, and they are not evaluated. None if
            there are none.
        needs_stress: whether evaluations ask for the stress.
    """

    replicas: Replicas
    masses: Float[Tensor, "atoms 1"]
    pbc: Bool[Tensor, "replicas 3"]
    forces: RunningForces
    constraints: Constraints
    noise: Noise
    degrees_of_freedom: Float[Tensor, " replicas"]
    needs_stress: bool = False
    molecule: Int[Tensor, " atoms"] | None = None
    held: Bool[Tensor, " replicas"] | None = None
    _constants: dict[Targets, Float[Tensor, " replicas"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counted: Bool[Tensor, "atoms 3"]
        self._mobility = ACCELERATION / self.masses
        index = 3 * self.replicas.local_index[:, None] + torch.arange(3, device=self.masses.device)
        self.counted = index < self.replicas.spread(self.degrees_of_freedom[:, None])
        self._half_masses = 0.5 * self.masses[:, 0] / ACCELERATION

    def kick(self, state: State, duration_fs: float) -> State:
        """V + duration F / m, constrained."""
        velocities = state.velocities + state.forces * (duration_fs * self._mobility)
        return self.with_velocities(state, velocities)

    def drift(self, state: State, duration_fs: float) -> State:
        """X + duration v; where constraints bend the way, v becomes displacement / duration."""
        moved = state.positions + duration_fs * state.velocities
        positions = self.constraints.constrain_positions(state.positions, moved, state.cell)
        if self.held is not None:
            positions = torch.where(self.held[self.replicas.batch][:, None], state.positions, positions)
        if positions is moved:
            return replace(state, positions=positions)
        velocities = state.velocities + (positions - moved) / duration_fs
        return replace(state, positions=positions, velocities=velocities)

    def with_velocities(self, state: State, velocities: Float[Tensor, "atoms 3"]) -> State:
        """The state with these velocities, constrained."""
        return replace(state, velocities=self.constraints.constrain_velocities(velocities, state.positions, state.cell))

    def evaluate(self, state: State) -> State:
        """The state with energy, forces and stress at its positions and cell."""
        result = self.forces.evaluate(state.positions, state.cell, stress=self.needs_stress)
        found = replace(state, energy=result.energy, forces=result.forces, stress=result.stress)
        return found if self.held is None else found.keep(self.held, self.held[self.replicas.batch], state)

    def hold(self, stopped: Bool[Tensor, " replicas"]) -> None:
        """Leave these replicas where they are from now on."""
        if bool(stopped.any()):
            self.held = stopped
            self.forces.select(~stopped)
        else:
            self.held = None

    def kinetic_energy(self, velocities: Float[Tensor, "atoms 3"]) -> Float[Tensor, " replicas"]:
        """In eV."""
        return self.replicas.sum(squared_length(velocities) * self._half_masses)

    def thermal_speed(self, thermal_energy: Float[Tensor, " replicas"]) -> Float[Tensor, "atoms 1"]:
        """sqrt(k T / m) in Å/fs for k T in eV."""
        return (self.replicas.spread(thermal_energy)[:, None] * self._mobility).sqrt()

    def center_of_mass(self, values: Float[Tensor, "atoms 3"]) -> Float[Tensor, "replicas 3"]:
        """Mean of positions or velocities, weighted with the masses."""
        return self.replicas.sum(values * self.masses) / self.replicas.sum(self.masses)

    def temperature(self, kinetic_energy: Float[Tensor, " replicas"]) -> Float[Tensor, " replicas"]:
        """2 K / (N_f k) in K, for a kinetic energy K in eV."""
        count: Tensor = BOLTZMANN * self.degrees_of_freedom
        return 2.0 * kinetic_energy / count

    def volume(self, cell: Float[Tensor, "replicas 3 3"]) -> Float[Tensor, " replicas"]:
        """Å^3, by products of elements so that a batch changes no bit."""
        a, b, c = cell.unbind(1)
        product = a * torch.linalg.cross(b, c, dim=-1)
        volume: Tensor = (product[:, 0] + product[:, 1] + product[:, 2]).abs()
        return volume

    def targets(self, targets: Targets, step: int) -> Float[Tensor, " replicas"]:
        """Values of targets at a step; constant ones are put on the device once."""
        if targets in self._constants:
            return self._constants[targets]
        values = targets_at(targets, step, self.replicas.n_replicas)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.masses.device)
        if is_constant(targets):
            self._constants[targets] = tensor
        return tensor

    def thermal_energy(self, temperature_K: Targets, step: int) -> Float[Tensor, " replicas"]:
        """K T in eV."""
        return BOLTZMANN * self.targets(temperature_K, step)
