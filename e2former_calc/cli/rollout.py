"""`e2former rollout`: replicas of a system simulated with a model and judged against a reference, in one go."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from e2former_calc.cli.analyze import NOT_STABLE, analysis_progress, truth_method, truth_options, verdict_lines
from e2former_calc.cli.messages import announce, notice, plural
from e2former_calc.cli.options import ModelOptions, collected, model_options, overwrite_option
from e2former_calc.cli.rollout_official import official_config_option, with_official
from e2former_calc.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from e2former_calc.cli.relaxation import StopRequest
    from e2former_calc.cli.summary import Stopwatch
    from e2former_calc.report import Method
    from e2former_calc.rollout import RolloutRun

NAMES = (
    "md22-ac-ala3-nhme", "md22-dha", "md22-stachyose", "md22-at-at", "md22-at-at-cg-cg", "md22-buckyball-catcher",
    "md22-double-walled-nanotube", "md17-aspirin", "md17-ethanol", "md17-naphthalene", "md17-salicylic-acid", "water",
    "lips",
)  # fmt: skip
"""Presets, as in `e2former_calc.rollout.PRESETS`, which is not imported for a help text."""

FOLDER = Path("rollout")

EXAMPLES = """\b
The bundled model, peptide and reference: e2former rollout
An MD22 benchmark: e2former rollout --preset md22-dha --model dha.pt --reference md22_DHA.npz --out dha
Ten picoseconds of it: e2former rollout --preset md22-dha --model dha.pt --reference md22_DHA.npz --time-ps 10
A folder of the original trainer and its simulation file: e2former rollout --preset md22-dha --model runs/dha
--official-config simulation.yml --reference md22_DHA.npz
"""


@dataclass(frozen=True)
class Conditions:
    """Options that are fields of a plan; None leaves the field to the preset or its default."""

    reference: str | None
    structure: str | None
    preset: str | None
    official_config: Path | None
    replicas: int | None
    time_ps: float | None
    every_fs: float | None
    temperature_K: float | None  # noqa: N815
    timestep_fs: float | None
    thermostat: str | None
    friction_per_ps: float | None
    relaxation_time_fs: float | None
    max_force: float | None


@dataclass(frozen=True)
class Thresholds:
    """Options that are fields of `ReportSettings`."""

    bond_threshold_A: float | None  # noqa: N815
    r_max_A: float | None  # noqa: N815
    n_bins: int | None
    truth_samples: int | None


@dataclass(frozen=True)
class GroundTruth:
    """Options of the calculator that frames are recalculated with."""

    truth: str | None
    truth_options: tuple[str, ...]


@dataclass(frozen=True)
class Execution:
    """Options that say how to run."""

    log_every: int
    restart_every: int
    resume: bool
    overwrite: bool
    threads: int | None


@click.command(
    cls=SectionedCommand,
    sections={
        "What is simulated": Conditions, "Report": Thresholds, "Ground truth": GroundTruth, "Run": Execution,
        "Model": ModelOptions,
    },
    epilog="Exit code: 0 all replicas stable to the end, or interrupted in good order by Ctrl-C or SIGTERM; "
    f"{NOT_STABLE} a replica is not stable or was stopped by a rule; 1 error.\n\n{EXAMPLES}",
)  # fmt: skip
@click.option(
    "--reference", metavar="TRAJ",
    help="Ground truth: H5MD, HDF5, npz, or anything that ASE reads; FILE@START:STOP takes some frames. Default: the "
    "one bundled for the model.",
)  # fmt: skip
@click.option(
    "--structure", metavar="FILE_OR_NAME",
    help="Start structure of all replicas, atoms in the order of the reference; a file or a bundled molecule. Default: "
    "each replica starts from another frame of the reference, equally spaced.",
)  # fmt: skip
@click.option(
    "--preset", type=click.Choice(NAMES),
    help="Conditions, thresholds and ranges that published tables were made with; other options win.",
)  # fmt: skip
@official_config_option
@click.option("--replicas", type=int, help="Independent runs as one batch (4; presets: 1 or 5).")
@click.option("--time-ps", type=float, help="Length in ps (4; presets: as published).")
@click.option(
    "--every-fs", type=float, help="Time between frames in fs, a multiple of the time step (4; presets: as published)."
)
@click.option("--temperature-K", "temperature_K", type=float, help="In K; default: as the reference states it.")
@click.option("--timestep-fs", type=float, help="Time step in fs (0.5).")
@click.option(
    "--thermostat", type=click.Choice(["langevin", "nose-hoover", "bussi", "none"]),
    help="Langevin (BAOAB splitting) unless a preset says otherwise; none is constant energy.",
)  # fmt: skip
@click.option(
    "--friction-per-ps", type=float,
    help="Of langevin, in 1/ps; default: as the reference states it, else 10. The friction 0.5 of E2Former's MD22 "
    "files is in ASE units and means 49/ps.",
)  # fmt: skip
@click.option("--relaxation-time-fs", type=float, help="Of nose-hoover and bussi, in fs (100).")
@click.option("--max-force", type=float, help="Stop a replica when a force exceeds this, in eV/Å (50).")
@click.option("--bond-threshold-A", "bond_threshold_A", type=float, help="Deviation of a bond that breaks it (0.5 Å).")
@click.option("--r-max-A", "r_max_A", type=float, help="Range of h(r) (10 Å; presets of MD22: 15 Å).")
@click.option("--n-bins", type=int, help="Bins of h(r) and g(r) (500).")
@click.option("--log-every", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between reports.")
@click.option(
    "--restart-every", type=click.IntRange(min=1), default=200, show_default=True, help="Steps between restart files."
)
@click.option(
    "--resume", is_flag=True,
    help="Continue the run in the folder, also to a longer --time-ps; of a finished one only write the report anew; "
    "begin if nothing is there.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default OMP_NUM_THREADS, else one for every 64 atoms."
)
@truth_options
@overwrite_option
@model_options(folder=FOLDER)
@collected(Conditions, "conditions")
@collected(Thresholds, "thresholds")
@collected(GroundTruth, "ground_truth")
@collected(Execution, "execution")
def rollout(
    options: ModelOptions,
    *,
    conditions: Conditions,
    thresholds: Thresholds,
    ground_truth: GroundTruth,
    execution: Execution,
) -> None:
    """Simulate replicas of a system with a model, judge them against a reference trajectory, and write a report.

    Without any option the bundled model, its molecule and its reference are used, for some minutes.

    Writes DIR/report.html (one page, nothing else needed; the verdict comes first), DIR/summary.json, DIR/tables/*.csv,
    DIR/figures/*, and the trajectories DIR/replica-0.h5md, ... with their topologies, DIR/log.csv and
    DIR/rollout.restart. A run that was stopped or killed continues with --resume and the same options and gives what
    an uninterrupted run gives, bit for bit.
    """
    from e2former_calc.cli.relaxation import stop_on_signal
    from e2former_calc.cli.summary import Stopwatch
    from e2former_calc.cli.threads import choose_threads
    from e2former_calc.rollout import RolloutFolder, RolloutRun, plan_from_dict

    stopwatch = Stopwatch()
    given = {name: value for name, value in vars(conditions).items() if value is not None}
    given, options = with_official(given, options)
    report = {name: value for name, value in vars(thresholds).items() if value is not None}
    plan = plan_from_dict({**given, "report": report, "seed": options.seed})
    folder = RolloutFolder(options.out or FOLDER)
    resume = folder.check(resume=execution.resume, overwrite=execution.overwrite)
    calculator = options.calculator()
    run = RolloutRun(plan, calculator, folder, resume=resume)
    choose_threads(execution.threads, run.simulation.dynamics.replicas.n_atoms)
    atoms = plural(len(run.simulation.topology().numbers), "atom")
    size = f"{plural(plan.replicas, 'replica')} of {atoms}, {run.plan.length_ps:g} ps at {run.plan.temperature_K:g} K"
    announce(calculator, model=options.model_name(), size=size)
    stopwatch.lap("prepare")
    with TemporaryDirectory(prefix="e2former-truth-") as temporary:
        stated = vars(ground_truth) | {"charge": options.charge, "multiplicity": options.spin}
        truth = truth_method(run.start.reference, stated, Path(temporary), alone=False)
        with stop_on_signal(notice) as stop:
            outcome = _simulate(run, execution, stop)
        stopwatch.lap("run")
        _finish(run, outcome, stopwatch, truth)


def _simulate(run: RolloutRun, execution: Execution, stop: StopRequest) -> dict[str, Any]:
    """Make the steps that are left, and say how it went."""
    from e2former_calc.cli.md_protocol import DomainWatch
    from e2former_calc.cli.md_report import reporting, watched
    from e2former_calc.md.simulation import Observer, Simulation

    simulation, total = run.simulation, run.plan.steps
    watch = DomainWatch(run.calculator)
    with (
        run.recording(log_every=execution.log_every, restart_every=execution.restart_every) as recording,
        reporting(simulation, total_steps=total, periodic=False) as reporter,
    ):
        if simulation.step:
            notice(f"continuing at step {simulation.step} of {total}")

        def after_step(current: Simulation) -> None:
            reporter.advance(current)
            if stop.signal is not None:
                current.request_stop()

        observers = [Observer(watch, execution.restart_every), Observer(after_step)]
        if not watched():
            observers.append(Observer(reporter.line, execution.log_every))
        made = run.advance(recording, observers)
        rate = reporter.pace.overall(simulation.step) if made else None
    for replica, reason in enumerate(simulation.stops()):
        if reason is not None:
            notice(f"replica {replica} was stopped in step {reason.step}: {reason.message}")
    return {"steps_of_this_call": made, "steps_per_second": rate, "outside_training_data": watch.warned}


def _finish(run: RolloutRun, outcome: dict[str, Any], stopwatch: Stopwatch, truth: Method | None) -> None:
    """Write and tell the verdict, or how to continue."""
    if not run.complete:
        run.interrupted(outcome)
        notice(
            f"stopped at step {run.simulation.step} of {run.plan.steps}: the same command with --resume continues, "
            "bit for bit"
        )
        return
    report = run.judge(truth=truth, progress=analysis_progress())
    stopwatch.lap("analysis")
    written = run.write(report, _facts(run, outcome, stopwatch))
    click.echo("\n".join(verdict_lines(report)))
    click.echo(f"wrote {written[0]} and {len(written) - 1} more files in {run.folder.path}", err=True)
    if not run.stable(report):
        click.get_current_context().exit(NOT_STABLE)


def _facts(run: RolloutRun, outcome: dict[str, Any], stopwatch: Stopwatch) -> dict[str, Any]:
    import torch

    from e2former_calc.cli.options import CONFIG_KEY
    from e2former_calc.cli.summary import describe_model, json_ready, versions
    from e2former_calc.report.tables import versions as report_versions

    context = click.get_current_context()
    return {
        "command": context.command_path,
        "options": json_ready(dict(sorted(context.params.items()))),
        "config_file": context.meta.get(CONFIG_KEY),
        "versions": versions() | report_versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "model": describe_model(run.calculator),
        "started": stopwatch.started.isoformat(timespec="seconds"),
        "timings_s": stopwatch.seconds,
        "run": outcome,
    }
