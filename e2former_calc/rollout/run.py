"""From a plan and a model to trajectories, and from these to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.md.recording import Recording
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.stopping import Stop
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.report import Method, Report, Section, Table, analyze_rollouts, write_report
from e2former_calc.rollout.folder import RolloutFolder
from e2former_calc.rollout.plan import RolloutPlan
from e2former_calc.rollout.presets import PRESETS, check_model
from e2former_calc.rollout.start import accepted, read_start

OWN_FRAMES = (
    "The replicas start from frames of the reference. What moves slowly agrees with it until it has had the time to "
    "leave: in a short rollout such numbers say little about the model."
)


class RolloutRun:
    """Replicas that are simulated, recorded, and judged.

    Nothing is written before `recording`.

    Args:
        plan: what is simulated; what it leaves open is taken from the reference.
        calculator: the model.
        folder: where everything is written.
        resume: continue what is there.

    Attributes:
        plan: as it is carried out.
        calculator, folder: as given.
        start: reference, first structures and where they come from.
        simulation: the replicas.

    Raises:
        TrajectoryError: if the reference cannot be used, or start and reference do not fit together.
        ValueError: if plan and model do not fit together, the model refuses a start structure, or, with `resume`, the
            folder belongs to another plan.
        OSError: if a file cannot be read.
    """

    def __init__(
        self, plan: RolloutPlan, calculator: E2FormerCalculator, folder: RolloutFolder, *, resume: bool = False
    ) -> None:
        self.model = str(calculator.todict()["model"])
        check_model(plan, self.model, frozenset(getattr(calculator.potential, "compositions", ())))
        self.start = read_start(plan, self.model)
        self.plan = plan.settled(self.start.attributes)
        self.folder, self._resume, self.calculator = folder, resume, calculator
        if resume:
            self.start = replace(self.start, origins=folder.check_same(self.plan))
        starts = zip(self.start.images, self.start.origins, strict=True)
        images = [accepted(image, calculator, origin=origin) for image, origin in starts]
        self.simulation = Simulation(
            images, calculator.potential, self.plan.integrator(), seed=self.plan.seed,
            velocities=InitialVelocities(self.plan.temperature_K or 0.0),
            options=SimulationOptions(stopping=self.plan.stopping, strict=calculator.strict),
        )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be simulated: all steps are done, or all replicas are stopped."""
        return self.simulation.step >= self.plan.steps or all(stop is not None for stop in self.simulation.stops())

    def recording(self, *, log_every: int = 100, restart_every: int = 200) -> Recording:
        """Open trajectories, log and restart file, of a run that is continued at its restart file.

        Args:
            log_every: steps between rows of the log.
            restart_every: steps between restart files.

        Raises:
            H5MDError, OSError: if a file cannot be written or continued.
            RestartError: if the restart file is damaged or belongs to another simulation, and why.
        """
        if not self._resume:
            self.folder.begin()
        self.folder.note(self.plan, self.start.origins, "running")
        return Recording(
            self.simulation, self.folder.recording, every=self.plan.stride, log_every=log_every,
            restart_every=restart_every, resume=self._resume,
        )  # fmt: skip

    def advance(self, recording: Recording, observers: Sequence[Observer] = ()) -> int:
        """Make the steps that are left, or those before `Simulation.request_stop`; returns their number."""
        left = max(0, self.plan.steps - self.simulation.step)
        made = self.simulation.run(left, observers=(*recording.observers, *observers))
        if made:
            recording.checkpoint()
        return made

    def interrupted(self, facts: Mapping[str, Any]) -> None:
        """Note in the summary that the run is not complete.

        Args:
            facts: of this call.
        """
        step, steps = self.simulation.step, self.plan.steps
        self.folder.note(self.plan, self.start.origins, "interrupted", step=step, steps=steps, run=dict(facts))

    def judge(self, *, truth: Method | None = None, progress: Callable[[str], None] | None = None) -> Report:
        """The report on what was recorded; `recording` must be closed.

        Args:
            truth: ground-truth calculator that frames are recalculated with.
            progress: called with what is done next.

        Raises:
            TrajectoryError: if the trajectories cannot be analysed.
        """
        files = self.folder.recording.trajectories(self.plan.replicas)
        settings = self.plan.report_settings()
        method = Method(Path(self.model).name, self.calculator)
        report = analyze_rollouts(files, self.start.reference, settings, truth=truth, model=method, progress=progress)
        return with_run(report, self._section(), self.simulation.stops())

    def stable(self, report: Report) -> bool:
        """Whether all replicas are stable to the end and none was stopped by a rule."""
        return report.verdict.stable and all(stop is None for stop in self.simulation.stops())

    def write(self, report: Report, facts: Mapping[str, Any]) -> list[Path]:
        """Write summary, tables, figures and the page; returns the files, the page first.

        Args:
            report: from `judge`.
            facts: further entries of the summary.
        """
        stops = [None if stop is None else stop_facts(stop) for stop in self.simulation.stops()]
        replicas = [{"start": origin, "stopped": stop} for origin, stop in zip(self.start.origins, stops, strict=True)]
        extra = {"plan": self.plan.to_dict(), "replicas": replicas, **facts, "status": "complete"}
        return write_report(report, self.folder.path, overwrite=True, extra=extra)

    def _section(self) -> Section:
        plan, rows = self.plan, dict(self._conditions())
        remarks = [OWN_FRAMES] if plan.structure is None else []
        remarks += [] if plan.preset is None else [_published(plan)]
        caption = "Everything that is needed to repeat the run; summary.json has the versions of all libraries."
        columns = {"what": list(rows), "how": list(rows.values())}
        table = Table("run", columns, shown=True, caption=caption)
        return Section("run", "How the rollouts were made", tables=(table,), remarks=tuple(filter(None, remarks)))

    def _conditions(self) -> list[tuple[str, str]]:
        plan, recipe = self.plan, self.calculator.todict()
        heat = {
            "langevin": f"Langevin (BAOAB), friction {plan.friction_per_ps or 0.0:.4g} 1/ps",
            "nose-hoover": f"Nosé-Hoover chain, relaxation time {plan.relaxation_time_fs:g} fs",
            "bussi": f"stochastic velocity rescaling, relaxation time {plan.relaxation_time_fs:g} fs",
            "none": "none, constant energy",
        }[plan.thermostat]
        potential = self.calculator.potential
        return [
            ("model", Path(self.model).name),
            ("SHA-256 of its file", str(recipe["sha256"])),
            ("forces", "gradient of the energy" if potential.conservative else "from a network head"),
            ("arithmetic", str(potential.dtype).removeprefix("torch.")),
            ("preset", plan.preset or "none"),
            ("temperature", f"{plan.temperature_K:g} K"),
            ("thermostat", heat),
            ("time step", f"{plan.timestep_fs:g} fs"),
            ("length", f"{plan.length_ps:g} ps, {plan.steps} steps, a frame every {plan.every_fs:g} fs"),
            ("replicas", f"{plan.replicas}, seed {plan.seed}"),
            ("start", "; ".join(dict.fromkeys(self.start.origins))),
            ("a replica is stopped by", f"values that are not finite, a force above {plan.max_force:g} eV/Å, a mean "
             "temperature over 50 fs outside 0.1 to 5 times the target"),
        ]  # fmt: skip


