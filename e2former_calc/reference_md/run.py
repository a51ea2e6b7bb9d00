"""One reference trajectory from a structure to a file, or the rest of it."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from numpy.typing import NDArray

import e2former_calc
from e2former_calc.reference_md.calculators import CalculatorRecipe, Method, prepare
from e2former_calc.reference_md.dynamics import (
    Dynamics,
    SimulationError,
    degrees_of_freedom,
    error_text,
    first_state,
    integrator_name,
)
from e2former_calc.reference_md.file import (
    UNITS,
    Header,
    ReferenceFile,
    RestartState,
    Saved,
    Summary,
    read_saved,
    summarize,
)
from e2former_calc.reference_md.settings import ReferenceSettings

RELAX_FMAX, RELAX_STEPS = 0.01, 2000
"""Criterion (eV/Å) and limit of the relaxation before a run."""

SAVE_INTERVAL_S, SAVE_RATIO = 10.0, 20.0
"""Seconds between saves, at least, and their smallest ratio to the duration of a save."""


@dataclass(frozen=True, eq=False)
class Replica:
    """One trajectory to run.

    Attributes:
        atoms: the structure to start from; not changed.
        settings: how.
        recipe: with which calculator.
        path: HDF5 file to write.
        number: of the replica; replicas have different random numbers.
        structure: position of the structure among those of the same call; these differ likewise.
        source: where the structure comes from, for people.
    """

    atoms: Atoms
    settings: ReferenceSettings
    recipe: CalculatorRecipe
    path: Path
    number: int = 0
    structure: int = 0
    source: str = ""

    @property
    def description(self) -> str:
        """Replica number and file, for messages."""
        return f"replica {self.number} ({self.path})"

    def generator(self) -> np.random.Generator:
        """Random numbers of this trajectory.

        Everything that is run side by side gets different ones: copies of a molecule with the same friction
        and the same noise run into each other.
        """
        temperature_mK = round(self.settings.temperature * 1000)
        return np.random.default_rng([self.settings.seed, self.number, self.structure, temperature_mK])


@dataclass(frozen=True)
class Outcome:
    """How a trajectory ended.

    Attributes:
        status: "done", "stopped" or "failed".
        message: what happened, empty if done.
        steps: steps of this run.
        seconds: wall time of them.
        summary: of the file, None if nothing was written.
    """

    status: str
    message: str = ""
    steps: int = 0
    seconds: float = 0.0
    summary: Summary | None = None


class _Interrupted(Exception):  # noqa: N818
    """Somebody asked to stop."""


def check_replica(replica: Replica, *, resume: bool = False) -> None:
    """Find out without calculating whether a trajectory can be run.

    Raises:
        ValueError: for a calculator that cannot be made, a structure that cannot be simulated, or, with
            `resume`, a file that belongs to other settings, naming what differs.
    """
    _prepared(replica, resume=resume)


def run_replica(
    replica: Replica,
    *,
    resume: bool = False,
    report: Callable[[int], None] = lambda _step: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run one trajectory, or the rest of it, into its file.

    Args:
        replica: what to run.
        resume: continue an existing file; a file that does not exist is begun. Without, it is replaced.
        report: called with the number of steps done, after each.
        interrupted: looked at after each step; when true, everything is saved and the run ends.

    Raises:
        ValueError: as `check_replica`, before anything is run.
        OSError: if the file cannot be written; an older state of it stays.
    """
    method, saved = _prepared(replica, resume=resume)
    if saved is not None:
        # The file keeps its own spacing of restart points, on which the last bits depend.
        replica = replace(replica, settings=replace(replica.settings, restart_every=saved.settings["restart_every"]))
        if saved.frames >= replica.settings.frames:
            report(replica.settings.steps)
            return Outcome("done", summary=summarize(replica.path))
    atoms = replica.atoms.copy()
    try:
        state, minimum = _start(replica, atoms, method, saved, interrupted)
    except SimulationError as error:
        return Outcome("failed", str(error))
    except _Interrupted:
        return Outcome("stopped", "before the first step")
    file = ReferenceFile(replica.path, _header(replica, method, minimum), frames=state.frames)
    return _Run(Dynamics(atoms, replica.settings, method, state), replica.settings, file).finish(report, interrupted)


