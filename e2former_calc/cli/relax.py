"""`e2former relax`: move the atoms, and the cell if asked, to a minimum of the energy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from ase import Atoms
from tqdm import tqdm

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.cli.frames import check_format, trajectory_writer
from e2former_calc.cli.messages import announce, echo_table, notice, one_line, plural
from e2former_calc.cli.options import ModelOptions, collected, model_options, overwrite_option
from e2former_calc.cli.output import check_outputs, with_suffix
from e2former_calc.cli.relaxation import (
    OPTIMIZERS,
    Outcome,
    RelaxSettings,
    Step,
    check_start,
    force_noise,
    relax_atoms,
    stop_on_signal,
)
from e2former_calc.cli.structures import Frame, read_frames, snapshot, write_extxyz
from e2former_calc.cli.summary import Stopwatch, write_summary

EXIT_CODES = {"converged": 0, "not converged": 2}
INTERRUPTED = 128
"""Exit code of an interrupted run, less the number of the signal."""

TARGET_OVER_NOISE, LAST_OVER_NOISE = 5.0, 10.0
"""Ratios of --fmax and of the forces reached to the rounding noise below which rounding is to blame."""


@dataclass(frozen=True)
class Recording:
    """What is written during a relaxation, and how often (in steps)."""

    trajectory: Path | None
    traj_every: int
    log_every: int


def _optimizer_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """ASE's spelling of the name of an optimiser."""
    for name in OPTIMIZERS:
        if name.lower() == value.lower():
            return name
    raise click.BadParameter(f"ASE has no optimiser {value!r}; choose from {', '.join(OPTIMIZERS)}", context, parameter)


