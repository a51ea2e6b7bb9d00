"""Structure relaxation with ASE's optimisers: one convergence criterion, guarded against explosions."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ase.optimize
import ase.optimize.sciopt
import numpy as np
import torch
from ase import Atoms, units
from ase.filters import FrechetCellFilter

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.cli.messages import plural

MAX_RISE, MAX_DROP = 10.0, 100.0
"""Change of the energy since the start, in eV per atom, beyond which a relaxation has exploded."""

NOISE_DISPLACEMENT = 1e-5
"""Displacement in Å over which exact forces are linear to far below float32 rounding."""

_MODULES = {
    ase.optimize: (
        "BFGS", "LBFGS", "BFGSLineSearch", "LBFGSLineSearch", "QuasiNewton", "GoodOldQuasiNewton", "RFO", "GPMin",
        "FIRE", "FIRE2", "MDMin", "ODE12r", "CellAwareBFGS",
    ),
    ase.optimize.sciopt: ("SciPyFminCG", "SciPyFminBFGS"),
}  # fmt: skip
OPTIMIZERS: dict[str, Any] = {
    name: getattr(module, name) for module, names in _MODULES.items() for name in names if hasattr(module, name)
}
"""ASE's gradient optimisers by name; which there are depends on the version of ASE.

Not those with a preconditioner, which fails for molecules.
"""


@dataclass(frozen=True)
class RelaxSettings:
    """How to relax.

    Attributes:
        optimizer: name from `OPTIMIZERS`.
        fmax: converged when no force on an atom, and no virial per atom with `cell`, exceeds it; eV/Å.
        steps: largest number of steps.
        cell: relax the cell as well.
        pressure_gpa: external pressure in GPa.
        hydrostatic: keep the shape of the cell.

    Raises:
        ValueError: for values out of range, and options of the cell without `cell`.
    """

    optimizer: str = "BFGS"
    fmax: float = 0.05
    steps: int = 500
    cell: bool = False
    pressure_gpa: float = 0.0
    hydrostatic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fmax) and self.fmax > 0.0 and math.isfinite(self.pressure_gpa)):
            raise ValueError(
                f"--fmax must be positive and --pressure-gpa finite, got {self.fmax} eV/Å, {self.pressure_gpa} GPa"
            )
        if not self.cell and (self.pressure_gpa or self.hydrostatic or self.optimizer == "CellAwareBFGS"):
            raise ValueError("--pressure-gpa, --hydrostatic and --optimizer CellAwareBFGS need --cell")


@dataclass(frozen=True)
class Step:
    """State after an optimisation step.

    Attributes:
        number: 0 is the start.
        energy: eV.
        enthalpy: eV, energy plus external pressure times volume; what is minimised.
        fmax: measure of convergence, eV/Å: largest force or virial per atom.
        max_force: largest force on an atom, constraints applied, eV/Å.
        volume: Å^3, or None without a cell.
        pressure_gpa: pressure of the structure in GPa, or None without stress.
    """

    number: int
    energy: float
    enthalpy: float
    fmax: float
    max_force: float
    volume: float | None
    pressure_gpa: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with units in the names."""
        return {
            "step": self.number,
            "energy_eV": self.energy,
            "enthalpy_eV": self.enthalpy,
            "fmax_eV_per_A": self.fmax,
            "max_force_eV_per_A": self.max_force,
            "volume_A3": self.volume,
            "pressure_GPa": self.pressure_gpa,
        }


