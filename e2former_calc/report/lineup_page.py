"""A comparison of runs as files: one page, tables, figures and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from e2former_calc.report.html import document, figure_block, framed, number_text, table_row
from e2former_calc.report.judged import Columns, JudgedRun
from e2former_calc.report.lineup import Lineup, Metric
from e2former_calc.report.lineup_figures import Overlay, draw_overlays, draw_ratios, draw_survivals
from e2former_calc.report.section import Drawing, Quantity, Table
from e2former_calc.report.tables import json_ready, versions
from e2former_calc.report.writing import write_folder

FORMAT = "e2former_calc comparison of runs"
FORMAT_VERSION = 1
MAX_PANELS = 6
"""Pairs of elements in a figure."""

CURVES = (
    ("distances", "h(r)", ("r [Å]", "h(r) [1/Å]", "Δh(r) [1/Å]")),
    ("rdf", "g(r)", ("r [Å]", "g(r) [1]", "Δg(r) [1]")),
    ("angles", "Angles between neighbours", ("angle [°]", "density [1/°]", "Δdensity [1/°]")),
    ("torsions", "Torsions", ("dihedral angle [°]", "density [1/°]", "Δdensity [1/°]")),
)
"""Tables of reports that hold curves, what they are, and the labels of their axes."""

RATIOS_TEXT = (
    "Every number that has a noise level, in units of it. Within the grey area a run is closer to the reference than "
    "a perfect model of the same number and length of rollouts on average; the scale is linear up to 2 and logarithmic "
    "beyond."
)
SURVIVAL_TEXT = (
    "Probability that a rollout is still stable: Kaplan-Meier estimate over the rollouts of each run, with its "
    "pointwise 95 % band where there are several. Where none has failed the band tells what so few rollouts allow."
)


def write_lineup(
    lineup: Lineup, folder: str | Path, *, overwrite: bool = False, extra: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write summary.json, tables/*.csv, figures/*.png and *.svg, and report.html.

    Args:
        lineup: the runs.
        folder: created if it does not exist.
        overwrite: whether to replace a report that is there.
        extra: further entries of the summary.

    Returns:
        The files, the page first.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if it cannot be written.
    """
    shown = drawings(lineup)
    return write_folder(
        Path(folder), tables(lineup), shown, overwrite=overwrite, content=_summary(lineup, extra or {}),
        page=lambda figures: page(lineup, shown, figures),
    )  # fmt: skip


def overlays(lineup: Lineup, table: str) -> list[Overlay]:
    """Curves of one kind of all runs that have them, in the order of the first run."""
    having = [run for run in lineup.runs if table in run.tables]
    if not having:
        return []
    first = having[0].tables[table]
    x_name = next(iter(first))
    labels = [name.removesuffix(" reference") for name in first if name.endswith(" reference")]
    return [_overlay(label, x_name, table, having) for label in labels]


def drawings(lineup: Lineup) -> list[Drawing]:
    """Figures of the comparison."""
    names = [run.name for run in lineup.runs]
    judged = [metric for metric in lineup.metrics if metric.worst_ratio > 0]
    found = []
    if judged:
        found.append(Drawing("ratios", RATIOS_TEXT, lambda: draw_ratios(judged, names)))
    found.append(
        Drawing("survival", SURVIVAL_TEXT, lambda: draw_survivals({run.name: run.survival() for run in lineup.runs}))
    )
    for table, what, labels in CURVES:
        curves = overlays(lineup, table)
        groups = [(table, [part for part in curves if part.label == what])] if table == "distances" else []
        groups.append((f"{table}-pairs" if groups else table, [part for part in curves if part.label != what]))
        found += [_overlay_drawing(name, what, part[:MAX_PANELS], names, labels) for name, part in groups if part]
    return found


def _overlay_drawing(
    name: str, what: str, curves: Sequence[Overlay], names: Sequence[str], labels: tuple[str, str, str]
) -> Drawing:
    which = curves[0].label if len(curves) == 1 else f"{what}: {', '.join(curve.label for curve in curves)}"
    caption = (
        f"{which}. All runs and the reference (above), and their differences to it with the band that 95 % of the bins "
        "of the shortest run keep within if nothing but sampling differs (below)."
    )
    return Drawing(name, caption, lambda: draw_overlays(curves, names, labels=labels))


def tables(lineup: Lineup) -> list[Table]:
    """Metrics, and the curves of the figures."""
    found = [_metric_table(lineup)]
    for name, _, labels in CURVES:
        curves = overlays(lineup, name)
        if curves:
            columns: dict[str, list[float]] = {labels[0]: curves[0].x.tolist()}
            for curve in curves:
                columns[f"{curve.label} reference"] = curve.reference.tolist()
                columns[f"{curve.label} noise"] = curve.noise.tolist()
                columns |= {f"{curve.label} {run}": values.tolist() for run, values in curve.runs.items()}
            found.append(Table(name, columns))
    return found


