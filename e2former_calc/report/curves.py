"""Distributions against the reference and its noise: h(r) of molecules, g(r) of periodic systems, and others alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols

from e2former_calc.analysis.comparison import ComparedCurve
from e2former_calc.analysis.distances import DistanceDistribution, distance_distribution
from e2former_calc.analysis.histograms import BlockedHistogram, noise_floor
from e2former_calc.analysis.pair_counts import Pair, RdfSettings
from e2former_calc.analysis.rdf import radial_distributions
from e2former_calc.analysis.trajectory import FrameSource
from e2former_calc.report import noise
from e2former_calc.report.figures import Curve, draw_curve, draw_pairs
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case

MAX_PAIRS = 10
"""Pairs of elements with curves of their own."""

LEAST_ROLLOUTS = 4
"""From so many on errors are those over rollouts; of fewer, over blocks of them."""

NO_FRAME = "No frame of any rollout is stable: there is nothing to compare."


@dataclass(frozen=True)
class CurveKind:
    """Words for one kind of curve.

    Attributes:
        name: of section, table and figures.
        title: heading.
        unit: of the difference.
        y_label: with unit.
        difference: label of the difference, with unit.
        definition: of the number that stands for the difference.
        x_label: with unit.
        number: what that number is called.
        limits: ends of the x axis; None: as far as there is anything to see.
        caption: of the figure if all curves are alike; None if the first one is the headline.
    """

    name: str
    title: str
    unit: str
    y_label: str
    difference: str
    definition: str
    x_label: str = "r [Å]"
    number: str = "MAE"
    limits: tuple[float, float] | None = None
    caption: str | None = None


H_OF_R = CurveKind(
    "distances", "Interatomic distances h(r)", "1", "h(r) [1/Å]", "Δh(r) [1/Å]",
    "integral of |Δh| over r, 0 to 2, as published; error by the jackknife over rollouts or blocks of them",
)  # fmt: skip
G_OF_R = CurveKind(
    "rdf", "Radial distribution functions g(r)", "Å", "g(r) [1]", "Δg(r) [1]",
    "range times the mean of |Δg|, as published; error by the jackknife over rollouts or blocks of them",
)  # fmt: skip


def distances_section(case: Case) -> Section:
    """h(r), total and for each pair of elements."""
    settings, kind = case.settings, H_OF_R
    if case.reference.pbc[0]:
        return Section(kind.name, kind.title, skipped="h(r) is for molecules; this system is periodic.")
    if case.reference.n_atoms < 2:
        return Section(kind.name, kind.title, skipped="There is only one atom, and so no distance.")
    if not case.usable:
        return Section(kind.name, kind.title, skipped=NO_FRAME)
    known, *found = (
        distance_distribution(source, r_max_A=settings.r_max_A, n_bins=settings.n_bins, stop=stop, n_blocks=n_blocks)
        for source, stop, n_blocks in blocked_sources(case)
    )
    if not known.total.denominators.all():
        return Section(kind.name, kind.title, skipped=f"No distance is shorter than {settings.r_max_A:g} Å.")
    return compared_section(kind, _by_label(found), _by_label([known])[0], case)


def rdf_section(case: Case) -> Section:
    """Partial g(r) of each pair of elements."""
    settings, kind = case.settings, G_OF_R
    if not case.reference.pbc[1]:
        where = "periodic in one or two directions only" if case.reference.pbc[0] else "not periodic"
        return Section(kind.name, kind.title, skipped=f"g(r) needs a periodic system; this one is {where}.")
    if not case.usable:
        return Section(kind.name, kind.title, skipped=NO_FRAME)
    pairs = _pairs(case)
    chosen = RdfSettings(settings.rdf_r_max_A, settings.n_bins)
    known, *found = (
        {
            f"g(r) {'-'.join(part.pair)}": part.g
            for part in radial_distributions(source, pairs, chosen, stop=stop, n_blocks=n_blocks)
        }
        for source, stop, n_blocks in blocked_sources(case)
    )
    return compared_section(kind, found, known, case)


def blocked_sources(case: Case) -> list[tuple[FrameSource, int | None, int]]:
    """Reference and rollouts with the frame to stop before and the number of blocks for histograms of each."""
    own = [(run.source, run.usable, case.settings.n_blocks) for run in case.usable]
    return [(case.reference.source, None, noise.reference_blocks(case)), *own]


def _pairs(case: Case) -> list[Pair]:
    """All pairs of elements that exist; all atoms together where there are too many."""
    elements, counts = np.unique(np.asarray(case.reference.source.numbers), return_counts=True)
    single = {chemical_symbols[z] for z, count in zip(elements, counts, strict=True) if count == 1}
    symbols = [chemical_symbols[z] for z in elements[::-1]]
    pairs = [(a, b) for a, b in combinations_with_replacement(symbols, 2) if a != b or a not in single]
    return pairs if 0 < len(pairs) <= MAX_PAIRS else [("*", "*")]


def _by_label(distributions: Sequence[DistanceDistribution]) -> list[dict[str, BlockedHistogram]]:
    return [
        {"h(r)": part.total} | {f"h(r) {label}": curve for label, curve in part.partial.items()}
        for part in distributions
    ]


def compared_section(
    kind: CurveKind,
    rollouts: Sequence[Mapping[str, BlockedHistogram]],
    reference: Mapping[str, BlockedHistogram],
    case: Case,
    *,
    remarks: Sequence[str] = (),
) -> Section:
    """A section of curves of the rollouts, taken together, beside those of the reference.

    Args:
        kind: words for them.
        rollouts: curves by label, of each rollout in `case.usable`.
        reference: the same of the reference, in `noise.reference_blocks` blocks.
        case: rollouts and reference.
        remarks: sentences to put first.
    """
    rng = np.random.default_rng(case.settings.seed)
    compared = [
        _compare(label, pooled([part[label] for part in rollouts]), known, case, rng)
        for label, known in reference.items()
    ]
    drawn = {curve.label: _drawn(curve, kind) for curve in compared}
    pairs = [curve for label, curve in drawn.items() if label not in ("h(r)", "g(r) *-*")][: MAX_PAIRS + 2]
    return Section(
        kind.name,
        kind.title,
        quantities=tuple(_quantity(curve, kind) for curve in compared),
        tables=(_table(kind, compared), *_replica_table(kind, rollouts, reference, case)),
        drawings=_drawings(kind, [*drawn.values()], pairs),
        remarks=(*remarks, *_remarks(case)),
    )


def pooled(parts: Sequence[BlockedHistogram]) -> BlockedHistogram:
    """The blocks of several trajectories together; of `LEAST_ROLLOUTS` or more each is one block."""
    chosen = [part.merged(1) for part in parts] if len(parts) >= LEAST_ROLLOUTS else parts
    return BlockedHistogram(
        parts[0].edges,
        np.concatenate([part.numerators for part in chosen]),
        np.concatenate([part.denominators for part in chosen]),
        np.concatenate([part.frames for part in chosen]),
    )


def _compare(
    label: str, rollout: BlockedHistogram, reference: BlockedHistogram, case: Case, rng: np.random.Generator
) -> ComparedCurve:
    """Floors need blocks as short as a rollout, the errors of the reference's bins long ones."""
    floor = None
    if reference.n_blocks > 1:
        floor = noise_floor(reference, rng, lengths=noise.lengths(case, reference.n_blocks))
    known = reference.merged(case.settings.n_blocks)
    return ComparedCurve(label, rollout, known, rollout.mae(known), floor)


