"""Where the time of a step goes, and whether memory stays constant.

Four loops take turns: bare steps of the integrator, forces alone at the positions that these went through,
`Simulation.run`, and the same with trajectory and log. Of each the time outside the model is known, and parts are
differences of these. Short operations take longer after a call of the model, which leaves nothing of them in the
caches, than when they are timed alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from torch import Tensor

from e2former_calc.benchmark.dynamics_case import DynamicsCase, MemoryUse, StepPart
from e2former_calc.benchmark.memory import resident_memory
from e2former_calc.benchmark.timing import ModelStopwatch, timed
from e2former_calc.md.recording import Recording, RecordingFiles
from e2former_calc.md.simulation import Simulation
from e2former_calc.potentials.potential import EnergyPotential

FRAME_EVERY: Final = 10
LOG_EVERY: Final = 100
RESTART_EVERY: Final = 1000
"""Steps between frames, rows of the log and restart files."""

MAX_STEPS: Final = 200
"""Steps of each loop; any number that is used is a multiple of the interval of frames."""


@dataclass(frozen=True)
class Sample:
    """Time per step (µs) of a loop, inside and outside the model."""

    model: float
    rest: float


def measure_step(case: DynamicsCase, simulation: Simulation, potential: EnergyPotential) -> list[StepPart]:
    """Parts of a step of a simulation with this potential."""
    clock = ModelStopwatch(potential)
    simulation.run(2)
    milliseconds, _ = timed(lambda: simulation.run(FRAME_EVERY))
    wanted = 1e3 * case.seconds * FRAME_EVERY / milliseconds
    steps = FRAME_EVERY * max(1, min(MAX_STEPS, round(wanted)) // FRAME_EVERY)
    samples: dict[str, list[Sample]] = {}
    with TemporaryDirectory(prefix="e2former-bench-") as folder:
        files = RecordingFiles(Path(folder, "x.h5md"), Path(folder, "x.csv"), Path(folder, "x.restart"))
        with Recording(
            simulation, files, every=FRAME_EVERY, log_every=LOG_EVERY, restart_every=RESTART_EVERY
        ) as recording:
            loops = _loops(simulation, recording)
            for _ in range(case.repeats):
                for name, loop in loops.items():
                    samples.setdefault(name, []).append(_sample(clock, loop, steps))
            checkpoints = [1e3 * timed(recording.checkpoint)[0] for _ in range(case.repeats)]
    return _parts(case, simulation, samples, float(np.median(checkpoints)) / RESTART_EVERY)


def measure_memory(case: DynamicsCase, simulation: Simulation) -> Iterator[MemoryUse]:
    """Resident memory after so many steps of a run that writes trajectory, log and restart files."""
    first = None
    with TemporaryDirectory(prefix="e2former-bench-") as folder:
        files = RecordingFiles(Path(folder, "x.h5md"), Path(folder, "x.csv"), Path(folder, "x.restart"))
        with Recording(
            simulation, files, every=FRAME_EVERY, log_every=LOG_EVERY, restart_every=RESTART_EVERY
        ) as recording:
            for length in case.lengths:
                simulation.run(length - simulation.step, observers=recording.observers)
                recording.checkpoint()
                gc.collect()
                memory = resident_memory()
                first = memory if first is None else first
                frames = 1 + simulation.step // FRAME_EVERY
                yield MemoryUse(case.structure, case.atoms, simulation.step, frames, memory, memory - first)


def _loops(simulation: Simulation, recording: Recording) -> Mapping[str, Callable[[int], Any]]:
    dynamics, integrator = simulation.dynamics, simulation.integrator
    visited: list[tuple[Tensor, Tensor]] = []

    def bare(steps: int) -> None:
        state = simulation.state
        visited.clear()
        for _ in range(steps):
            state = integrator.step(state, dynamics)
            visited.append((state.positions, state.cell))

    def forces(steps: int) -> None:
        for positions, cell in visited[:steps]:
            dynamics.forces.evaluate(positions, cell, stress=dynamics.needs_stress)

    def run(steps: int) -> None:
        simulation.run(steps)

    def recorded(steps: int) -> None:
        simulation.run(steps, observers=recording.observers)

    return {"bare": bare, "forces": forces, "run": run, "recorded": recorded}


def _sample(clock: ModelStopwatch, loop: Callable[[int], Any], steps: int) -> Sample:
    clock.total = 0.0
    milliseconds, _ = timed(lambda: loop(steps))
    return Sample(1e3 * clock.total / steps, 1e3 * (milliseconds - clock.total) / steps)


def _parts(
    case: DynamicsCase, simulation: Simulation, samples: Mapping[str, list[Sample]], restart: float
) -> list[StepPart]:
    rest = {name: np.array([sample.rest for sample in found]) for name, found in samples.items()}
    parts = {
        "model": np.array([sample.model for found in samples.values() for sample in found]),
        "neighbour list and call": rest["forces"],
        "integrator": rest["bare"] - rest["forces"],
        "stopping rules and loop": rest["run"] - rest["bare"],
        f"trajectory every {FRAME_EVERY}, log every {LOG_EVERY}": rest["recorded"] - rest["run"],
        f"restart file every {RESTART_EVERY}": np.array([restart]),
    }
    medians = {what: float(np.median(values)) for what, values in parts.items()}
    total = sum(medians.values())
    return [
        StepPart(
            case.structure, case.model, simulation.dynamics.replicas.n_atoms, type(simulation.integrator).__name__,
            what, value, value / total,
        )
        for what, value in medians.items()
    ]  # fmt: skip
