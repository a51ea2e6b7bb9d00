"""`e2former md`: molecular dynamics of one structure, several replicas as one batch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from ase import Atoms

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.cli.md_files import OutputFiles, relaxed_structure, write_final
from e2former_calc.cli.md_protocol import BAROSTATS, ENSEMBLES, THERMOSTATS, DomainWatch, Protocol, doubts
from e2former_calc.cli.md_report import Reporter, reporting
from e2former_calc.cli.md_stopping import Stopping, stopping_options
from e2former_calc.cli.messages import announce, echo_table, notice, plural
from e2former_calc.cli.options import ModelOptions, collected, model_options, overwrite_option
from e2former_calc.cli.relaxation import RelaxSettings, StopRequest, relax_atoms, stop_on_signal
from e2former_calc.cli.sections import SectionedCommand
from e2former_calc.cli.structures import Frame, read_frames
from e2former_calc.cli.summary import Stopwatch, write_summary
from e2former_calc.cli.threads import choose_threads
from e2former_calc.electronic_state import electronic_state
from e2former_calc.md.recording import Recording, RecordingFiles, observable_rows
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.stopping import Stop
from e2former_calc.md.velocities import InitialVelocities

STOPPED = 2
"""Exit code if a rule stopped a replica."""


@dataclass(frozen=True)
class Intervals:
    """Steps between frames, reports and restart files, and how frames are stored."""

    trajectory: Path | None
    every: int
    log_every: int
    restart_every: int
    precision: str
    compression: str


@dataclass(frozen=True)
class Execution:
    """Options that say from where, how often and how to run."""

    index: str
    replicas: int
    relax: bool
    resume: bool
    overwrite: bool
    threads: int | None
    skin: float


@click.command(
    cls=SectionedCommand,
    sections={
        "What is simulated": Protocol, "When a replica is stopped": Stopping, "Output": Intervals, "Run": Execution,
        "Model": ModelOptions,
    },
    epilog="Exit code: 0 all steps done, or stopped in good order by Ctrl-C or SIGTERM; 1 error; 2 a replica was "
    "stopped by a rule (values that are not finite, --max-force, --stop-rule); it keeps its last good state, and the "
    "others go on.",
)  # fmt: skip
@click.argument("structure", metavar="STRUCTURE", type=click.Path(path_type=Path))
@click.option("--ensemble", type=click.Choice(ENSEMBLES), default="nvt", show_default=True, help="What is constant.")
@click.option(
    "--thermostat", type=click.Choice(THERMOSTATS),
    help="For nvt and npt; default langevin (BAOAB splitting). With nvt also the quantum thermal baths, which give "
    "nuclei their zero-point energy: qtb, or adqtb, which adapts its noise so that no zero-point energy leaks.",
)  # fmt: skip
@click.option(
    "--barostat", type=click.Choice(BAROSTATS),
    help="For npt; default cell-rescaling, or monte-carlo (energies only) where that does not work; both scale the "
    "cell as a whole, anisotropic-cell-rescaling moves all lengths and angles.",
)  # fmt: skip
@click.option(
    "--temperature-K", "temperature", type=float, default=300.0, show_default=True, metavar="FLOAT",
    help="Of the thermostat and of the first velocities, in K.",
)  # fmt: skip
@click.option(
    "--final-temperature-K", "final_temperature", type=float, metavar="FLOAT",
    help="Let the temperature of the thermostat go in a straight line to this value.",
)  # fmt: skip
@click.option("--pressure-bar", type=float, default=1.0, show_default=True, help="For npt, in bar.")
@click.option("--timestep-fs", type=float, default=0.5, show_default=True, help="Time step in fs.")
@click.option(
    "--friction-per-ps", type=float, default=1.0, show_default=True, help="Of langevin, qtb and adqtb, in 1/ps."
)
@click.option(
    "--relaxation-time-fs", type=float, default=100.0, show_default=True, help="Of bussi and nose-hoover, in fs."
)
@click.option(
    "--pressure-relaxation-time-fs", type=float, default=1000.0, show_default=True,
    help="Of both cell rescalings, in fs.",
)  # fmt: skip
@click.option(
    "--compressibility-per-bar", type=float, default=4.5e-5, show_default=True,
    help="Of both cell rescalings, roughly; sets the pace only.",
)  # fmt: skip
@click.option("--fix-com", is_flag=True, help="Keep the centre of mass where it is; its motion is not counted.")
@click.option("--steps", type=click.IntRange(min=0), help="Length of the whole run, in steps.")
@click.option("--time-ps", type=float, help="Length of the whole run, in ps.")
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True,
    help="Independent runs as one batch; each has its own velocities and noise from --seed and its number.",
)  # fmt: skip
@click.option(
    "--every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps between trajectory frames."
)
@click.option("--log-every", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between reports.")
@click.option(
    "--restart-every", type=click.IntRange(min=1), default=1000, show_default=True, help="Steps between restart files."
)
@click.option(
    "--trajectory", type=click.Path(path_type=Path), metavar="FILE",
    help="Trajectory: .h5md, .extxyz or .traj; default PREFIX.h5md. Several replicas write FILE-0, FILE-1, ...",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["float32", "float64"]), default="float64", show_default=True,
    help="Of positions, velocities and forces in .h5md files.",
)  # fmt: skip
@click.option(
    "--compression", type=click.Choice(["none", "lzf", "gzip"]), default="none", show_default=True,
    help="Lossless, of .h5md files.",
)  # fmt: skip
@click.option("--relax", is_flag=True, help="Relax the structure first, to 0.05 eV/Å.")
@click.option("--index", default="-1", show_default=True, metavar="INTEGER", help="Frame of the file.")
@click.option(
    "--resume", is_flag=True, help="Continue from PREFIX.restart, also to more --steps; begin if nothing is there."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default OMP_NUM_THREADS, else one for every 64 atoms."
)
@click.option(
    "--skin", type=float, default=0.5, show_default=True, help="Of neighbour lists in Å; changes the speed only."
)
@stopping_options
@overwrite_option
@model_options
@collected(Protocol, "protocol")
@collected(Intervals, "intervals")
@collected(Execution, "execution")
@collected(Stopping, "stopping")
def md(
    options: ModelOptions, *, structure: Path, protocol: Protocol, intervals: Intervals, execution: Execution,
    stopping: Stopping,
) -> None:  # fmt: skip
    """Run molecular dynamics from STRUCTURE (any format that ASE reads); constraints in the file are kept.

    Writes the trajectory PREFIX.h5md with the topology PREFIX.pdb, PREFIX.csv (energies, temperature, pressure),
    PREFIX.restart, PREFIX-final.extxyz and PREFIX-summary.json. Without --out PREFIX is the name of the structure file
    with "-md", in the current folder.

    Ctrl-C and SIGTERM end the run after the step in good order. A run that was stopped or killed continues with
    --resume and the same options and gives what an uninterrupted run gives, bit for bit.
    """
    stopwatch = Stopwatch()
    files = _files(options.out or Path(f"{structure.stem}-md"), intervals, execution)
    continues = files.check(structure, resume=execution.resume, overwrite=execution.overwrite)
    frame = _single_frame(structure, execution.index)
    choose_threads(execution.threads, execution.replicas * len(frame.atoms))
    calculator = options.calculator()
    size = f"{plural(execution.replicas, 'replica')} of {frame.label} with {plural(len(frame.atoms), 'atom')}"
    announce(calculator, model=options.model_name(), size=size)
    with stop_on_signal(notice) as stop:
        atoms = protocol.constrained(_start(frame.atoms, calculator, files, continues=continues, stop=stop))
        settings = SimulationOptions(
            skin=execution.skin, stopping=stopping.rules(has_thermostat=protocol.ensemble != "nve"),
            stress=bool(atoms.pbc.all()) and calculator.potential.conservative, strict=calculator.strict,
        )  # fmt: skip
        replicas = [atoms] * execution.replicas
        simulation = _simulation(replicas, calculator, protocol, settings, seed=options.seed)
        if not continues:
            files.remove()
        stopwatch.lap("prepare")
        watch = DomainWatch(calculator)
        made, rate = _run(
            simulation, files, intervals, total=protocol.total_steps, resume=continues, hooks=(stop, watch)
        )
    stopwatch.lap("run")
    write_final(files.final, simulation)
    results = _results(simulation, made=made, rate=rate, total=protocol.total_steps, watch=watch)
    results["files"] = [path for path in files.all() if path.exists() or path == files.summary]
    write_summary(files.summary, calculator=calculator, inputs=[structure], stopwatch=stopwatch, results=results)
    notice(f"wrote {', '.join(str(path) for path in results['files'])}")
    _conclude(simulation, results, total=protocol.total_steps)


def _files(prefix: Path, intervals: Intervals, execution: Execution) -> OutputFiles:
    compression = None if intervals.compression == "none" else intervals.compression
    storage = RecordingFiles(precision=intervals.precision, compression=compression)
    return OutputFiles.of(
        prefix, intervals.trajectory, replicas=execution.replicas, relax=execution.relax, storage=storage
    )


def _single_frame(structure: Path, index: str) -> Frame:
    frames = read_frames(structure, index)
    if len(frames) != 1:
        raise ValueError(f"--index {index} selects {len(frames)} structures of {structure}: give one integer")
    return frames[0]


def _start(
    atoms: Atoms, calculator: E2FormerCalculator, files: OutputFiles, *, continues: bool, stop: StopRequest
) -> Atoms:
    """The structure to start from, looked at by the calculator, which refuses and warns as in any calculation."""
    state = electronic_state(atoms, calculator.charge, calculator.spin)
    if calculator.charge is not None or calculator.spin is not None or state.stated:
        atoms.info.pop("spin_multiplicity", None)
        atoms.info.update(charge=state.charge, spin=state.spin)

    def minimise(image: Atoms) -> None:
        image.calc = calculator
        outcome = relax_atoms(image, RelaxSettings(), observe=lambda _: None, stop=stop)
        if outcome.status in ("failed", "interrupted"):
            raise ValueError(f"--relax: {outcome.message}")
        last = outcome.last
        notice(f"relaxed in {plural(last.number, 'step')} to {last.energy:.4f} eV, largest force {last.fmax:.4f} eV/Å")

    if files.relaxed is not None:
        atoms = relaxed_structure(files.relaxed, atoms, continues=continues, relax=minimise)
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.calc = None
    return atoms


def _simulation(
    replicas: list[Atoms], calculator: E2FormerCalculator, protocol: Protocol, settings: SimulationOptions, *, seed: int
) -> Simulation:
    potential = calculator.potential
    integrator = protocol.integrator(has_stress=potential.conservative)
    for doubt in doubts(protocol, integrator, replicas[0], conservative=potential.conservative):
        warnings.warn(doubt, UserWarning, stacklevel=2)
    velocities = InitialVelocities(protocol.temperature)
    return Simulation(replicas, potential, integrator, seed=seed, velocities=velocities, options=settings)


def _run(
    simulation: Simulation, files: OutputFiles, intervals: Intervals, *, total: int, resume: bool,
    hooks: tuple[StopRequest, DomainWatch],
) -> tuple[int, float]:  # fmt: skip
    """Make the steps that are left; returns their number and steps per second."""
    stop, watch = hooks
    periodic = bool(simulation.topology().pbc.all())
    with (
        Recording(
            simulation, files.recording, every=intervals.every, log_every=intervals.log_every,
            restart_every=intervals.restart_every, resume=resume,
        ) as recording,
        reporting(simulation, total_steps=total, periodic=periodic) as reporter,
    ):  # fmt: skip
        if resume:
            notice(f"continuing at step {simulation.step} of {total}")

        def after_step(current: Simulation) -> None:
            reporter.advance(current)
            if stop.signal is not None:
                current.request_stop()

        report = _Report(reporter)
        observers = [
            *recording.observers, Observer(report, intervals.log_every), Observer(watch, intervals.restart_every),
            Observer(after_step),
        ]  # fmt: skip
        made = simulation.run(max(0, total - simulation.step), observers=observers)
        if made:
            recording.checkpoint()
        return made, reporter.pace.overall(simulation.step)


class _Report:
    """Writes a line per report, and one when a replica has been stopped."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: set[int] = set()

    def __call__(self, simulation: Simulation) -> None:
        self._reporter.line(simulation)
        if bool(simulation.state.running.all()):
            return
        for replica, stop in enumerate(simulation.stops()):
            if stop is not None and replica not in self._told:
                self._told.add(replica)
                notice(f"replica {replica} stopped at step {stop.step}: {stop.message}")


