# ruff: noqa: N815 (units in names)
"""How long the rollouts stay a simulation of the system they started as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from e2former_calc.analysis.collapse import CollapseLimits, Violation, detect_collapse, earliest_failure
from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.stability import (
    WATER_PAIRS,
    BondReference,
    BondStability,
    RdfCriterion,
    RdfStability,
    Stability,
    bond_reference,
    bond_stability,
    rdf_stability,
)
from e2former_calc.analysis.statistics import block_error
from e2former_calc.analysis.survival import SurvivalCurve, survival_of
from e2former_calc.analysis.trajectory import TrajectoryError
from e2former_calc.report.contacts import check_order, first_new_bond
from e2former_calc.report.energies import conserves_energy
from e2former_calc.report.figures import Trace, draw_bond_deviations, draw_survival, draw_windows
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite, reason_of
from e2former_calc.report.sources import Case, Part, Run

WATER_THRESHOLD_A = 3.0
OTHER_THRESHOLD_A = 1.0
"""Of the RDF criterion, as published for water and for LiPS."""

ENERGY_JUMP_SIGMA = 10.0
"""Of the changes of the total energy between frames before, where it should be conserved."""

LEAST_WINDOW = 5
"""Frames of a window of the RDF criterion, at least."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Stability of every rollout.

    Attributes:
        combined: earliest failure of any criterion, one for each rollout.
        bonds: evidence of the bond criterion; empty where it does not apply.
        windows: evidence of the RDF criterion; empty where it does not apply.
        violations: what the collapse detectors found, one list for each rollout.
        reference_max_A: largest bond deviation in the reference itself.
        remarks: what does not apply, and why.
    """

    combined: tuple[Stability, ...]
    bonds: tuple[BondStability, ...]
    windows: tuple[RdfStability, ...]
    violations: tuple[tuple[Violation, ...], ...]
    reference_max_A: float | None
    remarks: tuple[str, ...]

    @property
    def n_stable(self) -> int:
        """Number of rollouts that are stable to the end."""
        return sum(verdict.survived for verdict in self.combined)


def judge_stability(case: Case) -> Verdicts:
    """Apply the criteria that suit the system to every rollout.

    A criterion that the reference itself violates tells nothing about a rollout and is left out, with a remark; only
    the published bond criterion for molecules is kept then.

    Raises:
        TrajectoryError: if the time between frames of a rollout is not known, or its atoms are in another order.
    """
    remarks: list[str] = []
    known, reference_max = _bond_reference(case, remarks)
    limits = CollapseLimits(temperature_K=case.temperature_K)
    ignored = _fired_in_reference(case, limits, known, remarks)
    bonds = [] if known is None else [_bonds(run, known, case) for run in case.rollouts]
    for run, bond in zip(case.rollouts, bonds, strict=False):
        if bond.verdict.frame == 0:
            check_order(run, bond.reference)
    windows = _windows(case, remarks)
    violations = [
        tuple(
            found
            for found in _collapse(run, _limits_of(run, limits, case.settings.ensemble), known)
            if found.detector not in ignored
        )
        for run in case.rollouts
    ]
    combined = []
    for position, run in enumerate(case.rollouts):
        verdict = _complete(run, case)
        for evidence in (bonds, windows):
            if evidence:
                verdict = _earlier(verdict, evidence[position].verdict)
        combined.append(earliest_failure(verdict, violations[position]))
    return Verdicts(
        tuple(combined), tuple(bonds), tuple(windows), tuple(violations), reference_max, tuple(dict.fromkeys(remarks))
    )


def stability_section(case: Case, verdicts: Verdicts) -> Section:
    """Numbers, tables and figures of the verdicts."""
    names = [run.name for run in case.rollouts]
    quantities = [
        Quantity(f"stable time, {name}", verdict.stable_ps, "ps", note=verdict.reason or "stable to the end")
        for name, verdict in zip(names, verdicts.combined, strict=True)
    ]
    drawings, tables = [], [_verdict_table(names, verdicts)]
    remarks = list(verdicts.remarks)
    if verdicts.bonds:
        traces = _deviation_traces(case, verdicts)
        drawings.append(_bond_drawing(traces, case, verdicts))
        tables.append(_trace_table("bond-deviations", "largest deviation [Å]", traces))
        quantities.append(_largest_deviation(case, verdicts))
    if verdicts.windows:
        drawings.append(_window_drawing(case, verdicts))
        tables.append(_window_table(case, verdicts))
    if len(names) > 1:
        curve = survival_of(verdicts.combined)
        quantities += _survival_quantities(verdicts, curve)
        tables.append(_survival_table(curve))
        if not len(curve.times_ps):
            most = 100.0 * (1.0 - 0.05 ** (1.0 / len(names)))
            remarks.append(
                f"None of the {len(names)} rollouts failed: with a confidence of 95 % no more than {most:.0f} % of all "
                "such rollouts fail within this time."
            )
        drawings.append(
            Drawing(
                "survival",
                "Probability that a rollout is still stable: Kaplan-Meier estimate over the rollouts, which stay in "
                "the estimate as long as they are observed, with its pointwise band of confidence. Where none has "
                "failed the band tells what so few rollouts allow.",
                lambda: draw_survival(curve),
            )
        )
    else:
        remarks.append("A survival curve needs two rollouts or more; there is one.")
    return Section("stability", "Stability", tuple(quantities), tuple(tables), tuple(drawings), tuple(remarks))


def _bond_reference(case: Case, remarks: list[str]) -> tuple[BondReference | None, float | None]:
    threshold = case.settings.bond_threshold_A
    try:
        known = bond_reference(case.reference.source)
    except TrajectoryError as error:
        remarks.append(f"The bond criterion does not apply: {reason_of(error)}.")
        return None, None
    own = bond_stability(case.reference.source, known, threshold_A=threshold, frame_spacing_fs=1.0)
    largest = float(np.nanmax(own.worst_deviation_A))
    if own.verdict.survived:
        return known, largest
    violated = f"the reference itself exceeds {threshold:g} Å in frame {own.verdict.frame}"
    if case.reference.pbc[0]:
        remarks.append(f"The bond criterion does not apply: {violated}.")
        return None, None
    remarks.append(f"The bond criterion is strict here: {violated}.")
    return known, largest


def _fired_in_reference(
    case: Case, limits: CollapseLimits, known: BondReference | None, remarks: list[str]
) -> set[str]:
    found = _collapse(case.reference, _limits_of(case.reference, limits, None), known)
    remarks += [
        f"The detector '{one.detector}' is not used, since it fires in the reference, too ({one.reason})."
        for one in found
    ]
    return {one.detector for one in found}


def _collapse(run: Run, limits: CollapseLimits, known: BondReference | None) -> list[Violation]:
    found = detect_collapse(run.source, limits)
    formed = None if known is None else first_new_bond(run.source, known.bonds)
    return found if formed is None else [*found, formed]


def _limits_of(run: Run, limits: CollapseLimits, ensemble: str | None) -> CollapseLimits:
    jump = ENERGY_JUMP_SIGMA if conserves_energy(run, ensemble) else None
    return replace(limits, n_degrees_of_freedom=run.degrees, energy_jump_sigma=jump)


def _bonds(run: Run, known: BondReference, case: Case) -> BondStability:
    return bond_stability(run.source, known, threshold_A=case.settings.bond_threshold_A, frame_spacing_fs=_spacing(run))


def _windows(case: Case, remarks: list[str]) -> list[RdfStability]:
    settings, some = case.settings, case.reference.pbc[0]
    if not case.reference.pbc[1]:
        if some:
            remarks.append("The RDF criterion does not apply: the system is not periodic in three directions.")
        return []
    criterion = rdf_criterion(case)
    if min(len(run.source) for run in case.rollouts) < criterion.window_frames:
        remarks.append(f"The RDF criterion does not apply: a rollout is shorter than {settings.window_ps:g} ps.")
        return []
    if violated := _windows_of_reference(case, criterion):
        remarks.append(f"The RDF criterion does not apply: the reference itself violates it ({violated}).")
        return []
    return [
        rdf_stability(run.source, case.reference.source, criterion, frame_spacing_fs=_spacing(run))
        for run in case.rollouts
    ]


def _windows_of_reference(case: Case, criterion: RdfCriterion) -> str | None:
    """Why the reference fails its own RDF criterion, in as many frames as the rollouts have; None if it does not."""
    source = case.reference.source
    length = min(len(source), max(len(run.source) for run in case.rollouts))
    if length < criterion.window_frames:
        return None
    return rdf_stability(Part(source, 0, length), source, criterion, frame_spacing_fs=1.0).verdict.reason


def rdf_criterion(case: Case) -> RdfCriterion:
    """Pairs, window and threshold of the RDF criterion for this system."""
    settings, numbers = case.settings, set(np.asarray(case.reference.source.numbers).tolist())
    water = numbers == {1, 8}
    threshold = settings.rdf_threshold_A or (WATER_THRESHOLD_A if water else OTHER_THRESHOLD_A)
    spacing = max(_spacing(run) for run in case.rollouts)
    window = max(LEAST_WINDOW, round(1000.0 * settings.window_ps / spacing)) if spacing else LEAST_WINDOW
    return RdfCriterion(
        WATER_PAIRS if water else (("*", "*"),), window, threshold, RdfSettings(settings.rdf_r_max_A, settings.n_bins)
    )


def _spacing(run: Run) -> float:
    if run.spacing_fs is not None:
        return run.spacing_fs
    if len(run.source) < 2:
        return 0.0
    what = "no times" if run.times_ps is None else "frames at unequal intervals"
    raise TrajectoryError(f"the rollout {run.name} has {what}: give `frame_spacing_fs` (--frame-spacing-fs)")


def _expected(run: Run, case: Case) -> int:
    """Frames of a complete rollout; where nothing tells their spacing, a length needs two at least."""
    wanted, spacing, frames = case.settings.expected_ps, _spacing(run), len(run.source)
    if wanted is None:
        return frames
    return max(frames, round(1000.0 * wanted / spacing) + 1 if spacing else 2)


def _complete(run: Run, case: Case) -> Stability:
    """The verdict of nothing but the length."""
    frames, expected, spacing = len(run.source), _expected(run, case), _spacing(run)
    short = frames < expected
    reason = f"the trajectory ends after {frames} of {expected} frames"
    if not spacing:
        reason = f"there is one frame only, {case.settings.expected_ps or 0.0:g} ps are expected"
    return Stability(
        criterion="complete",
        frame=frames if short else None,
        reason=reason if short else None,
        stable_ps=(frames - 1) * spacing * 1e-3,
        stable_frames=frames - 1,
        usable_frames=frames,
        n_frames=frames,
        expected_frames=expected,
        frame_spacing_fs=spacing,
    )


def _earlier(first: Stability, second: Stability) -> Stability:
    if second.frame is None or (first.frame is not None and first.frame < second.frame):
        return first if first.frame is not None else replace(second, criterion=_both(first, second))
    return second


def _both(first: Stability, second: Stability) -> str:
    return second.criterion if first.criterion == "complete" else f"{first.criterion}; {second.criterion}"


def _deviation_traces(case: Case, verdicts: Verdicts) -> list[Trace]:
    return [
        Trace(run.name, 1e-3 * _spacing(run) * np.arange(len(bond.worst_deviation_A)), bond.worst_deviation_A)
        for run, bond in zip(case.rollouts, verdicts.bonds, strict=True)
    ]


def _bond_drawing(traces: Sequence[Trace], case: Case, verdicts: Verdicts) -> Drawing:
    threshold, largest = case.settings.bond_threshold_A, verdicts.reference_max_A or 0.0
    failures = [verdict.frame for verdict in verdicts.combined]
    return Drawing(
        "bond-deviations",
        "Largest deviation of any bond from its mean length in the reference, frame by frame. Above the dashed line a "
        "rollout counts as broken; the grey area is what the reference itself reaches. A cross marks where a rollout "
        "fails, for whatever reason.",
        lambda: draw_bond_deviations(traces, failures, threshold_A=threshold, reference_max_A=largest),
    )


def _window_drawing(case: Case, verdicts: Verdicts) -> Drawing:
    threshold = rdf_criterion(case).threshold_A
    starts = {
        run.name: 1e-3 * _spacing(run) * result.starts
        for run, result in zip(case.rollouts, verdicts.windows, strict=True)
    }
    errors = {
        run.name: result.errors_A.max(axis=1) for run, result in zip(case.rollouts, verdicts.windows, strict=True)
    }
    return Drawing(
        "rdf-windows",
        "Deviation of g(r) in short windows of the rollouts from that of the reference, worst pair of elements. Most "
        "of it is the noise of a short window; above the dashed line the structure counts as dissolved.",
        lambda: draw_windows(starts, errors, threshold_A=threshold),
    )


def _largest_deviation(case: Case, verdicts: Verdicts) -> Quantity:
    """Within the frames that observables use."""
    ends = [verdict.usable_frames for verdict in verdicts.combined]
    values = [bond.worst_deviation_A[:end] for bond, end in zip(verdicts.bonds, ends, strict=True) if end > 0]
    largest = finite(max((float(np.nanmax(part)) for part in values), default=float("nan")))
    threshold = f"threshold {case.settings.bond_threshold_A:g} Å; an extreme value, no error is estimated"
    return Quantity(
        "largest bond deviation in stable frames", largest, "Å", reference=finite(verdicts.reference_max_A),
        note=threshold if largest is not None else "there is no stable frame",
    )  # fmt: skip


def _survival_quantities(verdicts: Verdicts, curve: SurvivalCurve) -> list[Quantity]:
    times = np.array([verdict.stable_ps for verdict in verdicts.combined])
    mean = block_error(times)
    half = "more than half of the rollouts are stable to the end" if curve.median_ps is None else "Kaplan-Meier"
    return [
        Quantity("mean stable time", mean.value, "ps", finite(mean.error), note="over rollouts, none longer than run"),
        Quantity("median survival", finite(curve.median_ps), "ps", note=half),
        Quantity(
            "rollouts stable to the end", float(verdicts.n_stable), "1", note=f"of {len(times)}; a count has no error"
        ),
    ]


def _verdict_table(names: Sequence[str], verdicts: Verdicts) -> Table:
    combined = verdicts.combined
    columns: dict[str, Sequence[object]] = {
        "rollout": names,
        "stable [ps]": [verdict.stable_ps for verdict in combined],
        "recorded [ps]": [(verdict.n_frames - 1) * verdict.frame_spacing_fs * 1e-3 for verdict in combined],
        "frames": [verdict.n_frames for verdict in combined],
        "first bad frame": [verdict.frame for verdict in combined],
        "reason": [verdict.reason or "stable to the end" for verdict in combined],
    }
    if verdicts.bonds:
        columns["bond criterion alone [ps]"] = [evidence.verdict.stable_ps for evidence in verdicts.bonds]
    if verdicts.windows:
        columns["RDF criterion alone [ps]"] = [evidence.verdict.stable_ps for evidence in verdicts.windows]
    caption = (
        "Every rollout; the first bad frame counts from 0. Published stability times are those of the bond criterion "
        "(molecules) or of the RDF criterion (liquids) alone."
    )
    return Table("stability", columns, shown=True, caption=caption)


def _trace_table(name: str, header: str, traces: Sequence[Trace]) -> Table:
    return Table(
        name,
        {
            "rollout": [trace.name for trace in traces for _ in trace.values],
            "time [ps]": np.concatenate([trace.times_ps for trace in traces]).tolist(),
            header: np.concatenate([trace.values for trace in traces]).tolist(),
        },
    )


def _window_table(case: Case, verdicts: Verdicts) -> Table:
    columns: dict[str, list[object]] = {"rollout": [], "start [ps]": []}
    for run, result in zip(case.rollouts, verdicts.windows, strict=True):
        columns["rollout"] += [run.name] * len(result.starts)
        columns["start [ps]"] += (1e-3 * _spacing(run) * result.starts).tolist()
        for position, pair in enumerate(result.pairs):
            columns.setdefault(f"g(r) {'-'.join(pair)} [Å]", []).extend(result.errors_A[:, position].tolist())
    return Table("rdf-windows", columns)


def _survival_table(curve: SurvivalCurve) -> Table:
    return Table(
        "survival",
        {
            "time [ps]": curve.times_ps.tolist(),
            "survival": curve.survival.tolist(),
            "lower": curve.lower.tolist(),
            "upper": curve.upper.tolist(),
            "at risk": curve.at_risk.tolist(),
            "failures": curve.failures.tolist(),
        },
    )
