"""`e2former compare`: several models lined up against the same reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e2former_calc.cli.analyze import NAMES, analysis_progress
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import overwrite_option, run_options

if TYPE_CHECKING:
    from e2former_calc.report import ReportSettings
    from e2former_calc.report.judged import JudgedRun
    from e2former_calc.report.lineup import Lineup, Metric

SHOWN = 3
"""Numbers of each section in the terminal; of more the first one and the worst. The files have all."""

EXAMPLES = """\b
Two reports: e2former compare report-small report-large --out comparison
With names: e2former compare small=report-1 large=report-2
Trajectories: e2former compare a=a-0.h5md,a-1.h5md b=b-0.h5md,b-1.h5md --reference reference.h5 --preset md22
"""


@click.command(epilog=EXAMPLES)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--reference", metavar="TRAJ",
    help="Ground truth that trajectories are judged against; folders must have been judged against the same one.",
)  # fmt: skip
@click.option(
    "--preset", type=click.Choice(NAMES),
    help="Thresholds and ranges for trajectories; default: those of the first folder, or the usual ones.",
)  # fmt: skip
@click.option("--expected-ps", type=float, help="Length of a complete rollout, for trajectories.")
@click.option("--frame-spacing-fs", type=float, help="Time between frames, for trajectories without times.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True, metavar="DIR",
    help="Folder of the comparison.",
)  # fmt: skip
@overwrite_option
@run_options
def compare(
    runs: tuple[str, ...], *, reference: str | None, preset: str | None, out: Path, overwrite: bool, **values: Any
) -> None:
    """Line up each RUN, one model's rollouts, against the same reference: numbers, figures, one page.

    RUN is a folder that 'e2former analyze' or 'e2former rollout' wrote, or trajectories, joined by commas, which are
    judged now (--reference). NAME=RUN gives a name for tables and legends. Runs of another molecule, judged against
    another reference or with other thresholds or ranges are refused; smaller differences are listed.

    Writes DIR/report.html (one page, nothing else needed), DIR/summary.json, DIR/tables/*.csv and DIR/figures/*.
    """
    from e2former_calc.report.lineup import line_up
    from e2former_calc.report.lineup_page import write_lineup
    from e2former_calc.report.writing import check_folder

    check_folder(out, overwrite=overwrite)
    named = named_runs(runs)
    if any(path.resolve() == out.resolve() for _, paths in named for path in map(Path, paths)):
        raise ValueError(f"{out} is one of the runs and would be replaced: choose another --out")
    given = {name: value for name, value in values.items() if value is not None}
    lineup = line_up(_judged(named, reference, preset, given))
    context = click.get_current_context()
    command = {"command": context.command_path, "options": dict(sorted(context.params.items()))}
    written = write_lineup(lineup, out, overwrite=overwrite, extra=command)
    click.echo("\n".join(lineup_lines(lineup)))
    click.echo(f"wrote {written[0]} and {len(written) - 1} more files in {out}", err=True)


def named_runs(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Name and paths of each RUN.

    Raises:
        ValueError: if a RUN is empty, or if two have the same name.
    """
    found = []
    for text in texts:
        name, equals, rest = text.partition("=")
        if Path(text).exists() or not equals or "/" in name:
            name, rest = "", text
        paths = [rest] if rest and Path(rest).exists() else [part for part in rest.split(",") if part]
        if not paths:
            raise ValueError(f"the run {text!r} names no folder and no trajectory")
        found.append((name or _short_name(paths[0]), paths))
    names = [name for name, _ in found]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"two runs are called {double!r}: give names, NAME=RUN")
    return found


def lineup_lines(lineup: Lineup) -> list[str]:
    """The comparison in words, and its numbers as a table for the terminal."""
    from e2former_calc.report.lineup_page import noise_text, reference_text

    lines = [*lineup.sentences, *(f"Differs: {text}" for text in lineup.differences), ""]
    rows = [["", *(run.name for run in lineup.runs), "noise floor", "reference", "unit"]]
    for metric in _shown(lineup.metrics):
        unit = "" if metric.unit == "1" else metric.unit
        cells = [_cell(metric, position) for position in range(len(lineup.runs))]
        rows.append([metric.name, *cells, noise_text(metric), reference_text(metric), unit])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if any(quantity.beyond_noise for metric in _shown(lineup.metrics) for quantity in metric.known):
        lines.append("* more than sampling alone explains")
    return lines


def _short_name(path: str) -> str:
    given = Path(path)
    return given.resolve().name if given.is_dir() else given.stem


def _cell(metric: Metric, position: int) -> str:
    from e2former_calc.report.html import number_text

    quantity = metric.values[position]
    if quantity is None or quantity.value is None:
        return "–  "
    return number_text(quantity.value, quantity.error) + (" *" if quantity.beyond_noise else "  ")


def _shown(metrics: Sequence[Metric]) -> list[Metric]:
    """Few numbers of each section: all of them, or the first one and the worst."""
    by_section: dict[str, list[Metric]] = {}
    for metric in metrics:
        by_section.setdefault(metric.section, []).append(metric)
    shown = []
    for group in by_section.values():
        shown += group if len(group) <= SHOWN else [group[0], max(group[1:], key=lambda metric: metric.worst_ratio)]
    return shown


def _judged(
    named: Sequence[tuple[str, list[str]]], reference: str | None, preset: str | None, given: dict[str, Any]
) -> list[JudgedRun]:
    """Folders as they are, trajectories judged now, with the settings of the first folder if there is one."""
    from e2former_calc.report import analyze_rollouts
    from e2former_calc.report.judged import judged, read_run

    folders = {name: read_run(paths[0], name) for name, paths in named if Path(paths[0]).is_dir()}
    if reference is None and len(folders) < len(named):
        missing = next(name for name, _ in named if name not in folders)
        raise ValueError(f"the run {missing} is no folder of a report: give --reference, against which it is judged")
    settings = _settings(next(iter(folders.values()), None), preset, given)
    found = []
    for name, paths in named:
        if name in folders:
            found.append(folders[name])
            continue
        notice(f"judging {name}")
        report = analyze_rollouts(paths, str(reference), settings, progress=analysis_progress())
        found.append(judged(report, name, ", ".join(paths)))
    if reference is not None and len(folders) == len(named):
        _check_reference(found, reference)
    return found


def _settings(first: JudgedRun | None, preset: str | None, given: dict[str, Any]) -> ReportSettings:
    from e2former_calc.report import PRESETS, ReportSettings

    if preset is not None:
        return replace(PRESETS[preset], **given)
    return replace(ReportSettings() if first is None else first.settings, **given)


def _check_reference(runs: Sequence[JudgedRun], reference: str) -> None:
    """Refuse folders that were judged against another file.

    Raises:
        ComparisonError: naming the run.
        OSError: if the file cannot be read.
    """
    from e2former_calc.report.judged import ComparisonError
    from e2former_calc.report.tables import file_sha256

    name = reference if Path(reference).exists() else reference.rpartition("@")[0]
    checksum = file_sha256(Path(name))
    for run in runs:
        if run.summary["reference"].get("sha256") != checksum:
            known = run.summary["reference"].get("path")
            raise ComparisonError(f"the run {run.name} was judged against {known}, not against {reference}")