def _prepared(replica: Replica, *, resume: bool) -> tuple[Method, Saved | None]:
    _check_structure(replica.atoms, replica.settings)
    method = prepare(replica.recipe, replica.atoms, folder=replica.path.with_suffix(""))
    if not (resume and replica.path.exists()):
        return method, None
    saved = read_saved(replica.path)
    _check_resumable(replica, method, saved)
    return method, saved


def _check_structure(atoms: Atoms, settings: ReferenceSettings) -> None:
    """Raise ValueError for constraints that the integrators do not treat rightly, or if nothing moves."""
    others = sorted({type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)})
    if others:
        raise ValueError(f"constraints {', '.join(others)} are not supported: remove them, or use FixAtoms")
    if len(atoms) == 0 or degrees_of_freedom(atoms, settings.ensemble) < 1:
        raise ValueError(
            f"nothing can move in {atoms.get_chemical_formula() or 'a structure without atoms'} "
            f"({settings.ensemble.upper()}): give a larger structure"
        )


def _check_resumable(replica: Replica, method: Method, saved: Saved) -> None:
    """Raise ValueError naming every setting, and every part of the structure, that differs."""
    differing = [
        f"{name} was {saved.settings.get(name)!r} and is {value!r}"
        for name, value in _settings(replica, method).items()
        if saved.settings.get(name) != value and name != "restart_every"
    ]
    start = _structure_tables(replica.atoms)
    differing += [
        f"the structure has other {name}"
        for name in sorted(set(start) | set(saved.start))
        if name not in start or name not in saved.start or not np.array_equal(start[name], saved.start[name])
    ]
    if differing:
        raise ValueError(f"{replica.path} cannot be continued: {'; '.join(differing)}")


def _settings(replica: Replica, method: Method) -> dict[str, Any]:
    """What decides about the numbers, as JSON gives it back; the length of the run does not."""
    settings = asdict(replica.settings)
    del settings["time_ps"]
    state = replica.recipe.electronic_state(replica.atoms)
    settings |= {
        "temperature_K": settings.pop("temperature"), "calculator": replica.recipe.name, "level": method.level,
        "calculator_options": dict(replica.recipe.options), "charge": state.charge, "multiplicity": state.spin,
        "replica": replica.number, "integrator": integrator_name(replica.settings),
    }  # fmt: skip
    return dict(json.loads(json.dumps(settings, default=str)))


def _structure_tables(atoms: Atoms) -> dict[str, NDArray[Any]]:
    tables = {"numbers": atoms.numbers, "positions": atoms.positions, "masses": atoms.get_masses()}
    if atoms.pbc.any():
        tables |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
    return tables


def _header(replica: Replica, method: Method, minimum: NDArray[Any] | None) -> Header:
    atoms, settings = replica.atoms, replica.settings
    start = _structure_tables(atoms)
    tables: dict[str, Any] = {name: table for name, table in start.items() if name != "positions"}
    tables["numbers"] = tables["numbers"].astype(np.int64)
    state = replica.recipe.electronic_state(atoms)
    if state.stated:
        tables |= {"charge": state.charge, "spin": state.spin}
    if minimum is not None:
        tables["minimum_positions"] = minimum
    versions = {"e2former_calc": e2former_calc.__version__, "ase": ase.__version__, "numpy": np.__version__}
    attributes = {
        "level": method.level, "method": method.name, "code": f"{method.code} / ASE {ase.__version__}",
        "ensemble": f"{settings.ensemble.upper()} {integrator_name(settings)}", "order": "time ordered, continuous",
        "units": UNITS, "source": replica.source, "temperature_K": float(settings.temperature),
        "timestep_fs": float(settings.timestep_fs), "frame_spacing_fs": float(settings.every_fs),
        "friction_per_fs": settings.friction_per_ps / 1000 if settings.ensemble == "nvt" else 0.0,
        "equilibration_ps": float(settings.equilibration_ps), "relaxed": settings.relax,
        "seed": settings.seed, "replica": replica.number,
        "degrees_of_freedom": degrees_of_freedom(atoms, settings.ensemble),
        "versions": json.dumps(versions | {"python": platform.python_version()}),
    }  # fmt: skip
    return Header(attributes, tables, _settings(replica, method), start)


