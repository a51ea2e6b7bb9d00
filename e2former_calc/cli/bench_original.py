"""`e2former bench --suite original`: the original E2Former beside its node-centric form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from e2former_calc.benchmark import BenchmarkError, machine_info
from e2former_calc.benchmark.original import (
    DEFAULT_SHAPE,
    ORDERS,
    STRUCTURES,
    OriginalCase,
    OriginalResult,
    run_original_in_subprocess,
)
from e2former_calc.cli.bench_analysis import check_options
from e2former_calc.cli.bench_table import Table, three_digits
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.summary import json_ready

SUITE = "original"
UNITS = {"time": "ms", "ratio": "time of the node-centric form / time of ours", "difference": "of forces, relative"}
TABLE = Table((
    ("structure", 16), ("order", 8), ("atoms", 6), ("edges/atom", 11), ("threads", 8), ("edge form", 10),
    ("node form", 10), ("ratio", 8), ("difference", 12),
))  # fmt: skip
USED = ("structures", "suite", "shape", "threads", "repeats", "seconds", "out", "overwrite", "seed")
"""Options that have a meaning for this suite."""


def bench_original(options: ModelOptions, structures: Sequence[str], *, overwrite: bool) -> int:
    """Time both forms for every order and print a table; returns the exit code.

    Raises:
        click.UsageError: for options of other suites.
        ValueError: for a shape that the network cannot have.
    """
    context = click.get_current_context()
    check_options(context, SUITE, USED)
    given = context.params
    outputs = [with_suffix(options.out, "-bench.json")] if options.out else []
    check_outputs(outputs, overwrite=overwrite)
    cases = [
        OriginalCase(
            structure, order, given["shape"] or DEFAULT_SHAPE, threads, given["repeats"], given["seconds"], options.seed
        )
        for structure in structures or STRUCTURES
        for order in ORDERS
        for threads in given["threads"]
    ]
    machine = machine_info()
    load = machine["load_average"]
    notice(
        f"{machine['cpu']} ({machine['logical_cores']} cores{f', load {load[0]:.1f}' if load else ''}), "
        f"random weights {cases[0].shape}, energy and forces, float32, times in ms"
    )
    click.echo(TABLE.head())
    answers: list[dict[str, Any]] = []
    for case in cases:
        try:
            result = run_original_in_subprocess(case)
        except BenchmarkError as error:
            notice(f"Error: {error}")
            answers.append({"structure": case.structure, "order": case.order, "error": str(error)})
            continue
        click.echo(TABLE.row(result_cells(result)))
        answers.append(asdict(result))
    if outputs:
        _write(outputs[0], machine, answers)
        click.echo(f"wrote {outputs[0]}", err=True)
    return int(any("error" in answer for answer in answers))


def result_cells(result: OriginalResult) -> list[str]:
    """One line of the table."""
    return [
        result.structure, result.order, str(result.atoms), f"{result.neighbors:.1f}", str(result.threads),
        *map(three_digits, (result.edge_ms, result.node_ms, result.ratio)), f"{result.difference:.1e}",
    ]  # fmt: skip


def _write(path: Path, machine: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    content = {"units": UNITS, "machine": machine, "suite": SUITE, "cases": list(cases)}
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
