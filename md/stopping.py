"""When a replica is stopped: broken numbers, huge forces, wrong temperature, collapsed or broken molecules.

A stopped replica keeps the state of its last good step, and the others go on. What is not finite and what
exceeds the force bound is seen in every step, on the device. Rules about geometry are looked at every
`check_every` steps; a replica that breaks one goes back to the last check that it passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.md.bonds import Pairs, bonded_pairs, molecules
from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.forces import one_structure
from e2former_calc.md.integrators.adaptive_quantum_thermal_bath import AdaptiveQuantumThermalBath
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.integrators.quantum_thermal_bath import QuantumThermalBath
from e2former_calc.md.state import State
from e2former_calc.potentials.neighbors import squared_length
from e2former_calc.potentials.system import System

KINETIC_SUM = "kinetic_energy_sum"


class StopReason(IntEnum):
    """Why a replica was stopped."""

    RUNNING = 0
    NOT_FINITE = 1
    FORCE = 2
    TEMPERATURE = 3
    DISTANCE = 4
    BOND = 5
    FRAGMENTS = 6


@dataclass(frozen=True)
class StoppingRules:
    """Rules; None switches one off. Values that are not finite always stop a replica.

    Attributes:
        max_force: bound on the length of every force on an atom that is not fixed.
        temperature_window: bounds on the mean temperature of consecutive windows, as multiples of the
            temperature of the thermostat; without a thermostat the rule does nothing.
        window_fs: length of these windows.
        min_distance_ratio: no two atoms that were not bonded at the start may come closer than this
            multiple of the sum of their covalent radii.
        max_bond_change: no bond of the start may become longer or shorter by more than this.
        keep_fragments: the number of molecules must not change.
        check_every: number of steps between looks at the geometry.

    Raises:
        ValueError: for bounds that are not positive.
    """

    max_force: float | None = 50.0
    temperature_window: tuple[float, float] | None = None
    window_fs: float = 50.0
    min_distance_ratio: float | None = None
    max_bond_change: float | None = None
    keep_fragments: bool = False
    check_every: int = 10

    def __post_init__(self) -> None:
        for name in ("max_force", "window_fs", "min_distance_ratio", "max_bond_change", "check_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}")
        window = self.temperature_window
        if window is not None and not 0.0 <= window[0] < window[1]:
            raise ValueError(f"`temperature_window` must be two ascending multiples, got {window}")

    @property
    def look_at_geometry(self) -> bool:
        """True if any rule needs distances."""
        return self.min_distance_ratio is not None or self.max_bond_change is not None or self.keep_fragments


@dataclass(frozen=True)
class Stop:
    """What stopped a replica: the rule, the step that broke it, a sentence, and the step of the state that is kept."""

    reason: StopReason
    step: int
    message: str
    last_good_step: int


class Watch:
    """Applies rules to a simulation.

    Args:
        rules: what to look at.
        system: the structures of the start, which say what is bonded.
        integrator: its step and target temperature.
        dynamics: which atoms are fixed.

    Raises:
        ValueError: for a temperature window with a quantum thermal bath.
    """

    def __init__(self, rules: StoppingRules, system: System, integrator: Integrator, dynamics: Dynamics) -> None:
        self._rules, self._system = rules, system.to("cpu")
        self._integrator, self._dynamics = integrator, dynamics
        bound = float("inf") if rules.max_force is None else rules.max_force
        fixed = dynamics.constraints.fixed_atoms
        self._squared_bound = torch.where(fixed, torch.inf, torch.full_like(dynamics.masses[:, 0], bound**2))
        self._native_look = _native_look() if fixed.device.type == "cpu" else None
        self._window = max(1, round(rules.window_fs / integrator.timestep_fs))
        self._limits = rules.temperature_window if integrator.target_temperature is not None else None
        if self._limits is not None and isinstance(integrator, QuantumThermalBath | AdaptiveQuantumThermalBath):
            raise ValueError(
                f"`temperature_window` {self._limits} has no meaning with {type(integrator).__name__}, whose kinetic "
                "temperature contains the zero-point energy: leave it out"
            )
        self._sound = torch.zeros_like(dynamics.replicas.sizes)
        self._bonds: Pairs | None = bonded_pairs(system) if rules.look_at_geometry else None
        self.last_good: State | None = None

    def start(self, energy: Float[Tensor, " replicas"]) -> dict[str, Tensor]:
        """The running sums at step 0."""
        return {} if self._limits is None else {KINETIC_SUM: torch.zeros_like(energy)}

    def check(self, old: State, new: State) -> State:
        """`new`, with replicas that break a rule put back and marked; `old` is the state one step before."""
        sound = self._is_sound(new)
        code = self._sound if sound else self._broken_numbers(new)
        if self._limits is not None:
            new, code = self._temperature(new, code, self._limits)
            sound = sound and not bool(code.any())
        if not sound or self._dynamics.held is not None:
            new = self._stop(new, code, old, again=True)
        if self._rules.look_at_geometry and new.step % self._rules.check_every == 0:
            code = self._geometry(new)
            if bool(code.any()):
                new = self._stop(new, code, self.last_good or old, again=False)
            self.last_good = new
        return new

    def describe(self, state: State, index: int) -> Stop | None:
        """What stopped a replica; None if it runs."""
        reason = StopReason(int(state.stop_code[index]))
        if reason is StopReason.RUNNING:
            return None
        message = {
            StopReason.NOT_FINITE: "energy, forces or velocities were not finite",
            StopReason.FORCE: f"a force was larger than {self._rules.max_force} eV/Å",
            StopReason.TEMPERATURE: f"the temperature over {self._rules.window_fs:g} fs was outside "
            f"{self._rules.temperature_window} times that of the thermostat",
            StopReason.DISTANCE: "two atoms that are not bonded came closer than "
            f"{self._rules.min_distance_ratio} times the sum of their covalent radii",
            StopReason.BOND: f"a bond changed by more than {self._rules.max_bond_change} Å",
            StopReason.FRAGMENTS: "the number of molecules changed",
        }[reason]
        failure = self._dynamics.forces.failures.get(index)
        if reason is StopReason.NOT_FINITE and failure is not None:
            message = f"{message}: {failure}"
        step = int(state.stop_step[index])
        back = self._rules.check_every if reason >= StopReason.DISTANCE else 1
        return Stop(reason, step, message, last_good_step=step - back)

    def _is_sound(self, new: State) -> bool:
        """Whether a look at everything at once, cheap on the host, finds nothing."""
        if self._native_look is None:
            return False
        arrays = new.energy.numpy(), new.forces.contiguous().numpy(), new.velocities.contiguous().numpy()
        return self._native_look(*arrays, self._squared_bound.numpy())

    def _broken_numbers(self, new: State) -> Int[Tensor, " replicas"]:
        force, speed = squared_length(new.forces), squared_length(new.velocities)
        finite = (force < torch.inf) & (speed < torch.inf)
        severity = torch.where(finite, (force > self._squared_bound).to(torch.float64), 2.0)
        worst = self._dynamics.replicas.maximum(severity)
        broken = (worst > 1.5) | ~torch.isfinite(new.energy)
        return torch.where(broken, int(StopReason.NOT_FINITE), int(StopReason.FORCE) * (worst > 0.5).to(torch.int64))

    def _temperature(self, new: State, code: Tensor, limits: tuple[float, float]) -> tuple[State, Tensor]:
        total = new.monitors[KINETIC_SUM] + self._integrator.kinetic_energy(new, self._dynamics)
        if new.step % self._window == 0:
            target = self._integrator.target_temperature
            mean = self._dynamics.temperature(total / self._window)
            aim = self._dynamics.targets(0.0 if target is None else target, new.step)
            outside = (mean < limits[0] * aim) | (mean > limits[1] * aim)
            code = torch.where((code == 0) & outside, int(StopReason.TEMPERATURE), code)
            total = torch.zeros_like(total)
        return replace(new, monitors={**new.monitors, KINETIC_SUM: total}), code

    def _stop(self, new: State, code: Int[Tensor, " replicas"], good: State, *, again: bool) -> State:
        """Mark replicas with a code that still ran and put them back; with `again` those stopped before too."""
        newly = (code > 0) & (new.stop_code == 0)
        stop_code = torch.where(newly, code, new.stop_code)
        stop_step = torch.where(newly, new.step, new.stop_step)
        marked = replace(new, stop_code=stop_code, stop_step=stop_step)
        rows = stop_code > 0 if again else newly
        return marked.keep(rows, rows[self._dynamics.replicas.batch], good)

    def _geometry(self, state: State) -> Int[Tensor, " replicas"]:
        system = replace(self._system, positions=state.positions.cpu(), cell=state.cell.cpu())
        code = torch.zeros(system.n_structures, dtype=torch.int64)
        if self._bonds is None:
            return code.to(state.energy.device)
        if self._rules.max_bond_change is not None:
            change = (_lengths(self._bonds, system) - self._bonds.length).abs()
            _mark(code, system.batch[self._bonds.first[change > self._rules.max_bond_change]], StopReason.BOND)
        if self._rules.min_distance_ratio is not None or self._rules.keep_fragments:
            self._pairs_of_now(system, self._bonds, code)
        return code.to(state.energy.device)

    def _pairs_of_now(self, system: System, bonds: Pairs, code: Int[Tensor, " replicas"]) -> None:
        """Rules that need all near pairs; fills `code`."""
        try:
            now = bonded_pairs(system)
        except ValueError:
            system, broken = self._start_where_unusable(system)
            _mark(code, torch.tensor(broken, dtype=torch.int64), StopReason.DISTANCE)
            now = bonded_pairs(system)
        if self._rules.min_distance_ratio is not None:
            known = bonds.keys()
            near = now.length < self._rules.min_distance_ratio * now.radii
            rows = torch.cat([now.first[near, None], now.second[near, None], now.shift[near]], 1).tolist()
            strangers = [row[0] for row in rows if tuple(row) not in known]
            _mark(code, system.batch[torch.tensor(strangers, dtype=torch.int64)], StopReason.DISTANCE)
        if self._rules.keep_fragments:
            changed = _molecule_counts(now, system) != _molecule_counts(bonds, system)
            _mark(code, changed.nonzero()[:, 0], StopReason.FRAGMENTS)

    def _start_where_unusable(self, system: System) -> tuple[System, list[int]]:
        """Replicas whose atoms overlap or are not finite, and the system with their first positions instead."""
        positions, cell, broken = system.positions.clone(), system.cell.clone(), []
        for index, atoms in enumerate(self._dynamics.replicas.slices()):
            try:
                bonded_pairs(one_structure(system, index, atoms))
            except ValueError:
                broken.append(index)
                positions[atoms], cell[index] = self._system.positions[atoms], self._system.cell[index]
        return replace(system, positions=positions, cell=cell), broken


def _native_look() -> Callable[..., bool]:
    from e2former_calc.md.native_kernels import is_sound  # numba loads slowly

    return is_sound


def _lengths(pairs: Pairs, system: System) -> Float[Tensor, " pairs"]:
    image = (pairs.shift.to(torch.float64)[:, None, :] @ system.cell[system.batch[pairs.first]])[:, 0]
    return squared_length(system.positions[pairs.first] - system.positions[pairs.second] - image).sqrt()


def _molecule_counts(pairs: Pairs, system: System) -> Int[Tensor, " structures"]:
    label = molecules(pairs, system.n_atoms)
    seen = torch.full((int(label.max()) + 1,), system.n_atoms, dtype=torch.int64)
    index = torch.arange(system.n_atoms)
    first = index == seen.scatter_reduce(0, label, index, "amin")[label]
    return torch.bincount(system.batch[first], minlength=system.n_structures)


def _mark(code: Int[Tensor, " replicas"], rows: Int[Tensor, " _"], reason: StopReason) -> None:
    """Put a reason where there is none yet."""
    free = rows[code[rows] == 0]
    code[free] = int(reason)
