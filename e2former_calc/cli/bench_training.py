"""`e2former bench --training`: speed and memory of training steps against the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from e2former_calc.benchmark import BenchmarkError, Case, TrainingCase, TrainingResult, run_training_in_subprocess
from e2former_calc.cli.bench_table import Outcome, Table, or_dash, three_digits
from e2former_calc.cli.options import ModelOptions

BATCH_SIZES = (1, 2, 4, 8, 16)

TRAINING_TABLE = Table((
    ("structure", 16), ("atoms", 6), ("edges/atom", 11), ("threads", 8), ("batch", 6), ("step", 9), ("ms/step", 9),
    ("quartiles", 17), ("cpu", 9), ("frames/s", 9), ("atoms/s", 9), ("speed-up", 9), ("compile s", 10),
    ("peak MB", 9), ("+MB", 8), ("GPU MB", 8),
))  # fmt: skip

FIXED_OPTIONS = {"forces": "gradient", "neighbor_cap": "none"}
"""Model options that training leaves no choice of."""


@dataclass(frozen=True)
class TrainingOptions:
    """What the options of training say.

    Attributes:
        training: whether training steps are measured at all.
        batch_sizes: frames per step, or None for `BATCH_SIZES`.
        compile: whether compiled steps are measured beside plain ones.
    """

    training: bool
    batch_sizes: tuple[int, ...] | None
    compile: bool

    def check(self) -> None:
        """Refuse options that have no meaning without --training.

        Raises:
            click.UsageError: naming one of them.
        """
        for name, given in (("--batch-sizes", self.batch_sizes is not None), ("--compile", self.compile)):
            if given and not self.training:
                raise click.UsageError(f"{name} belongs to --training: add --training, or leave out {name}")


def positive_integers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Comma-separated positive integers; None stays None.

    Raises:
        click.BadParameter: for anything else.
    """
    if value is None:
        return None
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"expected positive integers such as 1,2,4, got {value!r}", context, parameter)
    return counts


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options named like the fields of `TrainingOptions`."""
    options = (
        click.option("--training", is_flag=True, help="Time training steps instead of energies and forces."),
        click.option(
            "--batch-sizes", callback=positive_integers, metavar="N[,N...]",
            help=f"Frames per training step.  [default: {','.join(map(str, BATCH_SIZES))}]",
        ),
        click.option("--compile", is_flag=True, help="Time compiled training steps too; compiling takes minutes each."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def as_trained(options: ModelOptions, context: click.Context) -> ModelOptions:
    """Model options with the forces and the neighbours of a training run.

    Raises:
        click.UsageError: if others were asked for.
    """
    for name, fixed in FIXED_OPTIONS.items():
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if given and value not in (fixed, "auto"):
            raise click.UsageError(f"{flag} {value} does not go with --training, which always uses {flag} {fixed}")
    return replace(options, forces=FIXED_OPTIONS["forces"], neighbor_cap=FIXED_OPTIONS["neighbor_cap"])


def training_outcomes(cases: Iterable[Case], options: TrainingOptions) -> Iterator[Outcome]:
    """Every case with every batch size: plain steps, and compiled ones if asked for.

    Compiled steps are timed first and plain ones right after them, because compiling between the two would leave
    minutes in which the load of the machine may change.
    """
    for case in cases:
        for batch_size in options.batch_sizes or BATCH_SIZES:
            compiled = _measured(TrainingCase(case, batch_size, compiled=True)) if options.compile else None
            plain = _measured(TrainingCase(case, batch_size))
            yield _outcome(plain)
            if isinstance(compiled, TrainingResult) and isinstance(plain, TrainingResult):
                compiled = replace(compiled, speedup=plain.step.median / compiled.step.median)
            if compiled is not None:
                yield _outcome(compiled)


def _measured(case: TrainingCase) -> TrainingResult | Outcome:
    """The result, or the outcome of a case that failed."""
    try:
        return run_training_in_subprocess(case)
    except BenchmarkError as error:
        of_step = {"batch_size": case.batch_size, "compiled": case.compiled}
        return Outcome({"name": case.case.name, "threads": case.threads, **of_step, "error": str(error)})


def _outcome(result: TrainingResult | Outcome) -> Outcome:
    return result if isinstance(result, Outcome) else Outcome(result.to_dict(), [training_cells(result)])


def training_cells(result: TrainingResult) -> list[str]:
    """One line of the table."""
    step = result.step
    return [
        result.name, str(result.atoms), f"{result.neighbors:.1f}", str(result.threads), str(result.batch_size),
        "compiled" if result.compiled else "plain", three_digits(step.median),
        f"{three_digits(step.lower_quartile)}-{three_digits(step.upper_quartile)}",
        three_digits(result.step_cpu.median), three_digits(result.frames_per_second),
        three_digits(result.atoms_per_second), or_dash(result.speedup, ".2f"), or_dash(result.compile_seconds, ".0f"),
        f"{result.memory_peak:.0f}", f"{result.memory_increase:.0f}", or_dash(result.device_memory_peak, ".0f"),
    ]  # fmt: skip