def _start(
    replica: Replica, atoms: Atoms, method: Method, saved: Saved | None, interrupted: Callable[[], bool]
) -> tuple[RestartState, NDArray[Any] | None]:
    """First state of a run, and the minimum if the structure was relaxed."""
    if saved is not None:
        return saved.state, saved.tables.get("minimum_positions")
    if not replica.settings.relax:
        return first_state(atoms, replica.settings, replica.generator()), None
    _relax(atoms, method, interrupted)
    minimum = atoms.positions.copy()
    return first_state(atoms, replica.settings, replica.generator()), minimum


def _relax(atoms: Atoms, method: Method, interrupted: Callable[[], bool]) -> None:
    atoms.calc = method.fresh()
    converged = False
    try:
        with BFGS(atoms, logfile=None) as optimizer:
            for finished in optimizer.irun(fmax=RELAX_FMAX, steps=RELAX_STEPS):
                converged = bool(finished)
                if interrupted():
                    raise _Interrupted
    except _Interrupted:
        raise
    except Exception as error:  # calculators and optimisers raise errors of any kind
        raise SimulationError(f"the relaxation failed: {error_text(error)}") from error
    if not converged:
        raise SimulationError(
            f"the relaxation did not converge to {RELAX_FMAX} eV/Å within {RELAX_STEPS} steps: relax the structure "
            "before, or leave --relax out"
        )


class _Run:
    """Dynamics whose frames go to a file."""

    def __init__(self, dynamics: Dynamics, settings: ReferenceSettings, file: ReferenceFile) -> None:
        self._dynamics, self._settings, self._file = dynamics, settings, file
        self._first_step, self._started = dynamics.step, time.perf_counter()
        self._next_save = 0.0

    def finish(self, report: Callable[[int], None], interrupted: Callable[[], bool]) -> Outcome:
        """Run until the end, an interruption or a failure; all frames are saved then."""
        dynamics, status, message = self._dynamics, "done", ""
        try:
            self._record()
            report(dynamics.step)
            while dynamics.step < self._settings.steps:
                if interrupted():
                    status, message = "stopped", f"at step {dynamics.step} of {self._settings.steps}"
                    break
                dynamics.advance()
                self._record()
                report(dynamics.step)
        except SimulationError as error:
            status, message = "failed", f"{error} ({self._file.frames} frames before it are kept)"
        self._file.save(dynamics.state)
        seconds = time.perf_counter() - self._started
        return Outcome(status, message, dynamics.step - self._first_step, seconds, summarize(self._file.path))

    def _record(self) -> None:
        """What is to be done between steps: a restart point, a save, a frame."""
        dynamics = self._dynamics
        if dynamics.step == self._first_step or self._settings.is_restart_point(dynamics.step):
            dynamics.begin()
            if time.perf_counter() >= self._next_save:
                self._save()
        if self._settings.is_frame(dynamics.step):
            self._file.add(dynamics.frame())

    def _save(self) -> None:
        began = time.perf_counter()
        self._file.save(self._dynamics.state)
        now = time.perf_counter()
        self._next_save = now + max(SAVE_INTERVAL_S, SAVE_RATIO * (now - began))
