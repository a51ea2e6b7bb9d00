"""Truth: energies and forces of the model on frames it visited itself, beside those on the reference's frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.statistics import block_error
from e2former_calc.analysis.truth import TruthErrors, truth_errors
from e2former_calc.report.curves import LEAST_ROLLOUTS
from e2former_calc.report.figures import Trace, draw_truth
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Run

TITLE = "Truth along the rollouts"


def truth_section(case: Case) -> Section:
    """Errors on frames of the rollouts, and on those of the reference for comparison."""
    if case.truth is None and case.model is None:
        reason = "Neither a ground-truth calculator (--truth) nor the model (--model) was given."
        return Section("truth", TITLE, skipped=reason)
    known, what = _on_reference(case)
    offset = known.energy_offset_eV if known is not None and case.model is not None and case.truth is not None else None
    chosen = [run for run in case.usable if run.has_forces and run.energies_eV is not None] if case.truth else []
    samples = case.settings.truth_samples
    found = [
        truth_errors(run.good, _calculator(case.truth), n_samples=samples, energy_offset_eV=offset) for run in chosen
    ]
    if not found and (known is None or case.model is None):
        return Section("truth", TITLE, skipped=_why_not(case))
    quantities = [] if known is None or case.model is None else _quantities("the reference's frames", known, None)
    beside = known if case.model is None or case.truth is not None else None
    scatter = _scatter(found)
    quantities += [
        q for run, errors in zip(chosen, found, strict=True) for q in _quantities(run.name, errors, beside, scatter)
    ]
    drawings = (_drawing(case, chosen, found, known, what),) if found else ()
    names = [run.name for run in chosen]
    tables = [_table("truth", names, found)] if found else []
    if known is not None and case.model is not None:
        tables.append(_table("truth-reference", ["reference"], [known]))
    return Section("truth", TITLE, tuple(quantities), tuple(tables), drawings, _remarks(case, what, offset is not None))


def _why_not(case: Case) -> str:
    """What is missing, and in which trajectory."""
    if not case.usable:
        return "No frame of any rollout is stable."
    if case.truth is not None:
        return "The rollouts store no energies and forces that could be compared with the ground truth."
    return (
        "The reference stores no energies and forces that those of the model could be compared with, and no "
        "ground-truth calculator (--truth) was given."
    )


def _calculator(method: object) -> object:
    return None if method is None else getattr(method, "calculator", None)


def _on_reference(case: Case) -> tuple[TruthErrors | None, str]:
    """Errors on the reference's own frames: of the model if it is at hand, else of what the reference stores."""
    own = case.reference
    labelled = own.has_forces and own.energies_eV is not None
    samples = case.settings.truth_samples
    if case.model is not None and (case.truth is not None or labelled):
        errors = truth_errors(own.source, _calculator(case.truth), model=case.model.calculator, n_samples=samples)
        return errors, f"{case.model.name} on the reference's own frames"
    if case.truth is not None and labelled:
        errors = truth_errors(own.source, case.truth.calculator, n_samples=samples)
        return errors, "the values stored in the reference"
    return None, ""


def _remarks(case: Case, what: str, shared_zero: bool) -> tuple[str, ...]:
    truth = "what the reference stores" if case.truth is None else case.truth.name
    zero = "that on the reference's frames" if shared_zero else "the mean difference over the frames"
    remarks = [f"The ground truth is {truth}; of the energies {zero} is removed before errors are taken."]
    if shared_zero:
        remarks = [
            f"The ground truth is {truth}; of all energies the mean difference on the reference's frames is removed, "
            "so that a shift along the rollouts is an error."
        ]
    if case.truth is not None and case.model is None:
        remarks.append("The model's own errors on frames of the reference need the model (--model).")
    if case.truth is None:
        remarks.append("Errors on frames of the rollouts need a ground-truth calculator (--truth).")
    if what and case.truth is not None:
        remarks.append(f"The column of the reference holds the error of {what}.")
    return tuple(remarks)


def _drawing(
    case: Case, runs: Sequence[Run], found: Sequence[TruthErrors], known: TruthErrors | None, what: str
) -> Drawing:
    traces = [_trace(run, errors) for run, errors in zip(runs, found, strict=True)]
    reference = None if known is None else Trace(what, traces[0].times_ps, known.force_mae_meV_per_A)
    truth = "" if case.truth is None else case.truth.name
    return Drawing(
        "truth",
        f"Mean absolute error of the stored force components against {truth}, on frames of the rollouts; dashed: "
        + (f"mean error of {what}." if what else "nothing, the reference stores no forces."),
        lambda: draw_truth(traces, reference),
    )


def _scatter(found: Sequence[TruthErrors]) -> tuple[float, float]:
    """Standard deviation between rollouts of their mean force and energy errors; 0 for too few rollouts.

    Frames of one rollout may share a slow error, of one conformation for instance, which only others can tell.
    """
    if len(found) < LEAST_ROLLOUTS:
        return 0.0, 0.0
    means = [(_force_errors(errors).mean(), _energy_errors(errors).mean()) for errors in found]
    force, energy = np.std(means, axis=0, ddof=1)
    return float(force), float(energy)


def _quantities(
    name: str, errors: TruthErrors, known: TruthErrors | None, scatter: tuple[float, float] = (0.0, 0.0)
) -> list[Quantity]:
    note = f"{len(errors.frames)} equally spaced frames"
    note += "; error: no less than the scatter between rollouts" if any(scatter) else ""
    parts = [("force MAE", "meV/Å", scatter[0], _force_errors), ("energy MAE", "meV/atom", scatter[1], _energy_errors)]
    found = []
    for what, unit, between, errors_of in parts:
        mean = block_error(errors_of(errors))
        reference = None if known is None else block_error(errors_of(known))
        found.append(
            Quantity(
                f"{what}, {name}", mean.value, unit, finite(float(np.fmax(mean.error, between or np.nan))),
                None if reference is None else reference.value,
                None if reference is None else finite(reference.error), note=note,
            )
        )  # fmt: skip
    return found


def _force_errors(errors: TruthErrors) -> Float[np.ndarray, " samples"]:
    return errors.force_mae_meV_per_A


def _energy_errors(errors: TruthErrors) -> Float[np.ndarray, " samples"]:
    return np.asarray(np.abs(errors.energy_errors_meV_per_atom))


def _trace(run: Run, errors: TruthErrors) -> Trace:
    times = errors.frames.astype(np.float64) if errors.times_ps is None else errors.times_ps - errors.times_ps[0]
    return Trace(run.name, times, errors.force_mae_meV_per_A)


def _table(name: str, names: Sequence[str], found: Sequence[TruthErrors]) -> Table:
    columns: dict[str, list[object]] = {
        "rollout": [name for name, errors in zip(names, found, strict=True) for _ in errors.frames],
        "frame": [frame for errors in found for frame in errors.frames.tolist()],
        "energy error [meV/atom]": [e for errors in found for e in errors.energy_errors_meV_per_atom.tolist()],
        "force MAE [meV/Å]": [e for errors in found for e in errors.force_mae_meV_per_A.tolist()],
        "largest force error [meV/Å]": [e for errors in found for e in errors.force_max_meV_per_A.tolist()],
    }
    return Table(name, columns)
