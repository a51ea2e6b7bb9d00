"""`e2former bench`: speed and memory of a model on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from ase import Atoms

from e2former_calc.benchmark import (
    BUILTIN_STRUCTURES,
    BenchmarkError,
    Case,
    ModelSpec,
    NetworkShape,
    Result,
    builtin_structure,
    machine_info,
    run_in_subprocess,
)
from e2former_calc.checkpoint.loading import resolve_path
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions, model_options, overwrite_option
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.structures import read_frames
from e2former_calc.cli.summary import json_ready

CASE_FAILED = 1
"""Exit code if a case could not be measured."""

COLUMNS = (
    ("structure", 16), ("atoms", 6), ("edges/atom", 11), ("threads", 8), ("energy", 9), ("E+forces", 9), ("min", 9),
    ("quartiles", 17), ("cpu", 9), ("list", 8), ("model", 9), ("rest", 8), ("peak MB", 9), ("+MB", 8),
)  # fmt: skip


def _thread_counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Comma-separated positive integers."""
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"expected positive integers such as 1,2,4, got {value!r}", context, parameter)
    return counts


@click.command()
@click.argument("structures", metavar="[STRUCTURE]...", nargs=-1)
@model_options
@click.option("--shape", metavar="CHANNELSxLAYERS", help="Time a network of this size with random weights, e.g. 256x4.")
@click.option(
    "--threads",
    default="1",
    show_default=True,
    callback=_thread_counts,
    metavar="N[,N...]",
    help="Threads, e.g. 1,2,4.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Timed calls of each kind.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
    help="No repeat of a case starts after this time in s; two are made in any case.",
)  # fmt: skip
@overwrite_option
def bench(
    options: ModelOptions, structures: tuple[str, ...], shape: str | None, overwrite: bool,
    **timing: Any,
) -> None:  # fmt: skip
    """Time energies and forces of structure files or built-in structures (all of them if none is named).

    Built in: ethanol, aspirin, Ac-Ala3-NHMe, water-64, water-216. Each case runs in a process of its
    own. Times in ms, medians but for min and quartiles; cpu is processor time of all threads, list
    the neighbour list, rest what the calculator adds. +MB is the memory on top of the loaded model.
    With --out PREFIX everything goes to PREFIX-bench.json too.
    """
    outputs = [with_suffix(options.out, "-bench.json")] if options.out else []
    files = [Path(name) for name in structures if name not in BUILTIN_STRUCTURES]
    check_outputs(outputs, inputs=files, overwrite=overwrite)
    model = model_spec(options, shape)
    named = [(name, read_named(name)) for name in structures or BUILTIN_STRUCTURES]
    machine = machine_info()
    notice(start_line(machine, model))
    click.echo(row([title for title, _ in COLUMNS]))
    answers, failed = [], False
    for case in cases(named, model, **timing):
        try:
            result = run_in_subprocess(case)
        except BenchmarkError as error:
            failed = True
            notice(f"Error: {error}")
            answers.append({"name": case.name, "threads": case.threads, "error": str(error)})
            continue
        click.echo(result_row(result))
        answers.append(result.to_dict())
    if outputs:
        write_results(outputs[0], machine=machine, model=model, cases=answers)
        click.echo(f"wrote {outputs[0]}", err=True)
    if failed:
        click.get_current_context().exit(CASE_FAILED)


def model_spec(options: ModelOptions, shape: str | None) -> ModelSpec:
    """What to time, checked before anything is measured.

    Raises:
        click.UsageError: if both a model and a shape are given.
        FileNotFoundError, ValueError: if there is no such model, or the shape is malformed.
    """
    chosen: dict[str, Any] = {
        "device": options.device, "dtype": options.dtype, "neighbor_cap": options.neighbor_cap,
        "charge": options.charge, "spin": options.spin,
    }  # fmt: skip
    if shape is not None:
        if options.model is not None:
            raise click.UsageError(f"--shape {shape} and --model {options.model} exclude each other")
        NetworkShape.parse(shape)
        return ModelSpec(chosen, shape=shape, seed=options.seed)
    model = str(resolve_path(options.model_name()).resolve())
    config = str(options.model_config.resolve()) if options.model_config else None
    more = {"config": config, "head": options.head, "variant": options.variant, "forces": options.forces}
    return ModelSpec({"model": model, **chosen, **more})


def read_named(name: str) -> Atoms:
    """A built-in structure or the last frame of a file.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read.
    """
    if name in BUILTIN_STRUCTURES:
        return builtin_structure(name)
    return read_frames(Path(name), "-1")[0].atoms


def cases(
    named: Sequence[tuple[str, Atoms]], model: ModelSpec, *, threads: Sequence[int], repeats: int, seconds: float
) -> Iterator[Case]:
    """Every structure with every number of threads."""
    for name, atoms in named:
        case = Case.of(Path(name).name, atoms, model, repeats=repeats, seconds=seconds)
        for count in threads:
            yield replace(case, threads=count)


def start_line(machine: dict[str, Any], model: ModelSpec) -> str:
    """Machine, versions and model in one line."""
    load = machine["load_average"]
    busy = f", load {load[0]:.1f}" if load else ""
    what = f"random weights {model.shape}" if model.shape else f"model {model.options['model']}"
    return (
        f"{machine['cpu']} ({machine['logical_cores']} cores, {machine['cpu_capability']}{busy}), "
        f"torch {machine['torch']}, device {model.options['device']}, {model.options['dtype']}, {what}"
    )


def row(cells: Sequence[str]) -> str:
    """Cells in columns; the first is aligned to the left."""
    widths = [width for _, width in COLUMNS]
    return f"{cells[0]:<{widths[0]}}" + "".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))


def result_row(result: Result) -> str:
    """One line of the table."""
    both = result.energy_forces
    times = [result.energy.median, both.median, both.minimum]
    parts = [result.energy_forces_cpu.median, result.neighbor_list.median, result.model.median, result.rest.median]
    return row(
        [
            result.name, str(result.atoms), f"{result.neighbors:.1f}", str(result.threads), *map(_ms, times),
            f"{_ms(both.lower_quartile)}-{_ms(both.upper_quartile)}", *map(_ms, parts),
            f"{result.memory_peak:.0f}", f"{result.memory_increase:.0f}",
        ]
    )  # fmt: skip


def _ms(value: float) -> str:
    """About three digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write_results(path: Path, *, machine: dict[str, Any], model: ModelSpec, cases: Sequence[dict[str, Any]]) -> None:
    """Write machine, model and measurements as JSON, atomically.

    Raises:
        OSError: if it cannot be written; an older file stays.
    """
    content = {
        "units": {"time": "ms", "memory": "MB (10^6 bytes)"},
        "machine": machine,
        "model": {"options": dict(model.options), "shape": model.shape, "seed": model.seed},
        "cases": list(cases),
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
