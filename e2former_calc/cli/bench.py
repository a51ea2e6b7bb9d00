"""`e2former bench`: speed and memory of a model on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from ase import Atoms

from e2former_calc.benchmark import (
    BUILTIN_STRUCTURES,
    TRAINING_STRUCTURES,
    BenchmarkError,
    Case,
    ModelSpec,
    NetworkShape,
    Result,
    builtin_structure,
    is_builtin,
    machine_info,
    run_in_subprocess,
)
from e2former_calc.checkpoint.loading import resolve_path
from e2former_calc.cli.bench_analysis import bench_analysis, suite_options
from e2former_calc.cli.bench_comparison import (
    COMPARISON_TABLE,
    ComparisonOptions,
    comparison_options,
    comparison_outcomes,
    draw_results,
)
from e2former_calc.cli.bench_dynamics import SUITE as DYNAMICS_SUITE
from e2former_calc.cli.bench_dynamics import bench_dynamics
from e2former_calc.cli.bench_original import SUITE as ORIGINAL_SUITE
from e2former_calc.cli.bench_original import bench_original
from e2former_calc.cli.bench_suite import HARDWARE_SUITES, bench_suite
from e2former_calc.cli.bench_table import Outcome, Table, three_digits
from e2former_calc.cli.bench_training import (
    TRAINING_TABLE,
    TrainingOptions,
    as_trained,
    positive_integers,
    training_options,
    training_outcomes,
)
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions, collected, model_options, overwrite_option
from e2former_calc.cli.output import check_outputs, replacing, with_suffix
from e2former_calc.cli.structures import read_frames
from e2former_calc.cli.summary import json_ready

CASE_FAILED = 1
"""Exit code if a case could not be measured."""

TABLE = Table((
    ("structure", 16), ("atoms", 6), ("edges/atom", 11), ("threads", 8), ("energy", 9), ("E+forces", 9), ("min", 9),
    ("quartiles", 17), ("cpu", 9), ("list", 8), ("model", 9), ("rest", 8), ("peak MB", 9), ("+MB", 8),
))  # fmt: skip

UNITS = {
    "time": "ms", "memory": "MB (10^6 bytes)", "compile_seconds": "s", "frames_per_second": "1/s",
    "atoms_per_second": "1/s",
}  # fmt: skip


@click.command()
@click.argument("structures", metavar="[STRUCTURE]...", nargs=-1)
@model_options
@click.option("--shape", metavar="CHANNELSxLAYERS", help="Time a network of this size with random weights, e.g. 256x4.")
@click.option(
    "--threads",
    default="1",
    show_default=True,
    callback=positive_integers,
    metavar="N[,N...]",
    help="Threads, e.g. 1,2,4.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Timed calls of each kind.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
    help="No repeat of a case starts after this time in s; two are made in any case.",
)  # fmt: skip
@comparison_options
@training_options
@suite_options
@overwrite_option
@collected(TrainingOptions, "steps")
@collected(ComparisonOptions, "comparison")
def bench(
    options: ModelOptions, structures: tuple[str, ...], shape: str | None, overwrite: bool,
    comparison: ComparisonOptions, steps: TrainingOptions, suite: str, frames: int | None, **timing: Any,
) -> None:  # fmt: skip
    """Time energies and forces, or training steps, of structure files or built-in structures.

    Built in: ethanol, aspirin, Ac-Ala3-NHMe, water-64, water-216; all of them if none is named, and other
    cubes of waters by name (water-8, water-512, ...). Each case runs in a process of its own. Times in ms,
    medians but for min and quartiles; cpu is processor time of all threads, list the neighbour list, rest
    what the calculator adds. +MB is the memory on top of the loaded model. With --out PREFIX everything
    goes to PREFIX-bench.json too.

    With --training: aspirin and Ac-Ala3-NHMe if none is named; whole optimiser steps on energies and
    forces, with made-up labels, gradient forces and all neighbours. speed-up is frames/s of compiled
    relative to plain steps. peak MB includes compiling, +MB is what later steps need on top of model
    and data, for compiled ones with what the compiler leaves behind. GPU MB is the largest allocation
    on a GPU. Where other programs run, compare cpu.

    With --compare: implementations in turn, at the same positions, list included. baseline is the official
    algorithm. ratio says how many times faster than the baseline (or the first one named), of floor how much of
    the time the arithmetic alone would take, max dF the largest difference of a force in eV/Å, MB the memory
    beyond the process before the model was loaded. --out PREFIX also writes PREFIX-bench.png, time per atom
    against the number of atoms.

    With --peer: other packages in the same rounds, e.g. --peer mace=/opt/mace/bin/python, called through their ASE
    calculators, list included, in float32, with as many threads; without --compare beside the model alone. A peer
    that fails is left out.

    With --suite cpu or gpu: comparisons, molecular dynamics and errors with the numbers they should reach; the
    former also takes --peer.

    With --suite md: steps of molecular dynamics beside ASE's on the same structures, in turn; parts (loop, models,
    replicas, step, memory) may be named in place of structures. us/step is for all replicas of a batch, steps/s counts
    the steps of each; ratio compares steps/s. --seconds is the length of a timed run, of at most 256 steps.

    With --suite original: attention of first, second and all order of the original E2Former with random weights
    (--shape, 64x2) in our form of edges and in the published node-centric one, in turn; ratio says how many times
    longer the latter takes, difference is the largest of a force relative to the largest force.

    With --suite analysis: trajectories of Ac-Ala3-NHMe and water-216 with made-up motion; s and +MB are
    medians of wall time and the memory on top of the trajectory, and ratio says how many times longer
    MDAnalysis takes for the same histogram, where it is installed.
    """
    steps.check()
    context = click.get_current_context()
    if suite == "analysis":
        context.exit(bench_analysis(options, structures, overwrite=overwrite, frames=frames))
    if frames is not None:
        raise click.UsageError("--frames belongs to --suite analysis: add it, or leave out --frames")
    if suite == ORIGINAL_SUITE:
        context.exit(bench_original(options, structures, overwrite=overwrite))
    if suite == DYNAMICS_SUITE:
        context.exit(bench_dynamics(options, structures, overwrite=overwrite))
    if suite in HARDWARE_SUITES:
        context.exit(bench_suite(options, suite=suite, overwrite=overwrite, peers=comparison.peer))
    comparison.check(context)
    compare = comparison.implementations(options)
    suffixes = ["-bench.json"] if compare is None else ["-bench.json", "-bench.png"]
    outputs = [with_suffix(options.out, suffix) for suffix in suffixes] if options.out else []
    files = [Path(name) for name in structures if not is_builtin(name)]
    check_outputs(outputs, inputs=files, overwrite=overwrite)
    model = model_spec(as_trained(options, context) if steps.training else options, shape)
    default = TRAINING_STRUCTURES if steps.training else BUILTIN_STRUCTURES
    named = [(name, read_named(name)) for name in structures or default]
    machine = machine_info()
    notice(start_line(machine, model) + (", training steps" if steps.training else ""))
    if compare is not None:
        outcomes = comparison_outcomes(cases(named, model, **timing), compare, comparison.peer)
        answers = report(COMPARISON_TABLE, outcomes)
    else:
        answers = report(*_alone(cases(named, model, **timing), steps))
    if outputs:
        write_results(outputs[0], machine=machine, model=model, cases=answers)
        drawn = compare is not None and draw_results(answers, outputs[1])
        for path in outputs if drawn else outputs[:1]:
            click.echo(f"wrote {path}", err=True)
    if any("error" in answer for answer in answers):
        context.exit(CASE_FAILED)


def _alone(chosen: Iterable[Case], steps: TrainingOptions) -> tuple[Table, Iterable[Outcome]]:
    """What is measured of every case where nothing is compared, and the table for it."""
    if steps.training:
        return TRAINING_TABLE, training_outcomes(chosen, steps)
    return TABLE, measured(chosen)


def report(table: Table, outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Print a line for every case as soon as it is measured, and errors; returns the entries of the JSON file."""
    click.echo(table.head())
    answers = []
    for outcome in outcomes:
        if "error" in outcome.answer:
            notice(f"Error: {outcome.answer['error']}")
        else:
            for row in outcome.rows:
                click.echo(table.row(row))
        answers.append(outcome.answer)
    return answers