@click.command(
    epilog="Exit code: 0 converged, 2 not converged within --steps, 1 error, 128 + signal number if interrupted."
)
@click.argument("structure", metavar="STRUCTURE", type=click.Path(path_type=Path))
@click.option(
    "--optimizer", callback=_optimizer_name, default="BFGS", show_default=True, metavar="NAME",
    help=f"Optimiser of ASE: {', '.join(OPTIMIZERS)}.",
)  # fmt: skip
@click.option(
    "--fmax", type=float, default=0.05, show_default=True,
    help="Converged when no force on an atom exceeds this, in eV/Å; with --cell no virial per atom either.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(min=0), default=500, show_default=True, help="Largest number of steps.")
@click.option("--cell", is_flag=True, help="Relax the cell too (Frechet filter); needs three periodic directions.")
@click.option(
    "--pressure-gpa", type=float, default=0.0, show_default=True, help="External pressure in GPa, with --cell."
)
@click.option("--hydrostatic", is_flag=True, help="Keep the shape of the cell, with --cell.")
@click.option("--index", default="-1", show_default=True, metavar="INTEGER", help="Frame of the file.")
@click.option(
    "--trajectory", type=click.Path(path_type=Path), metavar="FILE",
    help="Trajectory: .traj, .extxyz, .xyz or .h5md; default PREFIX.traj.",
)  # fmt: skip
@click.option(
    "--traj-every", type=click.IntRange(min=1), default=1, show_default=True, help="Steps between trajectory frames."
)
@click.option(
    "--log-every", type=click.IntRange(min=1), default=10, show_default=True,
    help="Steps between lines; a terminal shows a progress bar instead.",
)  # fmt: skip
@overwrite_option
@model_options
@collected(RelaxSettings, "settings")
@collected(Recording, "recording")
def relax(
    options: ModelOptions,
    *,
    settings: RelaxSettings,
    recording: Recording,
    structure: Path,
    index: str,
    overwrite: bool,
) -> None:
    """Relax STRUCTURE (any format that ASE reads); constraints in the file are kept.

    Writes PREFIX.extxyz, the trajectory PREFIX.traj and PREFIX-summary.json. Without --out PREFIX is the
    name of the structure file with "-relaxed", in the current folder.
    """
    stopwatch = Stopwatch()
    files = Files.of(options.out or Path(f"{structure.stem}-relaxed"), recording.trajectory)
    check_outputs(files, inputs=[structure], overwrite=overwrite)
    frame = _single_frame(structure, index)
    calculator = options.calculator()
    announce(calculator, model=options.model_name(), size=f"{frame.label}: {plural(len(frame.atoms), 'atom')}")
    atoms = frame.atoms
    atoms.calc = calculator
    check_start(atoms, settings)
    for path in files:
        path.unlink(missing_ok=True)
    stopwatch.lap("load")
    outcome = _run(atoms, settings, recording, files.trajectory)
    stopwatch.lap("relax")
    advice = _advice(atoms, calculator, settings, outcome, seed=options.seed)
    if outcome.status != "failed":
        write_extxyz(files.final, [snapshot(atoms, calculator.results, calculator)])
    written = [path for path in files if path == files.summary or path.exists()]
    results = {"frame": frame.index, "formula": atoms.get_chemical_formula(), "atoms": len(atoms)}
    results |= outcome.to_dict() | {"advice": advice, "files": written}
    write_summary(files.summary, calculator=calculator, inputs=[structure], stopwatch=stopwatch, results=results)
    _report(outcome, settings, stopwatch.seconds["relax"])
    notice(f"wrote {', '.join(map(str, written))}")
    _finish(outcome, advice, files.final)


class Files(NamedTuple):
    """Output files of a relaxation."""

    final: Path
    trajectory: Path
    summary: Path

    @staticmethod
    def of(prefix: Path, trajectory: Path | None) -> Files:
        """Names from the prefix.

        Raises:
            ValueError: for a prefix that is a folder, or a trajectory of unknown format.
        """
        files = Files(
            with_suffix(prefix, ".extxyz"),
            trajectory or with_suffix(prefix, ".traj"),
            with_suffix(prefix, "-summary.json"),
        )
        check_format(files.trajectory)
        if files.trajectory.resolve() == files.final.resolve():
            raise ValueError(f"--trajectory {files.trajectory} is also the final structure: choose another name")
        return files


def _single_frame(structure: Path, index: str) -> Frame:
    frames = read_frames(structure, index)
    if len(frames) != 1:
        raise ValueError(f"--index {index} selects {len(frames)} structures of {structure}: give one integer")
    return frames[0]


def _run(atoms: Atoms, settings: RelaxSettings, recording: Recording, trajectory: Path) -> Outcome:
    with (
        trajectory_writer(trajectory) as write_frame,
        _progress(settings, recording.log_every) as show,
        stop_on_signal(notice) as stop,
    ):

        def observe(step: Step) -> None:
            if step.number % recording.traj_every == 0:
                write_frame(step.number, snapshot(atoms, atoms.calc.results, atoms.calc))
            show(step)

        return relax_atoms(atoms, settings, observe=observe, stop=stop)


def is_terminal() -> bool:
    """True if somebody watches stderr."""
    return sys.stderr.isatty()


@contextmanager
def _progress(settings: RelaxSettings, log_every: int) -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, lines otherwise."""
    if is_terminal():
        with tqdm(total=settings.steps, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

            def advance(step: Step) -> None:
                bar.set_postfix_str(f"E {step.enthalpy:.4f} eV, fmax {step.fmax:.4f} eV/Å", refresh=False)
                bar.update(step.number - bar.n)

            yield advance
        return
    latest: list[Step] = []

    def write_line(step: Step) -> None:
        latest[:] = [step]
        if step.number % log_every == 0:
            _echo_line(latest.pop(), settings)

    try:
        yield write_line
    finally:
        if latest:
            _echo_line(latest[0], settings)


def _echo_line(step: Step, settings: RelaxSettings) -> None:
    name = "enthalpy [eV]" if settings.pressure_gpa else "energy [eV]"
    header = f"{'step':>6} {name:>18} {'fmax [eV/Å]':>13}"
    line = f"{step.number:>6} {step.enthalpy:>18.6f} {step.fmax:>13.6f}"
    if settings.cell:
        header += f" {'volume [Å^3]':>13} {'pressure [GPa]':>15}"
        line += f" {step.volume:>13.4f} {step.pressure_gpa:>15.4f}"
    click.echo(f"{header}\n{line}" if step.number == 0 else line)
    sys.stdout.flush()


def _advice(
    atoms: Atoms, calculator: E2FormerCalculator, settings: RelaxSettings, outcome: Outcome, *, seed: int
) -> str | None:
    """Advice if float32 rounding may be what kept the relaxation from converging; the noise is measured."""
    if outcome.status not in ("not converged", "failed") or calculator.potential.dtype is not torch.float32:
        return None
    try:
        noise = force_noise(atoms, calculator, seed)
    except ValueError:
        return None
    if settings.fmax > TARGET_OVER_NOISE * noise and outcome.last.fmax > LAST_OVER_NOISE * noise:
        return None
    return (
        f"float32 rounding changes the forces of this structure by {noise:.1e} eV/Å, which is close to "
        f"--fmax {settings.fmax:g}: try --dtype float64"
    )


def _report(outcome: Outcome, settings: RelaxSettings, seconds: float) -> None:
    first, last = outcome.first, outcome.last
    rows = [
        (outcome.status, f"{plural(last.number, 'step')} of {settings.optimizer}, {seconds:.1f} s"),
        ("energy", f"{first.energy:.6f} → {last.energy:.6f} eV ({last.energy - first.energy:+.6f})"),
    ]
    if settings.pressure_gpa:
        change = last.enthalpy - first.enthalpy
        rows.append(("enthalpy", f"{first.enthalpy:.6f} → {last.enthalpy:.6f} eV ({change:+.6f})"))
    rows.append(("max force", f"{first.max_force:.6f} → {last.max_force:.6f} eV/Å"))
    if settings.cell:
        rows.append(("fmax", f"{first.fmax:.6f} → {last.fmax:.6f} eV/Å, virial per atom included"))
        rows.append(("volume", f"{first.volume:.4f} → {last.volume:.4f} Å^3"))
    if last.pressure_gpa is not None:
        rows.append(("pressure", f"{first.pressure_gpa:.4f} → {last.pressure_gpa:.4f} GPa"))
    echo_table(rows)


def _finish(outcome: Outcome, advice: str | None, final: Path) -> None:
    """Say what went wrong and end with the exit code."""
    if advice:
        notice(f"Advice: {advice}")
    if outcome.status == "failed":
        raise click.ClickException(one_line(outcome.message))
    if outcome.message:
        notice(f"{outcome.message}; {final} is a structure to continue from")
    code = EXIT_CODES.get(outcome.status, INTERRUPTED + (outcome.signal or 0))
    click.get_current_context().exit(code)
