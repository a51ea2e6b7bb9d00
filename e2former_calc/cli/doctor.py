"""`e2former doctor`: whether a model on this machine does what an interatomic potential must do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from e2former_calc.cli.messages import announce, one_line, plural
from e2former_calc.cli.options import ModelOptions, model_options, overwrite_option
from e2former_calc.cli.output import check_outputs, with_suffix
from e2former_calc.cli.structures import read_frames
from e2former_calc.cli.summary import Stopwatch, write_summary
from e2former_calc.doctor import Check, Structure, as_structure, examine, structures_for

CHECK_FAILED = 2
"""Exit code if a check failed."""

COLORS = {"pass": "green", "fail": "red", "skip": "yellow", "note": "cyan"}


@click.command()
@click.argument("arguments", metavar="[MODEL] [STRUCTURE]", nargs=-1)
@model_options
@click.option("--explain", is_flag=True, help="Explain checks that passed, too.")
@overwrite_option
def doctor(options: ModelOptions, arguments: tuple[str, ...], explain: bool, overwrite: bool) -> None:
    """Measure symmetries, gradients, extensivity, smoothness and precision of MODEL (or of --model).

    Works on a built-in molecule and a built-in periodic structure; STRUCTURE (the last frame of a
    file) takes the place of one of them. Everything is measured in float64; --dtype is what it is
    compared with. Exit codes: 0 nothing failed, 2 a check failed, 1 error. With --out PREFIX the
    checks go to PREFIX-summary.json too.
    """
    stopwatch = Stopwatch()
    options, path = split_arguments(options, arguments)
    inputs = [path] if path else []
    outputs = [with_suffix(options.out, "-summary.json")] if options.out else []
    check_outputs(outputs, inputs=inputs, overwrite=overwrite)
    structure = read_structure(path, options) if path else None
    calculator = options.calculator(dtype="float64")
    lower = options.calculator(dtype=options.dtype).potential if options.dtype != "float64" else None
    structures = structures_for(calculator.potential, structure)
    size = " and ".join(f"{s.name} ({plural(s.system.n_atoms, 'atom')})" for s in structures)
    announce(calculator, model=options.model_name(), size=size)
    stopwatch.lap("load")
    checks = examine(calculator.potential, structure, lower_precision=lower, seed=options.seed)
    stopwatch.lap("examine")
    click.echo("\n".join(report_lines(checks, explain=explain)))
    if outputs:
        results = {"structures": [s.name for s in structures], "checks": [check.to_dict() for check in checks]}
        write_summary(outputs[0], calculator=calculator, inputs=inputs, stopwatch=stopwatch, results=results)
        click.echo(f"wrote {outputs[0]}", err=True)
    if any(check.verdict == "fail" for check in checks):
        click.get_current_context().exit(CHECK_FAILED)


def split_arguments(options: ModelOptions, arguments: Sequence[str]) -> tuple[ModelOptions, Path | None]:
    """Options with the model in place, and the structure file; MODEL is an argument unless --model is given.

    Raises:
        click.UsageError: for too many arguments.
    """
    rest = list(arguments)
    if options.model is None and rest:
        options = replace(options, model=rest.pop(0))
    if len(rest) > 1:
        expected = "MODEL and STRUCTURE" if options.model == arguments[0] else "STRUCTURE (the model is in --model)"
        raise click.UsageError(f"too many arguments, expected at most {expected}; got {list(arguments)}")
    return options, Path(rest[0]) if rest else None


def read_structure(path: Path, options: ModelOptions) -> Structure:
    """Last frame of a file, with the charge and spin of the options.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read.
    """
    frame = read_frames(path, "-1")[0]
    return as_structure(frame.label, frame.atoms, charge=options.charge, spin=options.spin)


def report_lines(checks: Sequence[Check], *, explain: bool) -> list[str]:
    """An aligned table, explanations of what did not simply pass, and a summary."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':<{width}}  {'value':>9}  {'limit':>9}  {'unit':<9} verdict"]
    for check in checks:
        value, limit = (f"{v:.2e}" if v is not None else "-" for v in (check.value, check.limit))
        verdict = click.style(check.verdict, fg=COLORS[check.verdict])
        lines.append(f"{check.name:<{width}}  {value:>9}  {limit:>9}  {check.unit:<9} {verdict}")
    lines += ["", *_explanations(checks, explain)]
    counts = Counter(check.verdict for check in checks)
    lines.append(", ".join(f"{counts[v]} {v}" for v in ("pass", "fail", "skip", "note")))
    return lines


def _explanations(checks: Sequence[Check], explain: bool) -> list[str]:
    """One paragraph for each different text, with the checks that it is about."""
    names: dict[str, list[str]] = {}
    for check in checks:
        if explain or check.verdict != "pass":
            names.setdefault(f"{check.verdict}: {one_line(check.explanation)}", []).append(check.name)
    lines = []
    for text, about in names.items():
        paragraph = click.wrap_text(text, width=110, initial_indent="  ", subsequent_indent="  ")
        lines += ["; ".join(about), paragraph, ""]
    return lines
