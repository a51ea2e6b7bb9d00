"""`e2former bench --suite md`: speed of the engine of molecular dynamics beside that of ASE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from e2former_calc.benchmark import BenchmarkError, machine_info
from e2former_calc.benchmark.dynamics import run_dynamics_in_subprocess
from e2former_calc.benchmark.dynamics_case import (
    DEFAULT_CASES,
    PARTS,
    DynamicsCase,
    Measurement,
    MemoryUse,
    Part,
    StepPart,
)
from e2former_calc.cli.bench_analysis import check_options
from e2former_calc.cli.bench_table import Table, three_digits
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.summary import json_ready

SUITE = "md"

UNITS = {"time": "us per step of all replicas", "memory": "MB (10^6 bytes)", "steps_per_second": "1/s, of all replicas"}

TIMINGS = Table((
    ("structure", 14), ("atoms", 6), ("model", 15), ("replicas", 10), ("threads", 9), ("engine", 34), ("us/step", 10),
    ("fastest", 10), ("cpu", 10), ("steps/s", 10), ("ratio", 8), ("  to", 37),
))  # fmt: skip
STEP_PARTS = Table((
    ("structure", 14), ("atoms", 6), ("model", 15), ("integrator", 18), ("part of a step", 36), ("us", 10),
    ("share", 8),
))  # fmt: skip
MEMORY = Table((("structure", 14), ("atoms", 6), ("steps", 9), ("frames", 9), ("MB", 9), ("+MB", 8)))

USED = ("structures", "suite", "threads", "repeats", "seconds", "out", "overwrite", "seed")
"""Options that have a meaning for this suite."""


def bench_dynamics(options: ModelOptions, parts: Sequence[str], *, overwrite: bool) -> int:
    """Time loops, models, replicas and parts of a step, and print tables; returns the exit code.

    Raises:
        click.UsageError: for options of the other suites, and for unknown parts.
    """
    context = click.get_current_context()
    check_options(context, SUITE, USED)
    outputs = [with_suffix(options.out, "-bench.json")] if options.out else []
    check_outputs(outputs, overwrite=overwrite)
    cases = chosen_cases(parts, context, options.seed)
    machine = machine_info()
    load = machine["load_average"]
    notice(
        f"{machine['cpu']} ({machine['logical_cores']} cores{f', load {load[0]:.1f}' if load else ''}), "
        "molecular dynamics"
    )
    answers = report(cases)
    if outputs:
        _write(outputs[0], machine, answers)
        click.echo(f"wrote {outputs[0]}", err=True)
    return int(any("error" in answer for answer in answers))


def chosen_cases(parts: Sequence[str], context: click.Context, seed: int) -> list[DynamicsCase]:
    """The cases of these parts, or all, with what the options change.

    Raises:
        click.UsageError: for unknown parts.
    """
    unknown = next((name for name in parts if name not in PARTS), None)
    if unknown is not None:
        raise click.UsageError(f"--suite {SUITE} knows {', '.join(PARTS)}, not {unknown!r}")
    given: dict[str, Any] = {
        name: context.params[name]
        for name in ("threads", "repeats", "seconds")
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    return [replace(case, seed=seed, **given) for case in DEFAULT_CASES if case.part in (parts or PARTS)]


def report(cases: Sequence[DynamicsCase]) -> list[dict[str, Any]]:
    """Measure case after case, with a table for each part; returns the entries of the JSON file."""
    answers: list[dict[str, Any]] = []
    part: Part | None = None
    for case in cases:
        if case.part != part:
            part = case.part
            click.echo(("\n" if answers else "") + table_of(part).head())
        try:
            results = run_dynamics_in_subprocess(case)
        except BenchmarkError as error:
            notice(f"Error: {error}")
            answers.append({"part": part, "structure": case.structure, "model": case.model, "error": str(error)})
            continue
        for result in results:
            click.echo(table_of(part).row(result_cells(result)))
            answers.append({"part": part, **asdict(result)})
    return answers


def table_of(part: Part) -> Table:
    """Columns for the results of a part."""
    return {"step": STEP_PARTS, "memory": MEMORY}.get(part, TIMINGS)


def result_cells(result: Measurement) -> list[str]:
    """One line of a table."""
    if isinstance(result, MemoryUse):
        numbers = [result.atoms, result.steps, result.frames]
        return [result.structure, *map(str, numbers), f"{result.memory:.0f}", f"{result.increase:.1f}"]
    first = [result.structure, str(result.atoms), result.model or "-"]
    if isinstance(result, StepPart):
        return [*first, result.integrator, result.what, three_digits(result.microseconds), f"{result.share:.1%}"]
    times = (result.microseconds, result.fastest, result.processor, result.steps_per_second, result.ratio)
    return [*first, str(result.replicas), str(result.threads), result.what, *map(three_digits, times), result.baseline]


def _write(path: Path, machine: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    content = {"units": UNITS, "machine": machine, "suite": SUITE, "cases": list(cases)}
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