def _results(simulation: Simulation, *, made: int, rate: float, total: int, watch: DomainWatch) -> dict[str, Any]:
    rows = observable_rows(simulation.observables())
    replicas = []
    for values, stop in zip(rows, simulation.stops(), strict=True):
        names = ("potential_energy_eV", "kinetic_energy_eV", "total_energy_eV", "conserved_energy_eV", "temperature_K")
        replicas.append(dict(zip(names, values, strict=False)) | {"stopped": stop and _stop_facts(stop)})
    complete = simulation.step >= total
    all_stopped = all(replica["stopped"] for replica in replicas)
    return {
        "status": "complete" if complete else "all replicas stopped" if all_stopped else "interrupted",
        "step": simulation.step,
        "steps_of_this_call": made,
        "time_ps": 1e-3 * simulation.time_fs,
        "steps_per_second": rate,
        "ns_per_day": rate * simulation.integrator.timestep_fs * 86400e-6,
        "list_rebuilds": simulation.list_rebuilds,
        "degrees_of_freedom": simulation.dynamics.degrees_of_freedom.tolist(),
        "outside_training_data": watch.warned,
        "replicas": replicas,
    }


def _stop_facts(stop: Stop) -> dict[str, Any]:
    return {
        "rule": stop.reason.name, "step": stop.step, "message": stop.message, "last_good_step": stop.last_good_step
    }  # fmt: skip


def _conclude(simulation: Simulation, results: dict[str, Any], *, total: int) -> None:
    """Say how the run ended, and end with the exit code."""
    speed = f"{results['steps_per_second']:.1f} steps/s, {results['ns_per_day']:.3f} ns/day"
    rows = [(results["status"], f"{plural(simulation.step, 'step')} of {total}, {speed}")]
    stops = [(replica, stop) for replica, stop in enumerate(simulation.stops()) if stop is not None]
    rows += [
        (
            f"replica {replica}",
            f"stopped at step {stop.step}: {stop.message}; its last good state is that of step {stop.last_good_step}",
        )
        for replica, stop in stops
    ]
    echo_table(rows)
    if results["status"] == "interrupted":
        notice(f"stopped at step {simulation.step} of {total}: the same command with --resume continues, bit for bit")
    if stops:
        click.get_current_context().exit(STOPPED)
