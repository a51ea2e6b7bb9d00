"""What does not change during a simulation, and the elementary moves that integrators are made of.

Integrators split a step into kicks (velocities move under the forces), drifts (positions move under the
velocities) and thermostat moves. All sums run within a replica, in the order of its atoms. On the host the
arithmetic is carried out by `native_moves`, with the same results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.md.constraints import Constraints, NoConstraints
from e2former_calc.md.noise import Noise, Purpose
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.running_forces import RunningForces
from e2former_calc.md.schedules import Targets, is_constant, targets_at
from e2former_calc.md.state import State
from e2former_calc.md.units import ACCELERATION, BOLTZMANN
from e2former_calc.potentials.neighbors import squared_length

if TYPE_CHECKING:
    from e2former_calc.md.native_moves import NativeMoves


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
        native: whether native kernels do the arithmetic where they can; False where operations are recorded.
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
    native: bool = True
    _constants: dict[Targets, Float[Tensor, " replicas"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counted: Bool[Tensor, "atoms 3"]
        self._mobility = ACCELERATION / self.masses
        index = 3 * self.replicas.local_index[:, None] + torch.arange(3, device=self.masses.device)
        self.counted = index < self.replicas.spread(self.degrees_of_freedom[:, None])
        self._half_masses = 0.5 * self.masses[:, 0] / ACCELERATION
        self._speeds: dict[Targets, Float[Tensor, "atoms 1"]] = {}
        self._is_free = type(self.constraints) is NoConstraints
        self._moves = self._native_moves() if self.native and self.masses.device.type == "cpu" else None

    def kick(self, state: State, duration_fs: float) -> State:
        """V + duration F / m, constrained."""
        if self._moves is not None:
            return self.with_velocities(state, self._moves.kick(state.velocities, state.forces, duration_fs))
        velocities = state.velocities + state.forces * (duration_fs * self._mobility)
        return self.with_velocities(state, velocities)

    def drift(self, state: State, duration_fs: float) -> State:
        """X + duration v; where constraints bend the way, v becomes displacement / duration."""
        if self._moves is not None:
            moved = self._moves.drift(state.positions, state.velocities, duration_fs)
        else:
            moved = state.positions + duration_fs * state.velocities
        positions = self.constraints.constrain_positions(state.positions, moved, state.cell)
        if self.held is not None:
            positions = torch.where(self.held[self.replicas.batch][:, None], state.positions, positions)
        if positions is moved:
            return state.changed(positions=positions)
        velocities = state.velocities + (positions - moved) / duration_fs
        return state.changed(positions=positions, velocities=velocities)

    def kick_and_drift(self, state: State, kick_fs: float, drift_fs: float) -> State:
        """One after the other."""
        if self._moves is None or self.held is not None or not self._is_free:
            return self.drift(self.kick(state, kick_fs), drift_fs)
        arrays = state.positions, state.velocities, state.forces
        positions, velocities = self._moves.kick_and_drift(*arrays, kick_fs=kick_fs, drift_fs=drift_fs)
        return state.changed(positions=positions, velocities=velocities)

    def with_velocities(self, state: State, velocities: Float[Tensor, "atoms 3"]) -> State:
        """The state with these velocities, constrained."""
        return state.changed(velocities=self.constraints.constrain_velocities(velocities, state.positions, state.cell))

    def renew_velocities(
        self, state: State, noise: Float[Tensor, "atoms 3"], speed: Float[Tensor, "atoms 1"], *, keep: float,
        renew: float,
    ) -> tuple[State, Float[Tensor, " replicas"], Float[Tensor, " replicas"]]:  # fmt: skip
        """Keep v + renew speed noise, constrained; the kinetic energy (eV) after that, and its gain."""
        if self._moves is not None and self._is_free:
            velocities, after, gain = self._moves.renew(state.velocities, noise, speed, keep=keep, renew=renew)
            return state.changed(velocities=velocities), after, gain
        before = self.kinetic_energy(state.velocities)
        state = self.with_velocities(state, keep * state.velocities + noise * (speed * renew))
        after = self.kinetic_energy(state.velocities)
        return state, after, after - before

    def langevin_moves(
        self, state: State, half_fs: float, speed: Float[Tensor, "atoms 1"], *, keep: float, renew: float
    ) -> tuple[State, Float[Tensor, " replicas"], Float[Tensor, " replicas"]]:
        """Kick, drift, `renew_velocities` with the thermostat's noise of this step, drift."""
        if self._moves is not None and self._is_free and self.held is None:
            counters = self.noise.counters(state.step, Purpose.THERMOSTAT)
            return self._moves.langevin(state, half_fs, counters, speed, keep=keep, renew=renew)
        state = self.kick_and_drift(state, half_fs, half_fs)
        noise = self.noise.normals(state.step, Purpose.THERMOSTAT)
        state, after, gain = self.renew_velocities(state, noise, speed, keep=keep, renew=renew)
        return self.drift(state, half_fs), after, gain

    def scale_velocities(self, state: State, factors: Float[Tensor, " replicas"]) -> State:
        """Velocities times the factor of their replica, constrained."""
        if self._moves is not None:
            velocities = self._moves.scale(state.velocities, factors)
        else:
            velocities = state.velocities * self.replicas.spread(factors)[:, None]
        return self.with_velocities(state, velocities)

    def evaluate(self, state: State) -> State:
        """The state with energy, forces and stress at its positions and cell."""
        result = self.forces.evaluate(state.positions, state.cell, stress=self.needs_stress)
        found = state.changed(energy=result.energy, forces=result.forces, stress=result.stress)
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
        if self._moves is not None:
            return self._moves.kinetic_energy(velocities)
        return self.replicas.sum(squared_length(velocities) * self._half_masses)

    def sum_of_counted_squares(self, values: Float[Tensor, "atoms 3"]) -> Float[Tensor, " replicas"]:
        """Of the first N_f values of each replica."""
        if self._moves is not None:
            return self._moves.sum_of_squares(values, self.degrees_of_freedom)
        squares = torch.where(self.counted, values * values, 0.0)
        return self.replicas.sum(squares[:, 0] + squares[:, 1] + squares[:, 2])

    def thermal_speed_at(self, temperature_K: Targets, step: int) -> Float[Tensor, "atoms 1"]:
        """`thermal_speed` at the temperature of a step; at a constant one it is calculated once."""
        if temperature_K in self._speeds:
            return self._speeds[temperature_K]
        speed = self.thermal_speed(self.thermal_energy(temperature_K, step))
        if is_constant(temperature_K):
            self._speeds[temperature_K] = speed
        return speed

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

    def _native_moves(self) -> NativeMoves:
        from e2former_calc.md.native_moves import NativeMoves

        return NativeMoves(self.replicas, mobility=self._mobility, half_masses=self._half_masses)
