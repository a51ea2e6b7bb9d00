"""`e2former reference`: ground-truth molecular dynamics with any ASE calculator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from e2former_calc.cli.messages import echo_table, notice, plural
from e2former_calc.cli.options import collected, overwrite_option, run_options
from e2former_calc.cli.output import check_outputs, with_suffix
from e2former_calc.cli.relaxation import stop_on_signal
from e2former_calc.cli.structures import Frame, read_frames
from e2former_calc.reference_md import (
    ENSEMBLES,
    CalculatorRecipe,
    Outcome,
    ReferenceSettings,
    Replica,
    check_replica,
    parse_options,
    run_replicas,
)


@dataclass(frozen=True)
class Calculation:
    """Options that choose the calculator."""

    calculator: str
    calculator_options: tuple[str, ...]
    charge: int | None
    multiplicity: int | None

    def recipe(self) -> CalculatorRecipe:
        """The calculator they describe."""
        options = parse_options(self.calculator_options)
        return CalculatorRecipe(self.calculator, options, self.charge, self.multiplicity)


@dataclass(frozen=True)
class Execution:
    """Options that say where and how to run."""

    replicas: int
    processes: int
    threads: int
    out: Path | None
    resume: bool
    overwrite: bool


EXAMPLES = """\b
A reference: e2former reference ethanol.xyz --relax --temperature-K 500 --time-ps 20
Training data: e2former reference ethanol.xyz --temperature-K 500 --temperature-K 1000
    --every-fs 25 --time-ps 10 --replicas 4 --processes 8
