"""Speed and memory of training steps, for batches of one structure with made-up labels.

The potential is the one that is trained elsewhere in the package: forces are gradients and all neighbours count.
The frames of a batch are the structure with random displacements, and their labels are random numbers, because
neither changes the work of a step. Neighbour lists of the frames are made beforehand, as in a training run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from ase import Atoms

from e2former_calc.benchmark.case import Case, ModelSpec, Quantiles
from e2former_calc.benchmark.memory import peak_memory, reset_peak_memory, resident_memory
from e2former_calc.benchmark.shapes import NetworkShape, shape_potential
from e2former_calc.benchmark.timing import (
    MINIMUM_REPEATS,
    device_memory_peak,
    device_name,
    reset_device_memory_peak,
    timed,
)
from e2former_calc.checkpoint.loading import load_potential
from e2former_calc.electronic_state import electronic_state
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.compiled import COMPILERS, compiler_available
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Trainer

DISPLACEMENT = 0.05
"""Standard deviation (Å) of the displacements."""

LEARNING_RATE = 1e-9
"""Small enough for weights that stay finite, whatever the labels."""

_SHAPE_OPTIONS = ("device", "dtype", "implementation")
_STATE_OPTIONS = ("charge", "spin")


@dataclass(frozen=True)
class TrainingCase:
    """Training steps on one structure.

    Attributes:
        case: structure, model, threads and number of timed steps. Whatever the options of the model say about forces
            and the neighbour cap, forces are gradients and all neighbours count.
        batch_size: structures per step.
        compiled: whether a step runs as one compiled graph.

    Raises:
        ValueError: if `batch_size` is not positive.
    """

    case: Case
    batch_size: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}")

    @property
    def name(self) -> str:
        """Structure, batch size and kind of step."""
        return f"{self.case.name}, batch size {self.batch_size}, {'compiled' if self.compiled else 'plain'}"

    @property
    def threads(self) -> int:
        """Of torch on the host."""
        return self.case.threads

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainingCase:
        """Inverse of `to_dict`."""
        return TrainingCase(**{**values, "case": Case.from_dict(values["case"])})


@dataclass(frozen=True)
class TrainingResult:
    """Measurements of one case; times in ms, memory in MB (10^6 bytes).

    Attributes:
        name: of the structure.
        threads, batch_size, compiled: as in the case.
        atoms: number of atoms of one structure.
        neighbors: edges per atom that the network works on.
        repeats: timed steps.
        load_ms: building model, data and trainer.
        first_step_ms: first step in the process, compiling included.
        compile_seconds: what the first step took longer than a later one, in s, if it was compiled.
        step: whole optimiser steps.
        step_cpu: processor time of the same steps, all threads together; less disturbed by other programs.
        memory_loaded: resident memory with model and data, before the first step.
        memory_steps: largest resident memory during the timed steps, with what a compiler has left behind.
        memory_peak: largest resident memory during all steps, compiling included.
        device: where the network ran.
        device_memory_peak: largest allocation on an accelerator during the timed steps, or None.
        speedup: frames per second relative to the plain steps measured beside them, or None.
    """

    name: str
    threads: int
    batch_size: int
    compiled: bool
    atoms: int
    neighbors: float
    repeats: int
    load_ms: float
    first_step_ms: float
    compile_seconds: float | None
    step: Quantiles
    step_cpu: Quantiles
    memory_loaded: float
    memory_steps: float
    memory_peak: float
    device: str
    device_memory_peak: float | None = None
    speedup: float | None = None

    @property
    def frames_per_second(self) -> float:
        """Structures per second, from the median step."""
        return 1e3 * self.batch_size / self.step.median

    @property
    def atoms_per_second(self) -> float:
        """Atoms per second, from the median step."""
        return self.atoms * self.frames_per_second

    @property
    def memory_increase(self) -> float:
        """Resident memory (MB) that the timed steps took on top of model and data."""
        return self.memory_steps - self.memory_loaded

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form with the derived quantities; `from_dict` reads it back."""
        derived = ("frames_per_second", "atoms_per_second", "memory_increase")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainingResult:
        """Inverse of `to_dict`."""
        stored: dict[str, Any] = {field.name: values[field.name] for field in fields(TrainingResult)}
        quantiles = {name: Quantiles(**stored[name]) for name in ("step", "step_cpu")}
        return TrainingResult(**(stored | quantiles))