def page(lineup: Lineup, shown: Sequence[Drawing], figures: Mapping[str, bytes]) -> str:
    """The comparison as HTML.

    Args:
        lineup: what to show.
        shown: its figures.
        figures: SVG of each, by its name.
    """
    system, reference = lineup.runs[0].summary["system"], lineup.runs[0].summary["reference"]
    title = f"{len(lineup.runs)} runs of {system['formula']} compared"
    length = "" if reference["length_ps"] is None else f" ({reference['length_ps']:.4g} ps)"
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in lineup.sentences)
    flags = "".join(f"<li>{escape(text)}</li>" for text in lineup.differences)
    return document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f"<p>{system['atoms']} atoms; all against a reference of {reference['frames']} frames{length}.</p>",
            f'<div class="verdict">{lines}</div>',
            f"<h2>What differs between the runs</h2>\n<ul>{flags}</ul>" if flags else "",
            "<h2>All numbers</h2>\n<p>In brackets: the value in units of the noise, near 1 for a "
            "perfect model; orange: sampling alone does not explain it.</p>",
            _metric_html(lineup),
            "<h2>Figures</h2>",
            *(figure_block(drawing, figures[drawing.name]) for drawing in shown),
            _provenance(lineup),
        ],
    )


def reference_text(metric: Metric) -> str:
    """The same number of the reference."""
    known = metric.reference
    return "–" if known is None else number_text(*known)


def noise_text(metric: Metric) -> str:
    """The noise floor of the reference; its range where the runs differ in length."""
    floors = metric.noise_floors
    if not floors:
        return "–"
    low, high = f"{min(floors):.3g}", f"{max(floors):.3g}"
    return low if low == high else f"{low} to {high}"


def _metric_html(lineup: Lineup) -> str:
    heads = [("quantity", ""), *((run.name, "number") for run in lineup.runs)]
    heads += [("noise floor", "number"), ("reference", "number"), ("unit", "")]
    rows = []
    for metric in lineup.metrics:
        cells = [(metric.name, ""), *(_cell(quantity) for quantity in metric.values)]
        unit = "" if metric.unit == "1" else metric.unit
        cells += [(noise_text(metric), "number"), (reference_text(metric), "number"), (unit, "")]
        rows.append(table_row(cells))
    return framed(table_row(heads, "th"), rows)


def _cell(quantity: Quantity | None) -> tuple[str, str]:
    if quantity is None or quantity.value is None:
        return "–", "number"
    text, ratio = number_text(quantity.value, quantity.error), quantity.in_units_of_noise
    return (text if ratio is None else f"{text} ({ratio:.2g})"), "number beyond" if quantity.beyond_noise else "number"


def _provenance(lineup: Lineup) -> str:
    heads = table_row([("run", ""), ("from", ""), ("rollouts", "number"), ("stable in all [ps]", "number")], "th")
    rows = [
        table_row([
            (run.name, ""), (run.origin, ""), (str(len(run.rollouts)), "number"), (f"{run.stable_ps:.5g}", "number"),
        ])
        for run in lineup.runs
    ]  # fmt: skip
    settings = ", ".join(f"{k} = {v}" for k, v in lineup.runs[0].summary["settings"].items() if v is not None)
    programs = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"<h2>Where this comes from</h2>\n{framed(heads, rows)}\n"
        f'<p class="small">Settings of {escape(lineup.runs[0].name)}: {escape(settings)}.</p>\n'
        f'<p class="small">Versions of the comparison: {escape(programs)}.</p>\n'
        '<p class="small">Data: tables/*.csv, summary.json.</p>'
    )


def _metric_table(lineup: Lineup) -> Table:
    columns: dict[str, list[Any]] = {"section": [], "quantity": [], "unit": []}
    for metric in lineup.metrics:
        columns["section"].append(metric.section)
        columns["quantity"].append(metric.name)
        columns["unit"].append(metric.unit)
        for run, quantity in zip(lineup.runs, metric.values, strict=True):
            for name in ("value", "error", "noise_floor", "noise_upper_95"):
                number = None if quantity is None else getattr(quantity, name)
                columns.setdefault(f"{run.name} {name.replace('_', ' ')}", []).append(number)
        known = metric.reference or (None, None)
        columns.setdefault("reference", []).append(known[0])
        columns.setdefault("reference error", []).append(known[1])
    return Table("metrics", columns)


def _summary(lineup: Lineup, extra: Mapping[str, Any]) -> dict[str, Any]:
    first = lineup.runs[0].summary
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sentences": lineup.sentences,
        "differences": lineup.differences,
        "system": first["system"],
        "reference": first["reference"],
        "runs": [
            {
                "name": run.name,
                "from": run.origin,
                "verdict": run.summary["verdict"],
                "rollouts": run.summary["rollouts"],
            }
            for run in lineup.runs
        ],
        "metrics": [
            {
                "section": metric.section,
                "name": metric.name,
                "unit": metric.unit,
                "runs": {
                    run.name: None if quantity is None else quantity.to_dict()
                    for run, quantity in zip(lineup.runs, metric.values, strict=True)
                },
            }
            for metric in lineup.metrics
        ],
        "settings": first["settings"],
        "versions": versions(),
    }
    return {key: json_ready(value) for key, value in (content | dict(extra)).items()}


def _overlay(label: str, x_name: str, table: str, runs: Sequence[JudgedRun]) -> Overlay:
    first = runs[0].tables[table]
    bands = [
        _values(run.tables[table], f"{label} noise band") for run in runs if f"{label} noise band" in run.tables[table]
    ]
    x = _values(first, x_name)
    return Overlay(
        label=label,
        x=x,
        reference=_values(first, f"{label} reference"),
        runs={
            run.name: _values(run.tables[table], f"{label} rollouts")
            for run in runs
            if f"{label} rollouts" in run.tables[table]
        },
        noise=np.max([np.zeros_like(x), *bands], axis=0),
    )


def _values(columns: Columns, name: str) -> Float[np.ndarray, " points"]:
    return np.array([np.nan if value is None else value for value in columns[name]], dtype=np.float64)
