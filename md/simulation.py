"""Molecular dynamics of one structure or of many replicas in one batch.

>>> from ase.build import molecule
>>> from ase.calculators.emt import EMT
>>> from e2former_calc.md.integrators import Langevin
>>> integrator = Langevin(timestep_fs=0.5, temperature_K=300.0, friction_per_ps=5.0)
>>> simulation = Simulation([molecule("H2O")] * 2, EMT(), integrator, seed=1)
>>> simulation.run(10)
10
>>> simulation.atoms(1).info["time_fs"]
5.0

The state (float64, unwrapped) stays on the device of the potential; see `State`. A replica's trajectory depends
on the seed and on its id, not on its batch. It continues bit for bit from a restart file
(`save`, `restore`), as far as the potential is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from jaxtyping import Bool, Float
from torch import Tensor

from e2former_calc.md.bonds import bonded_pairs, molecules
from e2former_calc.md.captured_replay import Execution
from e2former_calc.md.captured_step import stepper_for
from e2former_calc.md.fingerprint import differences, integrator_fingerprint, model_fingerprint
from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.restart import Restart, RestartError, read_restart, write_restart
from e2former_calc.md.start import build_dynamics, first_velocities, stacked_system
from e2former_calc.md.state import State
from e2former_calc.md.static_forces import potential_forces
from e2former_calc.md.stopping import Stop, StoppingRules, Watch
from e2former_calc.md.units import BAR
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.interface import Potential

_POLL_STEPS = 16
"""On a device the host learns of stopped replicas every so many steps."""


@dataclass(frozen=True)
class SimulationOptions:
    """What is rarely changed.

    Attributes:
        skin: extra distance (Å) of neighbour lists; changes the speed, not the result.
        stopping: when a replica is stopped.
        replica_ids: what each replica is to the random generator; 0, 1, 2, ... unless given.
        stress: evaluate the stress also where the integrator does not need it, to report the pressure.
        execution: how a potential is evaluated. "eager" calls it as it is. The others keep edges in arrays of fixed
            size and need a model that allows it: "static" runs its operations one by one (slower, to compare with),
            "compiled" fuses them (takes minutes for each size of the arrays; without a compiler it runs from a
            trace), "cuda-graph" launches them, and with most integrators the whole step, at once. Results agree to
            rounding.
        strict: False turns refusals of elements, charges and multiplicities that the model does not cover into
            warnings; a model that was itself loaded strictly still refuses elements.
        external_field: True if forces depend on absolute positions (walls, springs to fixed points). Then
            nothing is removed from initial velocities, and translation and rotation count as degrees of freedom.
    """

    skin: float = 0.5
    stopping: StoppingRules = field(default_factory=StoppingRules)
    replica_ids: tuple[int, ...] | None = None
    stress: bool = False
    external_field: bool = False
    strict: bool = True
    execution: Execution = "eager"


@dataclass(frozen=True)
class Observer:
    """A function that `run` calls at step 0 and after every step whose number is a multiple of `every`.

    Raises:
        ValueError: if `every` is below 1.
    """

    function: Callable[[Simulation], Any]
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}")


@dataclass(frozen=True, eq=False)
class Observables:
    """One value per replica.

    Attributes:
        potential_energy, kinetic_energy: at the whole step, eV.
        conserved_energy: their sum and what has gone into the baths, eV; NaN where the integrator has none.
        temperature_K: from the velocities that the integrator samples best, and the true degrees of freedom.
        volume: Å^3.
        pressure_bar: NaN unless the stress is evaluated.
    """

    potential_energy: Float[Tensor, " replicas"]
    kinetic_energy: Float[Tensor, " replicas"]
    conserved_energy: Float[Tensor, " replicas"]
    temperature_K: Float[Tensor, " replicas"]  # noqa: N815
    volume: Float[Tensor, " replicas"]
    pressure_bar: Float[Tensor, " replicas"]


class Simulation:
    """A simulation that can be observed, stopped, saved and continued.

    Args:
        atoms: one structure, or one for each replica; copied. Momenta they have are used.
        potential: a `Potential`, whose device the state lives on, or any ASE calculator (host loop).
        integrator: ensemble and time step.
        seed: of all random numbers, 0 to 2^64 - 1.
        velocities: new initial velocities; without them those of `atoms`, or if these have none, the
            Maxwell–Boltzmann distribution at the temperature of the thermostat, or rest.
        options: skin, stopping rules, replica ids.

    Attributes:
        integrator, seed, options: as given.
        dynamics: masses, forces, degrees of freedom.

    Raises:
        NotImplementedError: for constraints that are not supported, by name.
        ValueError: for structures, charges or targets that do not fit together.
    """

    def __init__(
        self,
        atoms: Atoms | Sequence[Atoms],
        potential: Potential | BaseCalculator,
        integrator: Integrator,
        *,
        seed: int,
        velocities: InitialVelocities | None = None,
        options: SimulationOptions | None = None,
    ) -> None:
        self.options = SimulationOptions() if options is None else options
        images = [image.copy() for image in ([atoms] if isinstance(atoms, Atoms) else atoms)]
        self.integrator, self.seed, self._images, self._potential = integrator, seed, images, potential
        system = stacked_system(images, potential, strict=self.options.strict)
        dynamics = build_dynamics(
            images, system, potential, integrator=integrator, seed=seed, ids=self.options.replica_ids,
            potential_forces=partial(
                potential_forces, skin=self.options.skin, execution=self.options.execution,
                fixed_cell=not integrator.changes_cell,
            ),
        )  # fmt: skip
        dynamics.needs_stress = integrator.needs_stress or self.options.stress
        self._system = system.to(dynamics.forces.device)
        self._stepper = stepper_for(self.options.execution, integrator, potential)
        self._velocities, self.dynamics = first_velocities(
            images, self._system.positions, dynamics, integrator, chosen=velocities,
            external_field=self.options.external_field,
        )  # fmt: skip
        if integrator.target_temperature is not None:
            self.dynamics.targets(integrator.target_temperature, 0)
        if integrator.changes_cell:
            self.dynamics.molecule = molecules(bonded_pairs(system), system.n_atoms).to(self._system.batch.device)
        self._first_system = system
        self._watch = Watch(self.options.stopping, system, integrator, self.dynamics)
        self._state: State | None = None
        self._asked_to_stop = self._all_stopped = False

    @property
    def state(self) -> State:
        """The present state; the first look at it evaluates the potential.

        Raises:
            ValueError: if the potential gives no finite energy and forces for the structures of the start.
        """
        if self._state is None:
            self._state = self._first_state()
            self._watch.last_good = self._state
        return self._state

    @property
    def step(self) -> int:
        """Number of steps made."""
        return 0 if self._state is None else self._state.step

    @property
    def time_fs(self) -> float:
        """Simulated time."""
        return self.step * self.integrator.timestep_fs

    @property
    def n_replicas(self) -> int:
        """Number of replicas, stopped ones included."""
        return self.dynamics.replicas.n_replicas

    @property
    def list_rebuilds(self) -> int:
        """Number of neighbour lists built so far."""
        return self.dynamics.forces.rebuilds

    def run(self, steps: int, *, observers: Sequence[Observer] = ()) -> int:
        """Make steps until they are done, all replicas are stopped, or `request_stop` is called.

        Observers see a complete state; they are called at step 0 too, but not again at the step where an earlier
        run ended. An error in the potential or in an observer leaves the last complete state.

        Returns:
            The number of steps made.

        Raises:
            ValueError: for a negative number of steps.
        """
        if steps < 0:
            raise ValueError(f"`steps` must not be negative, got {steps}")
        state, good = self.state, self._watch.last_good
        first, last = state.step, state.step + steps
        self._asked_to_stop = False
        if first == 0:
            self._notify(observers)
        while self.step < last and not (self._asked_to_stop or self._all_stopped):
            new = self._watch.check(state, self._stepper.step(state, self.dynamics))
            awaited = new.step == last or any(new.step % observer.every == 0 for observer in observers)
            if not awaited and self._stepper.may_go_on(new.step, self.dynamics):
                state = new
                continue
            if not self._stepper.settle(self.dynamics):
                state, self._watch.last_good = self.state, good
                continue
            changed = new.stop_code is not self.state.stop_code and new.stop_code.device.type == "cpu"
            self._state, good = new, self._watch.last_good
            state = new
            if changed or new.step % _POLL_STEPS == 0:
                self._hold(~new.running)
            self._notify(observers)
        return self.step - first

    def request_stop(self) -> None:
        """End `run` after the step that is being made; may be called from a signal handler or an observer."""
        self._asked_to_stop = True

    def observables(self) -> Observables:
        """Energies, temperature, volume and pressure of the present state."""
        state, dynamics = self.state, self.dynamics
        kinetic = dynamics.kinetic_energy(state.velocities)
        sampled = self.integrator.kinetic_energy(state, dynamics)
        volume = dynamics.volume(state.cell)
        tension = state.stress.diagonal(dim1=1, dim2=2).sum(-1) / 3.0
        return Observables(
            potential_energy=state.energy,
            kinetic_energy=kinetic,
            conserved_energy=state.energy + kinetic + self.integrator.bath_energy(state, dynamics),
            temperature_K=dynamics.temperature(sampled),
            volume=volume,
            pressure_bar=(2.0 * sampled / (3.0 * volume) - tension) / BAR,
        )

    def stops(self) -> list[Stop | None]:
        """For each replica what stopped it, or None."""
        return [self._watch.describe(self.state, index) for index in range(self.n_replicas)]

    def topology(self, replica: int = 0) -> Topology:
        """Elements, masses, periodicity, charge and multiplicity of a replica."""
        return Topology.from_atoms(self._images[replica])

    def frame(self, replica: int = 0) -> Frame:
        """The present state of a replica as arrays; of a stopped one, its last good state."""
        state, atoms = self.state, self.dynamics.replicas.slices()[replica]
        image, stop = self._images[replica], self._watch.describe(state, replica)
        step = state.step if stop is None else stop.last_good_step
        return Frame(
            step=step,
            time_fs=step * self.integrator.timestep_fs,
            positions=state.positions[atoms].cpu().numpy().copy(),
            cell=state.cell[replica].cpu().numpy().copy() if image.cell.any() else None,
            velocities=state.velocities[atoms].cpu().numpy().copy(),
            forces=state.forces[atoms].cpu().numpy().copy(),
            energy=float(state.energy[replica]),
        )

    def atoms(self, replica: int = 0) -> Atoms:
        """The present state of a replica as ASE structure, with momenta, energy, forces and constraints."""
        atoms = self.frame(replica).to_atoms(self.topology(replica))
        image = self._images[replica]
        atoms.info = {**image.info, **atoms.info}
        atoms.set_constraint([constraint.copy() for constraint in image.constraints])
        return atoms

    def save(self, path: str | Path) -> None:
        """Write a restart file in one atomic step.

        Raises:
            OSError: if it cannot be written; an earlier file stays as it was.
        """
        groups = {"state": self.state.tensors(), "system": self._identity(), "neighbors": self.dynamics.forces.memory()}
        groups["dynamics"] = {"degrees_of_freedom": self.dynamics.degrees_of_freedom}
        good = self._watch.last_good
        if self.options.stopping.look_at_geometry and good is not None:
            groups["last_good"] = good.tensors() | {"step": torch.tensor(good.step)}
        tensors = {f"{group}.{name}": tensor for group, found in groups.items() for name, tensor in found.items()}
        facts = {
            **self._facts(),
            "step": self.step,
            "time_fs": self.time_fs,
            "list_rebuilds": self.list_rebuilds,
            "version": version("e2former_calc"),
            "torch": torch.__version__,
        }
        write_restart(Path(path), Restart(tensors, facts))

    def restore(self, path: str | Path) -> None:
        """Continue from a restart file of the same system, model, integrator and seed.

        Raises:
            FileNotFoundError: if the file does not exist.
            RestartError: if it is damaged, or was written by another simulation; the message names what differs.
        """
        restart = read_restart(Path(path))
        self._check_same(Path(path), restart)
        device = self._system.positions.device
        counted = restart.group("dynamics", device)["degrees_of_freedom"]
        self.dynamics = replace(self.dynamics, degrees_of_freedom=counted)
        self._watch = Watch(self.options.stopping, self._first_system, self.integrator, self.dynamics)
        self._state = State.from_tensors(int(restart.facts["step"]), restart.group("state", device))
        good = restart.group("last_good", device)
        self._watch.last_good = State.from_tensors(int(good.pop("step")), good) if good else self._state
        self.dynamics.forces.recall(restart.group("neighbors", device))
        self.dynamics.forces.rebuilds = int(restart.facts["list_rebuilds"])
        self._hold(~self.dynamics.forces.running)

    def _first_state(self) -> State:
        system, dynamics = self._system, self.dynamics
        stress = torch.full_like(system.cell, torch.nan)
        energy = torch.zeros(self.n_replicas, dtype=torch.float64, device=stress.device)
        bare = State(
            step=0,
            positions=system.positions,
            velocities=self._velocities,
            forces=torch.zeros_like(system.positions),
            energy=energy,
            cell=system.cell,
            stress=stress,
            extended={},
            monitors=self._watch.start(energy),
            stop_code=torch.zeros_like(dynamics.replicas.sizes),
            stop_step=torch.full_like(dynamics.replicas.sizes, -1),
        )
        state = dynamics.evaluate(bare)
        finite = torch.isfinite(state.energy) & (dynamics.replicas.sum(state.forces.abs().sum(-1)) < torch.inf)
        if not bool(finite.all()):
            index = int((~finite).nonzero()[0])
            raise ValueError(
                f"energy or forces of replica {index} are not finite at the start: the structure is far outside of "
                "what the model knows, or its weights are damaged"
            )
        return replace(state, extended=dict(self.integrator.start(state, dynamics)))

    def _notify(self, observers: Sequence[Observer]) -> None:
        for observer in observers:
            if self.step % observer.every == 0:
                observer.function(self)

    def _hold(self, stopped: Bool[Tensor, " replicas"]) -> None:
        """Leave replicas alone; after a restart those that an uninterrupted run would leave alone by then."""
        self._all_stopped = not bool(self.state.running.any())
        self.dynamics.hold(stopped)

    def _identity(self) -> dict[str, Tensor]:
        """Tensors by which the system is recognised."""
        names = ("numbers", "pbc", "batch", "charge", "spin")
        found = {name: getattr(self._system, name) for name in names} | {"masses": self.dynamics.masses}
        return found if self.dynamics.molecule is None else found | {"molecules": self.dynamics.molecule}

    def _facts(self) -> dict[str, Any]:
        """Texts by which model, integrator and options are recognised."""
        return {
            "model": model_fingerprint(self._potential),
            "integrator": integrator_fingerprint(self.integrator),
            "options": {
                "seed": str(self.seed),
                "replica_ids": str(self.dynamics.replicas.ids),
                "constraints": str(self.dynamics.constraints.describe()),
            },
        }

    def _check_same(self, path: Path, restart: Restart) -> None:
        found = []
        stored = restart.group("system")
        for name, tensor in self._identity().items():
            other = stored.get(name)
            if other is None or other.shape != tensor.shape or not torch.equal(other, tensor.cpu()):
                found.append(f"system: other {name}")
        for part, now in self._facts().items():
            found += [f"{part}: {text}" for text in differences(restart.facts[part], now)]
        if found:
            raise RestartError(f"{path} belongs to another simulation. {'; '.join(found)}")