def measure_training(case: TrainingCase) -> TrainingResult:
    """Build, warm up, and time; uses the number of threads that torch is set to.

    Raises:
        ValueError: if the structure has elements that the model does not know, or there is no compiler.
        CannotCompileError: if the steps of this model cannot be compiled.
    """
    load_ms, trainer = timed(lambda: build_trainer(case))
    potential, device = trainer.potential, trainer.potential.device
    system, lists, _ = trainer.training.batch(range(case.batch_size))
    edges = sum(graph.n_edges for graph in potential.graphs(system.to(device), lists))
    loaded = resident_memory()
    reset_peak_memory()
    first_step_ms, _ = timed(trainer.train_step, device)
    trainer.train_step()
    warm_up_peak = peak_memory()
    reset_peak_memory()
    reset_device_memory_peak(device)
    wall, cpu = _repeat(trainer.train_step, device, case.case)
    step, steps_peak = Quantiles.of(wall), peak_memory()
    return TrainingResult(
        name=case.case.name,
        threads=torch.get_num_threads(),
        batch_size=case.batch_size,
        compiled=case.compiled,
        atoms=system.n_atoms // case.batch_size,
        neighbors=edges / system.n_atoms,
        repeats=len(wall),
        load_ms=load_ms,
        first_step_ms=first_step_ms,
        compile_seconds=1e-3 * (first_step_ms - step.median) if case.compiled else None,
        step=step,
        step_cpu=Quantiles.of(cpu),
        memory_loaded=loaded,
        memory_steps=steps_peak,
        memory_peak=max(warm_up_peak, steps_peak),
        device=device_name(device),
        device_memory_peak=device_memory_peak(device),
    )


def build_trainer(case: TrainingCase) -> Trainer:
    """A trainer whose every step sees the same frames, so that all steps have the same work.

    Raises:
        ValueError: for a model or structure that cannot be used, or if compiling is asked for without a compiler.
    """
    potential = training_potential(case.case.model)
    if case.compiled and not compiler_available(potential.device):
        needed = "Triton" if potential.device.type == "cuda" else f"a C++ compiler ({', '.join(COMPILERS)})"
        raise ValueError(f"compiling for {potential.device} needs {needed}, which is missing: measure plain steps only")
    options = case.case.model.options
    frames = displaced_frames(
        case.case.to_atoms(),
        case.batch_size,
        seed=case.case.model.seed,
        charge=options.get("charge"),
        spin=options.get("spin"),
    )
    settings = TrainingSettings(
        batch_size=case.batch_size, learning_rate=LEARNING_RATE, compile="always" if case.compiled else "never"
    )
    return Trainer(potential, Batches(frames, potential.cutoff), None, settings)


def training_potential(model: ModelSpec) -> EnergyPotential:
    """The potential of a case with gradient forces and all neighbours; errors as in `load_potential`."""
    if model.shape is not None:
        chosen = {name: model.options[name] for name in _SHAPE_OPTIONS if name in model.options}
        return shape_potential(NetworkShape.parse(model.shape), seed=model.seed, neighbor_cap="none", **chosen)
    options = {name: value for name, value in model.options.items() if name not in (*_STATE_OPTIONS, "model")}
    return load_potential(model.options["model"], **(options | {"forces": "gradient", "neighbor_cap": "none"}))


def displaced_frames(
    atoms: Atoms, number: int, *, seed: int = 0, charge: int | None = None, spin: int | None = None
) -> Dataset:
    """A structure with random displacements, random energies (eV) and random forces (eV/Å).

    Args:
        atoms: the structure.
        number: of frames.
        seed: of all random numbers.
        charge, spin: as in `E2FormerCalculator`.

    Raises:
        ValueError: for a charge or spin that is not an integer or out of range.
    """
    generator = torch.Generator().manual_seed(seed)
    state = electronic_state(atoms, charge, spin)
    cell, pbc = atoms.cell.array, atoms.pbc
    system = System.single(atoms.positions, atoms.numbers, cell=cell, pbc=pbc, charge=state.charge, spin=state.spin)
    shape = (number, len(atoms), 3)
    displacements = DISPLACEMENT * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Dataset(
        systems=tuple(system.with_positions(system.positions + shift) for shift in displacements),
        energy=torch.randn(number, generator=generator, dtype=torch.float64),
        forces=tuple(torch.randn(shape, generator=generator, dtype=torch.float64)),
        stress=(None,) * number,
        source="random displacements",
    )


def _repeat(step: Callable[[], Any], device: torch.device, case: Case) -> tuple[list[float], list[float]]:
    """Wall and processor times of steps, in ms."""
    wall: list[float] = []
    cpu: list[float] = []
    start = time.perf_counter()
    while len(wall) < case.repeats:
        if len(wall) >= MINIMUM_REPEATS and time.perf_counter() - start > case.seconds:
            break
        cpu_start = time.process_time()
        wall.append(timed(step, device)[0])
        cpu.append(1e3 * (time.process_time() - cpu_start))
    return wall, cpu