@dataclass(frozen=True)
class Outcome:
    """How a relaxation ended.

    Attributes:
        first: the start.
        last: the last complete step; may be the start.
        status: "converged", "not converged", "interrupted" or "failed".
        message: what happened, for people; empty if converged.
        signal: number of the signal that interrupted, or None.
    """

    first: Step
    last: Step
    status: str
    message: str = ""
    signal: int | None = None

    @property
    def converged(self) -> bool:
        """True if the forces are below the criterion."""
        return self.status == "converged"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with units in the names."""
        return {
            "status": self.status,
            "converged": self.converged,
            "message": self.message,
            "signal": self.signal,
            "steps": self.last.number,
            "before": self.first.to_dict(),
            "after": self.last.to_dict(),
        }


@dataclass
class StopRequest:
    """Set by a signal: end after the running step."""

    signal: int | None = None


class _End(Exception):  # noqa: N818
    """Ends an optimiser from inside an observer."""

    def __init__(self, status: str, message: str = "") -> None:
        super().__init__(message)
        self.status, self.message = status, message


@contextmanager
def stop_on_signal(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within this context the first Ctrl-C or SIGTERM is a request, the second acts as usual.

    Args:
        tell: called with a line for the user when the request arrives.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        restore()
        tell("stopping after this step and writing what there is; once more to stop at once")

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()


def relax_atoms(
    atoms: Atoms,
    settings: RelaxSettings,
    *,
    observe: Callable[[Step], None],
    stop: StopRequest,
) -> Outcome:
    """Relax a structure in place; its calculator is an `E2FormerCalculator`.

    Args:
        atoms: the structure; constraints are kept.
        settings: how.
        observe: called after every step, the start included, while `atoms.calc.results` belongs to it.
        stop: looked at after every step.

    Raises:
        ValueError: if the start cannot be evaluated, or the cell cannot be relaxed.
    """
    check_start(atoms, settings)
    target = _cell_filter(atoms, settings) if settings.cell else atoms
    run = _Run(atoms, target, settings, observe, stop)
    try:
        optimizer = OPTIMIZERS[settings.optimizer](target, logfile=None)
        run.optimizer = optimizer
        optimizer.attach(run.after_step)
        # The optimisers' own criteria differ from each other; the observer ends them all alike.
        extra = {"smax": 0.0} if settings.optimizer == "CellAwareBFGS" else {}
        optimizer.run(fmax=0.0, steps=settings.steps, **extra)
    except _End as end:
        return run.outcome(end.status, end.message)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # optimisers and line searches raise errors of many kinds when they are stuck
        if run.last is None:
            raise
        return run.outcome("failed", _failure(run.last.number + 1, settings.optimizer, error))
    return run.outcome("not converged", f"the optimiser ended after {plural(run.steps_taken, 'step')}")


def _failure(step: int, optimizer: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if isinstance(error, ValueError):
        return f"step {step} failed: {reason}"
    return f"{optimizer} gave up at step {step} ({reason}): try another --optimizer, FIRE for instance"


def check_start(atoms: Atoms, settings: RelaxSettings) -> None:
    """Evaluate the start; the calculator keeps the results.

    Raises:
        ValueError: if that fails, or if the cell shall be relaxed and is not periodic in three directions, or
            the model has no stress.
    """
    if settings.cell:
        _check_cell(atoms)
    atoms.get_forces()


def _check_cell(atoms: Atoms) -> None:
    if not atoms.pbc.all() or abs(atoms.cell.volume) < 1e-6:
        raise ValueError(
            f"--cell needs a structure that is periodic in three directions; pbc is {atoms.pbc.tolist()}, "
            f"the volume {abs(atoms.cell.volume):g} Å^3"
        )
    if "stress" not in atoms.calc.implemented_properties:
        raise ValueError("--cell needs stress, which a force head does not give: use --forces gradient")


def _cell_filter(atoms: Atoms, settings: RelaxSettings) -> FrechetCellFilter:
    return FrechetCellFilter(
        atoms,
        scalar_pressure=settings.pressure_gpa * units.GPa,
        hydrostatic_strain=settings.hydrostatic,
        exp_cell_factor=1.0 if settings.optimizer == "CellAwareBFGS" else float(len(atoms)),
    )


@dataclass(eq=False)
class _Run:
    """Observer of one relaxation."""

    atoms: Atoms
    target: Any
    settings: RelaxSettings
    observe: Callable[[Step], None]
    stop: StopRequest
    optimizer: Any = None
    first: Step | None = None
    last: Step | None = None

    @property
    def steps_taken(self) -> int:
        return 0 if self.last is None else self.last.number

    def outcome(self, status: str, message: str) -> Outcome:
        if self.first is None or self.last is None:
            raise ValueError(f"the optimiser {self.settings.optimizer} ended before the first step: {message}")
        return Outcome(self.first, self.last, status, message, self.stop.signal)

    def after_step(self) -> None:
        step = self._measure()
        if self.last is not None and step.number == self.last.number:
            return
        self.first, self.last = self.first or step, step
        self.observe(step)
        self._check_explosion(self.first, step)
        if step.fmax < self.settings.fmax:
            raise _End("converged")
        if self.stop.signal is not None:
            raise _End("interrupted", f"interrupted after {plural(step.number, 'step')}")
        if step.number >= self.settings.steps:
            raise _End("not converged", f"not converged within {plural(self.settings.steps, 'step')}")

    def _measure(self) -> Step:
        atoms = self.atoms
        rows = self.target.get_forces()
        max_force = _largest(rows[: len(atoms)])
        virial = rows[len(atoms) :]
        if len(virial):
            virial = virial * (self.target.exp_cell_factor / len(atoms))
        energy = float(atoms.get_potential_energy())
        stress = atoms.calc.results.get("stress")
        volume = float(abs(atoms.cell.volume)) if atoms.pbc.any() else None
        return Step(
            number=int(self.optimizer.nsteps),
            energy=energy,
            enthalpy=energy + self.settings.pressure_gpa * units.GPa * (volume or 0.0),
            fmax=max(max_force, _largest(virial)),
            max_force=max_force,
            volume=volume,
            pressure_gpa=None if stress is None else -float(stress[:3].mean()) / units.GPa,
        )

    def _check_explosion(self, first: Step, step: Step) -> None:
        change = (step.enthalpy - first.enthalpy) / len(self.atoms)
        if not -MAX_DROP < change < MAX_RISE:
            raise _End(
                "failed",
                f"the energy exploded: it changed by {change:+.1f} eV per atom since the start (step {step.number}, "
                f"largest force {step.max_force:.3g} eV/Å); the structure is outside what the model was trained for",
            )


def _largest(vectors: Any) -> float:
    return float(np.linalg.norm(vectors, axis=1).max()) if len(vectors) else 0.0


def force_noise(atoms: Atoms, calculator: E2FormerCalculator, seed: int) -> float:
    """Rounding noise of the forces in eV/Å, measured: second difference over a step where exact forces are linear."""
    direction = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    images = [atoms.copy() for _ in range(3)]
    for image, sign in zip(images, (-1.0, 0.0, 1.0), strict=True):
        image.positions += sign * NOISE_DISPLACEMENT * direction
    minus, middle, plus = (result["forces"] for result in calculator.evaluate(images, ["forces"]))
    return _largest(minus - 2.0 * middle + plus) / math.sqrt(6.0)