def with_run(report: Report, section: Section, stops: Sequence[Stop | None]) -> Report:
    """The report with a section on how the rollouts were made, and a sentence on every replica that was stopped."""
    sentences = [
        f"{run.name} was stopped in step {stop.step}: {stop.message}."
        for run, stop in zip(report.rollouts, stops, strict=True)
        if stop is not None
    ]
    first, *others = report.verdict.sentences
    verdict = replace(report.verdict, sentences=(first, *sentences, *others))
    return replace(report, verdict=verdict, sections=(*report.sections, section))


def stop_facts(stop: Stop) -> dict[str, Any]:
    """What stopped a replica, JSON-able."""
    return {
        "rule": stop.reason.name, "step": stop.step, "last_good_step": stop.last_good_step, "message": stop.message,
    }  # fmt: skip


def _published(plan: RolloutPlan) -> str:
    """How the run compares with the one that published numbers are of."""
    known = PRESETS[plan.preset or ""].plan
    names = ("temperature_K", "timestep_fs", "thermostat", "friction_per_ps", "relaxation_time_fs", "every_fs")
    other = [
        f"{name} {getattr(known, name)}"
        for name in names
        if getattr(known, name) is not None and getattr(known, name) != getattr(plan, name)
    ]
    if plan.length_ps < known.length_ps:
        other.append(f"length {known.length_ps:g} ps")
    if not other:
        return ""
    return f"Published numbers of {plan.preset} are of other conditions ({', '.join(other)}): do not compare with them."
