"""`e2former train`: from a configuration file to a model file."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from e2former_calc.checkpoint.loading import resolve_device
from e2former_calc.cli.group import ERROR
from e2former_calc.cli.messages import echo_table, notice
from e2former_calc.cli.options import debug_option, overwrite_option
from e2former_calc.cli.output import check_outputs
from e2former_calc.potentials.training.distributed import Workers, connected, torchrun_workers, worker_device
from e2former_calc.potentials.training.errors import ForceErrors
from e2former_calc.potentials.training.trainer import Progress
from e2former_calc.train import TrainingRun, read_plan
from e2former_calc.train.figures import draw_learning_curve, draw_parity
from e2former_calc.train.run import Judgement

COLUMNS = ("step", "loss", "learning_rate", "energy_mae_meV_per_atom", "force_mae_meV_per_A", "force_rmse_meV_per_A")


@click.command(epilog="Exit code: 0 all steps done or stopped in good order, 1 error.")
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="PREFIX",
    help="Prefix of the output files; default: name of the configuration file, in the current folder.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--max-minutes", type=click.FloatRange(min=0), help="Stop in good order after this time.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of torch.")
@click.option("--resume", is_flag=True, help="Continue from PREFIX-state.pt.")
@overwrite_option
@debug_option
def train(
    config: Path,
    *,
    out: Path | None,
    device: str,
    max_minutes: float | None,
    threads: int | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train or fine-tune a model as CONFIG.yaml says.

    Writes PREFIX.safetensors (the model, with its card), PREFIX-state.pt (to resume), PREFIX-log.csv,
    PREFIX-learning-curve.png and PREFIX-parity.png. A stopped run continues bit for bit with --resume.

    On several GPUs: torchrun --nproc-per-node N -m e2former_calc train CONFIG.yaml; each step's batch_size
    structures are divided among the processes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    prefix = out or Path(config.stem)
    names = ("-state.pt", "-log.csv", ".safetensors", "-learning-curve.png", "-parity.png")
    outputs = [prefix.with_name(prefix.name + name) for name in names]
    if torchrun_workers().first:
        check_outputs(outputs, inputs=[config], overwrite=overwrite or resume)
    own_device = worker_device(resolve_device(device))
    with connected(own_device) as workers, _one_message(workers):
        run = TrainingRun(read_plan(config), prefix, device=own_device, resume=resume, workers=workers)
        (_lead if workers.first else _follow)(run, outputs, max_minutes)


def _lead(run: TrainingRun, outputs: list[Path], max_minutes: float | None) -> None:
    """Train, write and tell: the only process, or the first of several."""
    _announce(run)
    log = TrainingLog(outputs[1], start=run.trainer.step)
    with log, _progress_bar(run) as bar, _interruption() as interrupted:

        def report(progress: Progress) -> None:
            log.add(progress)
            bar.update(progress.step - bar.n)
            if progress.validation is not None:
                bar.write(_line(progress))

        done = run.run(report=report, max_minutes=max_minutes, interrupted=lambda: bool(interrupted))
    judgement = run.finish()
    draw_learning_curve(log.rows, outputs[3])
    if judgement is not None:
        draw_parity(judgement.comparison, outputs[4], title=f"{run.prefix.name}, {judgement.frames} frames")
    _conclude(run, judgement, done=done)
    notice(f"wrote {', '.join(str(path) for path in outputs if path.exists())}")


def _follow(run: TrainingRun, _outputs: list[Path], max_minutes: float | None) -> None:
    """Take part in silence: the other processes."""
    with _interruption() as interrupted:
        run.run(report=lambda _: None, max_minutes=max_minutes, interrupted=lambda: bool(interrupted))
    run.finish()


@contextmanager
def _one_message(workers: Workers) -> Iterator[None]:
    """A loss that is not finite ends all processes, and one of them says so."""
    try:
        yield
    except FloatingPointError as error:
        if workers.first:
            click.echo(f"Error: {error}", err=True)
        # torchrun ends the other processes as soon as one has failed, so none fails before it is said.
        workers.any(True)
        raise click.exceptions.Exit(ERROR) from error


@dataclass
class TrainingLog:
    """CSV file of a run, continued behind `start` steps.

    Attributes:
        path: the file.
        start: steps done before; later rows of an old file are dropped.
        rows: everything in it.
    """

    path: Path
    start: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> TrainingLog:
        if self.start and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.start]
        self._file = open(self.path, "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._writer.writerows(self.rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, progress: Progress) -> None:
        """Write one line, at once."""
        errors = progress.validation
        values: list[Any] = [progress.step, f"{progress.loss:.6g}", f"{progress.learning_rate:.4g}"]
        if errors is None:
            values += ["", "", ""]
        else:
            values += [f"{errors.energy_mae:.4f}", f"{errors.forces.mae:.4f}", f"{errors.forces.rmse:.4f}"]
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        self._writer.writerow(self.rows[-1])
        self._file.flush()


def _announce(run: TrainingRun) -> None:
    data = run.data
    kept = 0 if data.validation is None else len(data.validation)
    notice(
        f"{len(data.training)} training and {kept} validation frames, {run.loaded.card.parameters:,} parameters, "
        f"device {run.potential.device}, step {run.trainer.step} of {run.plan.settings.steps}"
    )
    if run.trainer.compiled is not None:
        notice("the first step compiles the training step, which takes minutes (training.compile: never avoids it)")
    for finding in data.findings:
        notice(f"{finding.severity.capitalize()}: {finding.message}")


def _progress_bar(run: TrainingRun) -> Any:
    return tqdm(total=run.plan.settings.steps, initial=run.trainer.step, unit="step", disable=None, dynamic_ncols=True)


def _line(progress: Progress) -> str:
    errors = progress.validation
    if errors is None:
        return ""
    return (
        f"step {progress.step:7d}  loss {progress.loss:8.4f}  validation: energy {errors.energy_mae:7.3f} meV/atom, "
        f"forces {errors.forces.mae:7.2f} meV/Å"
    )


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """List that is not empty once Ctrl-C or SIGTERM has come; a second one stops at once."""
    received: list[int] = []

    def remember(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _conclude(run: TrainingRun, judgement: Judgement | None, *, done: bool) -> None:
    state = "all steps done" if done else f"stopped at step {run.trainer.step}, continue with --resume"
    rows = [("training", state)]
    if judgement is not None:
        errors = judgement.comparison.errors()
        rows += [
            ("judged on", f"{judgement.comparison.energies.shape[1]} {judgement.frames} frames"),
            ("energy", f"MAE {errors.energy_mae:8.3f}  RMSE {errors.energy_rmse:8.3f} meV/atom"),
            ("forces", _force_line(errors.forces)),
            *((f"  {chemical_symbols[z]}", _force_line(e)) for z, e in errors.by_element.items()),
        ]
    echo_table(rows)


def _force_line(errors: ForceErrors) -> str:
    return f"MAE {errors.mae:8.2f}  RMSE {errors.rmse:8.2f} meV/Å  cosine {errors.cosine:.5f}"