def measured(cases: Iterable[Case]) -> Iterator[Outcome]:
    """Energies and forces of every case."""
    for case in cases:
        try:
            result = run_in_subprocess(case)
        except BenchmarkError as error:
            yield Outcome({"name": case.name, "threads": case.threads, "error": str(error)})
            continue
        yield Outcome(result.to_dict(), [result_cells(result)])


def model_spec(options: ModelOptions, shape: str | None) -> ModelSpec:
    """What to time, checked before anything is measured.

    Raises:
        click.UsageError: if both a model and a shape are given.
        FileNotFoundError, ValueError: if there is no such model, or the shape is malformed.
    """
    chosen: dict[str, Any] = {
        "device": options.device, "dtype": options.dtype, "neighbor_cap": options.neighbor_cap,
        "charge": options.charge, "spin": options.spin, "implementation": options.implementation,
    }  # fmt: skip
    if shape is not None:
        if options.model is not None:
            raise click.UsageError(f"--shape {shape} and --model {options.model} exclude each other")
        NetworkShape.parse(shape)
        return ModelSpec(chosen, shape=shape, seed=options.seed)
    model = str(resolve_path(options.model_name()).resolve())
    config = str(options.model_config.resolve()) if options.model_config else None
    more = {
        "config": config, "head": options.head, "variant": options.variant, "forces": options.forces,
        "strict": options.strict, "weights": options.weights,
    }  # fmt: skip
    return ModelSpec({"model": model, **chosen, **more}, seed=options.seed)


def read_named(name: str) -> Atoms:
    """A built-in structure or the last frame of a file.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read.
    """
    if is_builtin(name):
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


def result_cells(result: Result) -> list[str]:
    """One line of the table."""
    both = result.energy_forces
    times = [result.energy.median, both.median, both.minimum]
    parts = [result.energy_forces_cpu.median, result.neighbor_list.median, result.model.median, result.rest.median]
    return [
        result.name, str(result.atoms), f"{result.neighbors:.1f}", str(result.threads), *map(three_digits, times),
        f"{three_digits(both.lower_quartile)}-{three_digits(both.upper_quartile)}", *map(three_digits, parts),
        f"{result.memory_peak:.0f}", f"{result.memory_increase:.0f}",
    ]  # fmt: skip


def write_results(path: Path, *, machine: dict[str, Any], model: ModelSpec, cases: Sequence[dict[str, Any]]) -> None:
    """Write machine, model and measurements as JSON, atomically.

    Raises:
        OSError: if it cannot be written; an older file stays.
    """
    content = {
        "units": UNITS,
        "machine": machine,
        "model": {"options": dict(model.options), "shape": model.shape, "seed": model.seed},
        "cases": list(cases),
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