"""


@click.command(epilog=f"Exit code: 0 all done, or stopped in good order by Ctrl-C or SIGTERM; 1 error.\n\n{EXAMPLES}")
@click.argument("structures", metavar="STRUCTURE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--calculator", default="gfn2", show_default=True, metavar="NAME",
    help="gfn2 or gfn1 (xTB, needs tblite), a name that ASE knows (emt, lj, orca, ...), package.module:Class, or "
    "model:PATH_OR_NAME for a model of this package.",
)  # fmt: skip
@click.option(
    "--calculator-options", multiple=True, metavar="KEY=VALUE",
    help="Keyword argument of the calculator, or a JSON object of them; repeatable.",
)  # fmt: skip
@click.option("--charge", type=int, metavar="INTEGER", help="Total charge in e; overrides the structure file.")
@click.option("--multiplicity", type=int, metavar="INTEGER", help="2S+1; overrides the structure file.")
@click.option(
    "--ensemble", type=click.Choice(ENSEMBLES), default="nvt", show_default=True,
    help="Langevin thermostat, or constant energy after equilibration with the thermostat.",
)  # fmt: skip
@click.option(
    "--temperature-K", "temperatures", type=float, multiple=True, required=True, metavar="FLOAT",
    help="In K; repeat it for trajectories at several temperatures.",
)  # fmt: skip
@click.option("--time-ps", type=float, required=True, help="Recorded time of each trajectory in ps.")
@click.option("--timestep-fs", type=float, default=0.5, show_default=True, help="Time step in fs.")
@click.option(
    "--every-fs", type=float, default=5.0, show_default=True, help="Time between frames in fs, a multiple of the step."
)
@click.option("--friction-per-ps", type=float, default=10.0, show_default=True, help="Of the thermostat, in 1/ps.")
@click.option(
    "--equilibration-ps", type=float, default=0.5, show_default=True, help="Time that is run first and not recorded."
)
@click.option("--relax", is_flag=True, help="Relax the structure first.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of velocities and thermostat."
)
@click.option("--index", default="-1", show_default=True, metavar="INTEGER|SLICE", help="Frames of the files.")
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Independent trajectories of each."
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Trajectories at the same time."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of each.")
@click.option("--out", type=click.Path(path_type=Path), metavar="PREFIX", help="Prefix of the output files.")
@click.option(
    "--resume", is_flag=True, help="Continue files that exist, also to a longer --time-ps; begin those that do not."
)
@overwrite_option
@run_options
@collected(Calculation, "calculation")
@collected(Execution, "execution")
def reference(
    structures: tuple[Path, ...],
    *,
    calculation: Calculation,
    execution: Execution,
    temperatures: tuple[float, ...],
    index: str,
    **settings: Any,
) -> None:
    """Run molecular dynamics with a reference method from each STRUCTURE (any format that ASE reads), and write
    energies, forces, positions and velocities.

    Writes PREFIX.h5. For several structures, temperatures or replicas it is PREFIX-STRUCTURE-500K-0.h5, with those
    parts only of which there are several. Without --out PREFIX is the name of the structure file with "-reference",
    in the current folder (for several structures just "reference").

    Ctrl-C and SIGTERM stop in good order. A run that was stopped or killed continues with --resume and the same
    options and gives the frames of an uninterrupted run, bit for bit.
    """
    protocols = [ReferenceSettings(temperature=temperature, **settings) for temperature in dict.fromkeys(temperatures)]
    frames = [frame for path in structures for frame in read_frames(path, index)]
    replicas = _replicas(frames, protocols, calculation.recipe(), execution)
    _check(replicas, structures, execution)
    steps = sum(replica.settings.steps for replica in replicas)
    notice(
        f"{plural(len(replicas), 'trajectory').replace('ys', 'ies')}, {plural(steps, 'step')}, "
        f"calculator {calculation.calculator}, {plural(execution.threads, 'thread')} each"
    )
    outcomes = _run(replicas, execution)
    _conclude(replicas, outcomes)


def _replicas(
    frames: Sequence[Frame], protocols: Sequence[ReferenceSettings], recipe: CalculatorRecipe, execution: Execution
) -> list[Replica]:
    """Everything that is to be run, with file names of the parts that distinguish them."""
    first = frames[0].path.stem
    prefix = execution.out or Path("reference" if len(frames) > 1 else f"{first}-reference")
    replicas = []
    for position, frame in enumerate(frames):
        for settings in protocols:
            for number in range(execution.replicas):
                parts = (
                    (_structure_name(frame), len(frames)),
                    (f"{settings.temperature:g}K", len(protocols)),
                    (str(number), execution.replicas),
                )
                suffix = "".join(f"-{part}" for part, count in parts if count > 1)
                path = with_suffix(prefix, f"{suffix}.h5")
                replicas.append(Replica(frame.atoms, settings, recipe, path, number, position, frame.label))
    return replicas


def _structure_name(frame: Frame) -> str:
    return frame.path.stem if frame.count == 1 else f"{frame.path.stem}-{frame.index}"


def _check(replicas: Sequence[Replica], structures: Sequence[Path], execution: Execution) -> None:
    """Refuse, before anything runs, what cannot work."""
    paths = [replica.path for replica in replicas]
    twice = sorted(str(path) for path, count in Counter(paths).items() if count > 1)
    if twice:
        raise ValueError(f"several structures would be written to {', '.join(twice)}: give their files different names")
    if execution.resume and execution.overwrite:
        raise ValueError("--resume continues files and --overwrite replaces them: give one of them")
    if execution.resume and not any(path.exists() for path in paths):
        raise ValueError(f"there is nothing to continue, {paths[0]} does not exist: leave --resume out")
    check_outputs(paths, inputs=structures, overwrite=execution.overwrite or execution.resume)
    for replica in replicas:
        check_replica(replica, resume=execution.resume)


def _run(replicas: Sequence[Replica], execution: Execution) -> list[Outcome]:
    done = [0] * len(replicas)
    total = sum(replica.settings.steps for replica in replicas)
    with tqdm(total=total, unit="step", disable=None, dynamic_ncols=True) as bar, stop_on_signal(notice) as stop:

        def report(position: int, step: int) -> None:
            done[position] = step
            bar.update(sum(done) - bar.n)

        return run_replicas(
            replicas, processes=execution.processes, threads=execution.threads, resume=execution.resume,
            report=report, interrupted=lambda: stop.signal is not None,
        )  # fmt: skip


def _conclude(replicas: Sequence[Replica], outcomes: Sequence[Outcome]) -> None:
    pairs = list(zip(replicas, outcomes, strict=True))
    rows: list[tuple[str, str]] = []
    for replica, outcome in pairs:
        rows.append((str(replica.path), " ".join(filter(None, (outcome.status, outcome.message)))))
        rows += _details(replica, outcome)
    echo_table(rows)
    if any(outcome.status == "stopped" for outcome in outcomes):
        written = any(replica.path.exists() for replica in replicas)
        notice(f"stopped: the same command{' with --resume' if written else ''} continues, bit for bit")
    failures = [f"{replica.description}: {outcome.message}" for replica, outcome in pairs if outcome.status == "failed"]
    if failures:
        raise click.ClickException("; ".join(failures))


def _details(replica: Replica, outcome: Outcome) -> list[tuple[str, str]]:
    summary = outcome.summary
    if summary is None:
        return []
    speed = f", {outcome.steps / outcome.seconds:.1f} steps/s" if outcome.steps else ""
    rows = [("  frames", f"{summary.frames}, {summary.time_ps:g} ps{speed}")]
    if summary.temperature is not None:
        rows.append(("  temperature", f"mean {summary.temperature:.1f} K, target {replica.settings.temperature:g} K"))
    if summary.drift is not None and replica.settings.ensemble == "nve":
        rows.append(("  energy drift", f"{summary.drift:+.4f} meV/atom/ps"))
    return rows
