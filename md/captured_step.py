"""The whole step of an integrator as one recorded function, and who keeps book of what is settled.

A step is a function of the tensors of the state, of random numbers, and of constants. Random numbers are made outside
(many steps at a time, `noise`) and copied into buffers that the recorded function reads, so that the step counter
stays a number on the host. What the host decides from step to step cannot be recorded: temperature ramps, integrators
with moves that are accepted or rejected or that change the cell, replicas that have been stopped, and evaluations
that check their list before its use. Such steps are made one operation at a time, with the evaluation of forces
alone recorded. The stopping rules always run outside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from ase.calculators.calculator import BaseCalculator
from torch import Tensor

from e2former_calc.md.captured_replay import (
    CannotRecordError,
    Execution,
    Recorder,
    Replay,
    check_execution,
    recorder_for,
)
from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.forces import Evaluation
from e2former_calc.md.integrators.bussi import Bussi
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.integrators.langevin import Langevin
from e2former_calc.md.integrators.nose_hoover_chain import NoseHooverChain
from e2former_calc.md.integrators.verlet import VelocityVerlet
from e2former_calc.md.noise import Noise, Purpose
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.state import State
from e2former_calc.md.static_forces import StaticForces
from e2former_calc.potentials.interface import Potential

_PURE = (VelocityVerlet, Langevin, Bussi, NoseHooverChain)
"""Integrators whose step looks at no value on the host."""

_CELL = "cell"
_UNTOUCHED = (_CELL, "stop_", "monitors.")
"""Tensors of the state that these integrators hand on as they are."""


@dataclass(frozen=True)
class _Request:
    """Random numbers that a step asks for: the method of `Noise`, the step relative to the present one, the purpose."""

    method: str
    offset: int
    purpose: Purpose


class _BufferedNoise(Noise):
    """Stands in for the noise of a step: notes what is asked for, and gives what lies in the buffers."""

    def __init__(self, noise: Noise, step: int, buffers: dict[_Request, Tensor]) -> None:
        self._noise, self._step, self.buffers = noise, step, buffers

    def normals(self, step: int, purpose: Purpose) -> Tensor:
        """See `Noise`."""
        return self._buffer("normals", step, purpose)

    def replica_normals(self, step: int, purpose: Purpose) -> Tensor:
        """See `Noise`."""
        return self._buffer("replica_normals", step, purpose)

    def replica_uniforms(self, step: int, purpose: Purpose) -> Tensor:
        """See `Noise`."""
        return self._buffer("replica_uniforms", step, purpose)

    def _buffer(self, method: str, step: int, purpose: Purpose) -> Tensor:
        request = _Request(method, step - self._step, purpose)
        if request not in self.buffers:
            self.buffers[request] = getattr(self._noise, method)(step, purpose).clone()
        return self.buffers[request]


class _InlineForces:
    """Evaluates as part of a function that is being recorded, and keeps what `StaticForces.settle` looks at."""

    def __init__(self, evaluate: Callable[..., list[Tensor]]) -> None:
        self._evaluate = evaluate
        self.status: list[Tensor] = []

    def evaluate(self, positions: Tensor, cell: Tensor, *, stress: bool) -> Evaluation:
        """See `ForceProvider`."""
        *result, status = self._evaluate(positions, cell, stress)
        self.status.append(status)
        return Evaluation(*result)


def stepper_for(execution: Execution, integrator: Integrator, potential: Potential | BaseCalculator) -> Stepper:
    """Steps are recorded for CUDA graphs; otherwise they are made one operation at a time.

    Raises:
        ValueError: for an execution that does not exist, or that this potential or its device does not allow.
    """
    check_execution(execution)
    if execution == "eager":
        return Stepper(integrator)
    if isinstance(potential, BaseCalculator):
        raise ValueError(
            f"execution={execution!r} is for potentials of this package; {type(potential).__name__} is an ASE "
            "calculator, which works on the host: use execution='eager'"
        )
    recorder = recorder_for(execution, potential.device)
    return Stepper(integrator, recorder if execution == "cuda-graph" else None)


class Stepper:
    """Makes the steps of a simulation, recorded ones where that is possible.

    Args:
        integrator: what a step is.
        recorder: of whole steps; None records none.

    Attributes:
        recordings: number of steps recorded.
    """

    def __init__(self, integrator: Integrator, recorder: Recorder | None = None) -> None:
        pure = isinstance(integrator, _PURE) and not _has_ramp(integrator)
        self._integrator = integrator
        self._recorder = recorder if pure else None
        self._replay: Replay | None = None
        self._inputs: dict[str, Tensor] = {}
        self._noise: dict[_Request, Tensor] = {}
        self._made_for: tuple[object, ...] = ()
        self.recordings = 0

    def step(self, state: State, dynamics: Dynamics) -> State:
        """The state one step later."""
        forces = _static(dynamics)
        if self._recorder is None or forces is None or dynamics.held is not None:
            return self._integrator.step(state, dynamics)
        if not forces.prepare(state.positions, state.cell):
            return self._integrator.step(state, dynamics)
        made_for = (forces, forces.generation, dynamics)
        if self._replay is None or self._made_for != made_for:
            try:
                self._replay = self._record(self._recorder, state, dynamics, forces)
            except CannotRecordError as error:
                name = type(self._integrator).__name__
                warnings.warn(f"of {name} only the forces are recorded: {error}", UserWarning, stacklevel=2)
                self._recorder = None
                return self._integrator.step(state, dynamics)
            self._made_for = made_for
        return self._replayed(self._replay, state, dynamics, forces)

    def may_go_on(self, step: int, dynamics: Dynamics) -> bool:
        """Whether it is too early for `settle`, until which states are not known to be right."""
        forces = _static(dynamics)
        return forces is not None and step % forces.check_every != 0

    def settle(self, dynamics: Dynamics) -> bool:
        """Whether all steps since the last call were right; if not, they have to be made again."""
        forces = _static(dynamics)
        return forces is None or forces.settle()

    def _record(self, recorder: Recorder, state: State, dynamics: Dynamics, forces: StaticForces) -> Replay:
        """Make buffers and the replay. One step is made beforehand to learn which random numbers it needs."""
        tensors, step = state.tensors(), state.step
        names = [name for name in tensors if not name.startswith(_UNTOUCHED)]
        self._inputs = {name: tensors[name].clone() for name in [*names, _CELL]}
        self._noise = {}
        self._step(state, dynamics, forces, buffers=self._noise, edges=forces.inputs)
        requests = list(self._noise)

        def function(*inputs: Tensor) -> list[Tensor]:
            found, rest = inputs[: len(self._inputs)], inputs[len(self._inputs) :]
            old = State.from_tensors(step, tensors | dict(zip(self._inputs, found, strict=True)))
            buffers = dict(zip(requests, rest[: len(requests)], strict=True))
            new, status = self._step(old, dynamics, forces, buffers=buffers, edges=rest[len(requests) :])
            return [*(new.tensors()[name] for name in names), status]

        self.recordings += 1
        return recorder(function, [*self._inputs.values(), *self._noise.values(), *forces.inputs])

    def _step(
        self, state: State, dynamics: Dynamics, forces: StaticForces, *, buffers: dict[_Request, Tensor],
        edges: Sequence[Tensor],
    ) -> tuple[State, Tensor]:  # fmt: skip
        """A step of plain operations, and the status of its evaluations."""
        inline = _InlineForces(lambda positions, cell, stress: forces.function(stress, positions, cell, *edges))
        noise = _BufferedNoise(dynamics.noise, state.step, buffers)
        new = self._integrator.step(state, replace(dynamics, forces=inline, noise=noise, native=False))  # type: ignore[arg-type]
        return new, torch.stack(inline.status).amax(0)

    def _replayed(self, replay: Replay, state: State, dynamics: Dynamics, forces: StaticForces) -> State:
        tensors = state.tensors()
        for name, buffer in self._inputs.items():
            buffer.copy_(tensors[name])
        for request, buffer in self._noise.items():
            buffer.copy_(getattr(dynamics.noise, request.method)(state.step + request.offset, request.purpose))
        *found, status = [tensor.clone() for tensor in replay()]
        forces.note(status)
        names = [name for name in self._inputs if name != _CELL]
        return State.from_tensors(state.step + 1, tensors | dict(zip(names, found, strict=True)))


def _static(dynamics: Dynamics) -> StaticForces | None:
    provider = dynamics.forces.provider
    return provider if isinstance(provider, StaticForces) else None


def _has_ramp(integrator: Integrator) -> bool:
    values = [getattr(integrator, field.name) for field in fields(integrator)]  # type: ignore[arg-type]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(item, LinearRamp) for item in flat)
