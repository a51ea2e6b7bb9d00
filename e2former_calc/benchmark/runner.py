"""Cases in processes of their own, so that they influence neither each other nor the caller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms

from e2former_calc.benchmark.case import Case, Result
from e2former_calc.benchmark.comparison import ComparisonCase, ComparisonResult
from e2former_calc.benchmark.footprint import FootprintCase
from e2former_calc.benchmark.implementations import BASELINE, OWN
from e2former_calc.benchmark.precision import PrecisionResult
from e2former_calc.benchmark.processes import how_it_ended, thread_variables
from e2former_calc.benchmark.step import StepCase, StepResult
from e2former_calc.benchmark.training import TrainingCase, TrainingResult
from e2former_calc.structures import MOLECULES, molecule, water_box

BUILTIN_STRUCTURES = (*MOLECULES, "water-64", "water-216")
"""9, 21 and 42 atoms; 64 and 216 periodic waters at 1 g/cm^3 (192 and 648 atoms)."""

TRAINING_STRUCTURES = ("aspirin", "Ac-Ala3-NHMe")
"""21 and 42 atoms."""

_WATER_BOX = re.compile(r"water-(\d+)")


class BenchmarkError(ValueError):
    """A case could not be measured."""


def is_builtin(name: str) -> bool:
    """Whether a structure is one of `BUILTIN_STRUCTURES`, or another cube of waters: water-8, water-27, ..."""
    return name in MOLECULES or _waters_along_edge(name) > 0


def builtin_structure(name: str) -> Atoms:
    """A built-in structure, see `is_builtin`.

    Raises:
        ValueError: for any other name.
    """
    if not is_builtin(name):
        raise ValueError(f"no built-in structure {name!r}; choose from {list(BUILTIN_STRUCTURES)}")
    return molecule(name) if name in MOLECULES else water_box(_waters_along_edge(name))


def _waters_along_edge(name: str) -> int:
    match = _WATER_BOX.fullmatch(name)
    side = round(int(match[1]) ** (1 / 3)) if match else 0
    return side if match and side**3 == int(match[1]) else 0


def run_in_subprocess(case: Case) -> Result:
    """Measure one case in a fresh Python process.

    Raises:
        BenchmarkError: if the model or the structure cannot be used, or the process dies.
    """
    return Result.from_dict(_answer("inference", case.name, case.to_dict()))


def run_training_in_subprocess(case: TrainingCase) -> TrainingResult:
    """Measure training steps in a fresh Python process; a compiler finds nothing there that it compiled before.

    Raises:
        BenchmarkError: if the model or the structure cannot be used or compiled, or the process dies.
    """
    with TemporaryDirectory(prefix="e2former-bench-") as folder:
        return TrainingResult.from_dict(
            _answer("training", case.name, case.to_dict(), environment={"TORCHINDUCTOR_CACHE_DIR": folder})
        )


def run_comparison_in_subprocess(
    case: ComparisonCase, *, memory_of: Collection[str] = (BASELINE, *OWN)
) -> ComparisonResult:
    """Compare implementations in a fresh process, and measure the memory of some, each in one of its own.

    Raises:
        BenchmarkError: if an implementation cannot be used, or a process dies.
    """
    threads = thread_variables(case.threads)
    result = ComparisonResult.from_dict(_answer("comparison", case.name, case.to_dict(), environment=threads))
    contenders = []
    for one in result.contenders:
        memory = None
        if one.implementation in memory_of:
            request = FootprintCase(case.case, one.implementation)
            found = _answer("footprint", request.name, request.to_dict(), environment=threads)
            memory = found["peak"] if found["device_peak"] is None else found["device_peak"]
        contenders.append(replace(one, memory=memory))
    return replace(result, contenders=tuple(contenders))


def run_precision_in_subprocess(case: Case) -> PrecisionResult:
    """Errors of the fused form in a fresh process.

    Raises:
        BenchmarkError: if the model has no fused form, or the process dies.
    """
    return PrecisionResult(
        **_answer("precision", case.name, case.to_dict(), environment=thread_variables(case.threads))
    )


def run_step_in_subprocess(case: StepCase) -> StepResult:
    """Steps of molecular dynamics in a fresh process.

    Raises:
        BenchmarkError: if the model or the structure cannot be used, or the process dies.
    """
    return StepResult(**_answer("step", case.name, case.to_dict(), environment=thread_variables(case.threads)))


def _answer(
    kind: str, name: str, request: Mapping[str, Any], *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the measuring process says about a case, in JSON-able form."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "e2former_calc.benchmark.worker", kind],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if process.returncode != 0:
        raise BenchmarkError(f"{name}: the measuring process {how_it_ended(process.returncode, process.stderr)}")
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except json.JSONDecodeError:
        raise BenchmarkError(f"{name}: the measuring process wrote no result but {process.stdout[:200]!r}") from None
    if "error" in answer:
        raise BenchmarkError(f"{name}: {answer['error']}")
    return answer