def _quantity(curve: ComparedCurve, kind: CurveKind) -> Quantity:
    floor = curve.floor
    note = kind.definition if floor is not None else f"{kind.definition}; the reference is too short for a noise floor"
    return Quantity(
        f"{curve.label} {kind.number}",
        curve.mae,
        kind.unit,
        error=finite(_jackknife(curve)),
        noise_floor=None if floor is None else floor.mean,
        noise_upper_95=None if floor is None else floor.upper_95,
        note=note,
    )


def _jackknife(curve: ComparedCurve) -> float:
    n = curve.rollout.n_blocks
    if n < 2:
        return float("nan")
    difference = np.abs(curve.rollout.values(1.0 - np.eye(n)) - curve.reference.values()).mean(axis=1)
    return float(np.sqrt((n - 1) * difference.var()) * curve.reference.edges[-1])


def _drawn(curve: ComparedCurve, kind: CurveKind) -> Curve:
    """With the band that the difference keeps within, bin by bin."""
    band = np.zeros_like(curve.reference.centers) if curve.floor is None else curve.floor.band
    return Curve(
        curve.label, curve.reference.centers, curve.rollout.values(), curve.reference.values(), band, kind.limits
    )


def _drawings(kind: CurveKind, drawn: Sequence[Curve], pairs: Sequence[Curve]) -> tuple[Drawing, ...]:
    headline = drawn[0]
    if kind.caption is not None:
        few = drawn[: MAX_PAIRS + 2]
        return (Drawing(kind.name, kind.caption, lambda: draw_pairs(few, x_label=kind.x_label, y_label=kind.y_label)),)
    drawings = [
        Drawing(
            kind.name,
            f"{headline.label} of the rollouts and of the reference (above), and their difference with the band that "
            "95 % of the bins keep within if nothing but sampling differs (below).",
            lambda: draw_curve(headline, x_label=kind.x_label, y_label=kind.y_label, difference_label=kind.difference),
        )
    ]
    if len(pairs) > 1:
        drawings.append(
            Drawing(
                f"{kind.name}-pairs",
                "The same for each pair of elements; the grey band around the two curves is as wide as sampling alone "
                "makes their difference.",
                lambda: draw_pairs(pairs, x_label=kind.x_label, y_label=kind.y_label),
            )
        )
    return tuple(drawings)


def _table(kind: CurveKind, compared: Sequence[ComparedCurve]) -> Table:
    columns: dict[str, list[float]] = {kind.x_label: compared[0].reference.centers.tolist()}
    for curve in compared:
        for name, part in (("rollouts", curve.rollout), ("reference", curve.reference)):
            columns[f"{curve.label} {name}"] = part.values().tolist()
            columns[f"{curve.label} {name} error"] = part.errors().tolist()
        if curve.floor is not None:
            columns[f"{curve.label} noise band"] = curve.floor.band.tolist()
    return Table(kind.name, columns)


def _replica_table(
    kind: CurveKind,
    rollouts: Sequence[Mapping[str, BlockedHistogram]],
    reference: Mapping[str, BlockedHistogram],
    case: Case,
) -> tuple[Table, ...]:
    if len(rollouts) < 2:
        return ()
    columns: dict[str, list[object]] = {"rollout": [run.name for run in case.usable]}
    for label, known in reference.items():
        columns[f"{label} {kind.number} [{kind.unit}]"] = [part[label].mae(known) for part in rollouts]
    return (Table(f"{kind.name}-by-rollout", columns),)


def _remarks(case: Case) -> tuple[str, ...]:
    if case.reference.times_ps is not None:
        return ()
    return (
        "The frames of the reference are not in the order of time: its noise floor is that of independent frames, "
        "which the correlated frames of a rollout do not reach.",
    )
