"""`e2former bench --suite analysis`: time and memory of the analysis of trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from e2former_calc.benchmark import BenchmarkError, machine_info
from e2former_calc.benchmark.analysis import (
    DEFAULT_CASES,
    AnalysisCase,
    AnalysisResult,
    run_analysis_in_subprocess,
)
from e2former_calc.cli.bench_table import Table, three_digits
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.summary import json_ready

SUITES = ("model", "cpu", "gpu", "md", "original", "analysis")

UNITS = {"time": "s", "memory": "MB (10^6 bytes)"}
TABLE = Table((
    ("structure", 14), ("atoms", 6), ("frames", 8), ("observable", 29), ("s", 9), ("+MB", 8), ("MDAnalysis s", 14),
    ("+MB", 8), ("ratio", 8), ("difference", 12),
))  # fmt: skip

USED = ("structures", "suite", "frames", "repeats", "out", "overwrite", "seed")
"""Options that have a meaning for this suite."""


def suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --suite and --frames."""
    options = (
        click.option(
            "--suite", type=click.Choice(SUITES), default="model", show_default=True,
            help="What is timed: a model; a fixed list of models and structures with aims, for a CPU or a GPU; "
            "molecular dynamics; the original E2Former; or the analysis of made-up trajectories.",
        ),
        click.option(
            "--frames", type=click.IntRange(min=20), metavar="N",
            help="Frames of each trajectory, for --suite analysis.  [default: 100000 of 42 atoms, 1000 of 648 atoms]",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def bench_analysis(options: ModelOptions, structures: Sequence[str], *, overwrite: bool, frames: int | None) -> int:
    """Time the analysis of trajectories and print a table; returns the exit code.

    Raises:
        click.UsageError: for options of the model suite.
    """
    context = click.get_current_context()
    check_options(context, "analysis", USED)
    given = context.get_parameter_source("repeats") is not ParameterSource.DEFAULT
    repeats = int(context.params["repeats"]) if given else DEFAULT_CASES[0].repeats
    outputs = [with_suffix(options.out, "-bench.json")] if options.out else []
    check_outputs(outputs, overwrite=overwrite)
    cases = _cases(structures, frames, repeats, options.seed)
    machine = machine_info()
    load = machine["load_average"]
    notice(f"{machine['cpu']} ({machine['logical_cores']} cores{f', load {load[0]:.1f}' if load else ''}), analysis")
    click.echo(TABLE.head())
    answers: list[dict[str, Any]] = []
    for case in cases:
        try:
            results = run_analysis_in_subprocess(case)
        except BenchmarkError as error:
            notice(f"Error: {error}")
            answers.append({"structure": case.structure, "frames": case.frames, "error": str(error)})
            continue
        for result in results:
            click.echo(TABLE.row(result_cells(result)))
            answers.append(asdict(result))
    if outputs:
        _write(outputs[0], machine, answers)
        click.echo(f"wrote {outputs[0]}", err=True)
    return int(any("error" in answer for answer in answers))


def result_cells(result: AnalysisResult) -> list[str]:
    """One line of the table."""
    return [
        result.structure, str(result.atoms), str(result.frames), result.observable, three_digits(result.seconds),
        f"{result.memory_increase:.0f}", _or_dash(result.other_seconds, three_digits),
        _or_dash(result.other_memory_increase, lambda value: f"{value:.0f}"), _or_dash(result.speedup, three_digits),
        _or_dash(result.largest_difference, lambda value: f"{value:.1e}"),
    ]  # fmt: skip


def _cases(structures: Sequence[str], frames: int | None, repeats: int, seed: int) -> list[AnalysisCase]:
    known = {case.structure: case.frames for case in DEFAULT_CASES}
    unknown = next((name for name in structures if name not in known), None)
    if unknown is not None:
        raise click.UsageError(f"--suite analysis knows {', '.join(known)}, not {unknown!r}")
    return [AnalysisCase(name, frames or known[name], repeats, seed) for name in structures or known]


def check_options(context: click.Context, suite: str, used: Sequence[str]) -> None:
    """Refuse options that a suite does not look at.

    Raises:
        click.UsageError: naming one of them.
    """
    for name in context.params:
        given = context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        if given and name not in used:
            shown = name if name == "structures" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{shown} has no meaning for --suite {suite}: leave it out")


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _write(path: Path, machine: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    content = {"units": UNITS, "machine": machine, "suite": "analysis", "cases": list(cases)}
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
