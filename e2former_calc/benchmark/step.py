"""Steps of the engine of molecular dynamics: how fast they are, and how much of one is not the potential."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from e2former_calc.benchmark.case import Case
from e2former_calc.benchmark.implementations import build_potential
from e2former_calc.benchmark.timing import MINIMUM_REPEATS, ModelStopwatch, device_name, timed
from e2former_calc.electronic_state import electronic_state
from e2former_calc.md.captured_replay import Execution
from e2former_calc.md.integrators import Langevin
from e2former_calc.md.simulation import Simulation, SimulationOptions

TIMESTEP_FS, TEMPERATURE_K, FRICTION_PER_PS = 0.5, 300.0, 1.0
STEPS_PER_ROUND = 50


@dataclass(frozen=True)
class StepCase:
    """A simulation with a thermostat.

    Attributes:
        case: structure, model, threads, and number of rounds of `STEPS_PER_ROUND` steps.
        replicas: copies of the structure in one batch.
        execution: as in `SimulationOptions`.
    """

    case: Case
    replicas: int = 1
    execution: Execution = "eager"

    @property
    def name(self) -> str:
        """Structure and number of replicas."""
        return f"{self.case.name}, {self.replicas} replicas"

    @property
    def threads(self) -> int:
        """On the host."""
        return self.case.threads

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> StepCase:
        """Inverse of `to_dict`."""
        return StepCase(**{**values, "case": Case.from_dict(values["case"])})


@dataclass(frozen=True)
class StepResult:
    """Medians over rounds.

    Attributes:
        name, model: of structure and network.
        atoms: of one replica.
        replicas, execution: as in the case.
        device: where it ran.
        step_us: one step of all replicas, in us.
        engine_us: the part of it outside of the potential, in us: neighbour list, integrator, checks; None where steps
            run without the host (captured graphs).
    """

    name: str
    model: str
    atoms: int
    replicas: int
    execution: str
    device: str
    step_us: float
    engine_us: float | None

    @property
    def engine_share(self) -> float | None:
        """`engine_us` relative to the step."""
        return None if self.engine_us is None else self.engine_us / self.step_us

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_step(step: StepCase) -> StepResult:
    """Run a simulation; the first round warms up.

    Raises:
        ValueError: for a model or structure that cannot be used.
    """
    case = step.case
    atoms = case.to_atoms()
    state = electronic_state(atoms, case.model.options.get("charge"), case.model.options.get("spin"))
    atoms.info |= {"charge": state.charge, "spin": state.spin}
    potential = build_potential(case.model, "auto")
    stopwatch = ModelStopwatch(potential) if step.execution == "eager" else None
    simulation = Simulation(
        [atoms] * step.replicas,
        potential,
        Langevin(timestep_fs=TIMESTEP_FS, temperature_K=TEMPERATURE_K, friction_per_ps=FRICTION_PER_PS),
        seed=case.model.seed,
        options=SimulationOptions(execution=step.execution),
    )
    simulation.run(STEPS_PER_ROUND)
    whole, engine = [], []
    for _ in range(max(MINIMUM_REPEATS, case.repeats)):
        before = 0.0 if stopwatch is None else stopwatch.total
        elapsed = timed(lambda: simulation.run(STEPS_PER_ROUND), potential.device)[0]
        whole.append(1e3 * elapsed / STEPS_PER_ROUND)
        if stopwatch is not None:
            engine.append(1e3 * (elapsed - (stopwatch.total - before)) / STEPS_PER_ROUND)
    if not bool(torch.isfinite(simulation.state.energy).all()):
        raise ValueError(f"{case.name}: the simulation broke down, so that its steps say nothing")
    return StepResult(
        name=case.name, model=case.model.label, atoms=len(atoms), replicas=step.replicas, execution=step.execution,
        device=device_name(potential.device), step_us=float(np.median(whole)),
        engine_us=float(np.median(engine)) if engine else None,
    )  # fmt: skip
