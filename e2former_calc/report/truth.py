"""Truth along the rollouts: stored energies and forces against a ground-truth calculator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from e2former_calc.analysis.statistics import block_error
from e2former_calc.analysis.truth import TruthErrors, truth_errors
from e2former_calc.report.figures import Trace, draw_truth
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Run

TITLE = "Truth along the rollouts"


@dataclass(frozen=True, eq=False)
class Truth:
    """A ground-truth calculator.

    Attributes:
        name: level of theory with the program.
        calculator: of ASE.
    """

    name: str
    calculator: Any


def truth_section(case: Case, truth: Truth | None) -> Section:
    """Errors of the stored energies and forces on frames of the rollouts, and of the reference for comparison."""
    if truth is None:
        return Section("truth", TITLE, skipped="No ground-truth calculator was given (--truth).")
    chosen = [run for run in case.usable if run.has_forces and run.energies_eV is not None]
    if not chosen:
        reason = "The rollouts store no energies and forces that could be compared with the ground truth."
        return Section("truth", TITLE, skipped=reason if case.usable else "No frame of any rollout is stable.")
    samples = case.settings.truth_samples
    found = [truth_errors(run.good, truth.calculator, n_samples=samples) for run in chosen]
    own = case.reference
    known = None
    if own.has_forces and own.energies_eV is not None:
        known = truth_errors(own.source, truth.calculator, n_samples=samples)
    traces = [_trace(run, errors) for run, errors in zip(chosen, found, strict=True)]
    reference = (
        None if known is None else Trace("reference's own frames", traces[0].times_ps, known.force_mae_meV_per_A)
    )
    drawing = Drawing(
        "truth",
        f"Mean absolute error of the stored force components against {truth.name}, on frames of the rollouts; dashed: "
        "the same of the forces stored in the reference, zero if it was made with this method.",
        lambda: draw_truth(traces, reference),
    )
    quantities = [q for run, errors in zip(chosen, found, strict=True) for q in _quantities(run.name, errors, known)]
    remarks = (
        f"The ground truth is {truth.name}; the mean difference of energies is removed before errors are taken.",
    )
    return Section("truth", TITLE, tuple(quantities), (_table(chosen, found),), (drawing,), remarks)


def _quantities(name: str, errors: TruthErrors, known: TruthErrors | None) -> list[Quantity]:
    forces = block_error(errors.force_mae_meV_per_A)
    energies = block_error(np.abs(errors.energy_errors_meV_per_atom))
    reference = None if known is None else float(known.force_mae_meV_per_A.mean())
    note = f"{len(errors.frames)} equally spaced frames; reference: error of its own stored values"
    return [
        Quantity(f"force MAE, {name}", forces.value, "meV/Å", finite(forces.error), reference, note=note),
        Quantity(
            f"energy MAE, {name}", energies.value, "meV/atom", finite(energies.error),
            None if known is None else known.energy_mae_meV_per_atom, note=note,
        ),
    ]  # fmt: skip


def _trace(run: Run, errors: TruthErrors) -> Trace:
    times = errors.frames.astype(np.float64) if errors.times_ps is None else errors.times_ps - errors.times_ps[0]
    return Trace(run.name, times, errors.force_mae_meV_per_A)


def _table(runs: list[Run], found: list[TruthErrors]) -> Table:
    columns: dict[str, list[object]] = {
        "rollout": [run.name for run, errors in zip(runs, found, strict=True) for _ in errors.frames],
        "frame": [frame for errors in found for frame in errors.frames.tolist()],
        "energy error [meV/atom]": [e for errors in found for e in errors.energy_errors_meV_per_atom.tolist()],
        "force MAE [meV/Å]": [e for errors in found for e in errors.force_mae_meV_per_A.tolist()],
        "largest force error [meV/Å]": [e for errors in found for e in errors.force_max_meV_per_A.tolist()],
    }
    return Table("truth", columns)
