"""The process that measures one case: reads it as JSON from stdin, writes the result as JSON to stdout.

Its argument says what kind of case it is, one of `KINDS`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from e2former_calc.benchmark.case import Case, Quantiles, Result
from e2former_calc.benchmark.comparison import ComparisonCase, measure_comparison
from e2former_calc.benchmark.footprint import FootprintCase, measure_footprint
from e2former_calc.benchmark.implementations import build_calculator
from e2former_calc.benchmark.memory import peak_memory, reset_peak_memory, resident_memory
from e2former_calc.benchmark.precision import measure_precision
from e2former_calc.benchmark.step import StepCase, measure_step
from e2former_calc.benchmark.timing import (
    MINIMUM_REPEATS,
    ModelStopwatch,
    device_memory_peak,
    device_name,
    timed,
)
from e2former_calc.benchmark.training import TrainingCase, measure_training
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

Reader = Callable[[Mapping[str, Any]], Any]

KINDS: Mapping[str, tuple[Reader, Callable[[Any], Any]]] = {
    "inference": (Case.from_dict, lambda case: measure(case)),
    "training": (TrainingCase.from_dict, measure_training),
    "comparison": (ComparisonCase.from_dict, measure_comparison),
    "footprint": (FootprintCase.from_dict, measure_footprint),
    "precision": (Case.from_dict, measure_precision),
    "step": (StepCase.from_dict, measure_step),
}
"""How a case is read, and how it is measured."""


def main() -> None:
    """Measure the case on stdin; errors become `{"error": ...}` on stdout."""
    read, measure_case = KINDS[sys.argv[1]]
    case = read(json.load(sys.stdin))
    torch.set_num_threads(case.threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer: dict[str, Any] = measure_case(case).to_dict()
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)


def measure(case: Case) -> Result:
    """Load, warm up, and time; uses the number of threads that torch is set to.

    Raises:
        ValueError: if the structure has elements that the model does not know.
    """
    load_ms, calculator = timed(lambda: build_calculator(case.model))
    potential = calculator.potential
    if not isinstance(potential, EnergyPotential):
        raise ValueError(f"only models of this package can be timed, got {type(potential).__name__}")
    atoms = case.to_atoms()
    system = System.single(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
    stopwatch = ModelStopwatch(potential)
    loaded = resident_memory()
    reset_peak_memory()
    calls: dict[str, Callable[[], Any]] = {
        "energy": lambda: calculator.calculate(atoms, ["energy"]),
        "energy_forces": lambda: calculator.calculate(atoms, ["energy", "forces"]),
        "neighbor_list": lambda: neighbor_list(system, potential.cutoff),
    }
    first_call_ms, _ = timed(calls["energy_forces"], potential.device)
    samples = _repeat(calls, stopwatch, case)
    return Result(
        name=case.name,
        threads=case.threads,
        atoms=len(atoms),
        neighbors=sum(graph.n_edges for graph in potential.graphs(system.to(potential.device))) / len(atoms),
        repeats=len(samples["energy"]),
        load_ms=load_ms,
        first_call_ms=first_call_ms,
        memory_loaded=loaded,
        memory_peak=peak_memory(),
        device=device_name(potential.device),
        device_memory_peak=device_memory_peak(potential.device),
        **{kind: Quantiles.of(values) for kind, values in samples.items()},
    )


def _repeat(calls: dict[str, Callable[[], Any]], stopwatch: ModelStopwatch, case: Case) -> dict[str, list[float]]:
    """Times of the calls in turn, so that all see the same load of the machine."""
    samples: dict[str, list[float]] = {kind: [] for kind in (*calls, "energy_forces_cpu", "model", "rest")}
    start = time.perf_counter()
    for done in range(case.repeats):
        if done >= MINIMUM_REPEATS and time.perf_counter() - start > case.seconds:
            break
        for kind, call in calls.items():
            cpu_start = time.process_time()
            samples[kind].append(timed(call, stopwatch.device)[0])
            if kind == "energy_forces":
                samples["energy_forces_cpu"].append(1e3 * (time.process_time() - cpu_start))
                samples["model"].append(stopwatch.last)
        used = samples["model"][-1] + samples["neighbor_list"][-1]
        samples["rest"].append(max(0.0, samples["energy_forces"][-1] - used))
    return samples


if __name__ == "__main__":
    main()
