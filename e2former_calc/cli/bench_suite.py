"""`e2former bench --suite cpu` and `--suite gpu`: fixed measurements, and the aims that they are judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch

from e2former_calc.benchmark import ComparisonResult, ModelSpec, machine_info
from e2former_calc.benchmark.peer import PeerSpec
from e2former_calc.benchmark.suite import Finding, Pair, cpu_suite, gpu_suite, run_entries
from e2former_calc.checkpoint.loading import resolve_path
from e2former_calc.cli.bench_analysis import check_options
from e2former_calc.cli.bench_comparison import COMPARISON_TABLE, PeerNotes, comparison_rows, draw_results
from e2former_calc.cli.bench_table import Table
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.summary import json_ready

HARDWARE_SUITES = ("cpu", "gpu")
BUNDLED = "ala3-gfn2"

UNITS = {"time": "ms", "step_us": "us", "memory": "MB (10^6 bytes)", "force": "eV/Å", "energy": "eV"}
FINDINGS = Table((("work", 42), ("quantity", 34), ("measured", 12), ("aim", 12), ("unit", 7), ("reached", 9)))

USED = {"cpu": ("suite", "out", "overwrite", "seed", "peer"), "gpu": ("suite", "out", "overwrite", "seed")}
"""Options that have a meaning for these suites."""


def bench_suite(options: ModelOptions, *, suite: str, overwrite: bool, peers: tuple[PeerSpec, ...] = ()) -> int:
    """Measure a suite and print its tables; returns the exit code, 1 if a measurement failed.

    A peer that is missing is no failure.

    Raises:
        click.UsageError: for options that have no meaning here, and for the GPU suite without a CUDA device.
    """
    check_options(click.get_current_context(), suite, USED[suite])
    if suite == "gpu" and not torch.cuda.is_available():
        raise click.UsageError("--suite gpu needs a CUDA device, and torch sees none; --suite cpu runs on the host")
    outputs = [with_suffix(options.out, "-bench.json"), with_suffix(options.out, "-bench.png")] if options.out else []
    check_outputs(outputs, overwrite=overwrite)
    bundled = ModelSpec(
        {"model": str(resolve_path(BUNDLED)), "device": "cuda" if suite == "gpu" else "cpu"}, seed=options.seed
    )
    gpu = suite == "gpu"
    entries = gpu_suite(bundled, seed=options.seed) if gpu else cpu_suite(bundled, seed=options.seed, peers=peers)
    machine = machine_info()
    load = machine["load_average"]
    notice(f"{machine['cpu']} ({machine['logical_cores']} cores{f', load {load[0]:.1f}' if load else ''}), {suite}")
    click.echo(COMPARISON_TABLE.head())
    measurements: list[dict[str, Any]] = []
    findings: list[Finding] = []
    notes = PeerNotes()
    for result, found in run_entries(entries):
        if isinstance(result, ComparisonResult):
            notes.say(result)
            for row in comparison_rows(result):
                click.echo(COMPARISON_TABLE.row(row))
        measurements.append({"work": found[0].work, **_as_dict(result, found)})
        findings += found
    click.echo()
    click.echo(FINDINGS.head())
    for finding in findings:
        click.echo(FINDINGS.row(finding_cells(finding)))
    remarks = [finding for finding in findings if finding.remark and finding.remark not in notes.reasons]
    for remark in dict.fromkeys(f"{finding.work}: {finding.remark}" for finding in remarks):
        notice(remark)
    if outputs:
        _write(outputs, suite, machine, measurements=measurements, findings=findings)
    return int(any("error" in measurement for measurement in measurements))


def finding_cells(finding: Finding) -> list[str]:
    """One line of the table of aims."""
    sign = "≥" if finding.at_least else "≤"
    reached = "-" if finding.reached is None else "yes" if finding.reached else "no"
    measured = "-" if finding.value is None else f"{finding.value:.3g}"
    return [finding.work, finding.quantity, measured, f"{sign} {finding.limit:g}", finding.unit, reached]


def _as_dict(result: Any, found: list[Finding]) -> dict[str, Any]:
    if result is None:
        return {"error": found[0].remark}
    kind = "pair" if isinstance(result, Pair) else type(result).__name__
    return {"kind": kind, "result": result.to_dict()}


def _write(
    outputs: list[Path], suite: str, machine: dict[str, Any], *, measurements: list[dict[str, Any]],
    findings: list[Finding],
) -> None:  # fmt: skip
    content = {
        "units": UNITS, "machine": machine, "suite": suite, "measurements": measurements,
        "findings": [finding.to_dict() for finding in findings],
    }  # fmt: skip
    with replacing(outputs[0]) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    compared = [entry["result"] for entry in measurements if entry.get("kind") == ComparisonResult.__name__]
    drawn = draw_results(compared, outputs[1])
    for path in outputs if drawn else outputs[:1]:
        click.echo(f"wrote {path}", err=True)
