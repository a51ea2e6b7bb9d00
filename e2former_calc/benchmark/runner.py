"""Cases in processes of their own, so that they influence neither each other nor the caller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms

from e2former_calc.benchmark.case import Case, Result
from e2former_calc.benchmark.training import TrainingCase, TrainingResult
from e2former_calc.structures import MOLECULES, molecule, water_box

BUILTIN_STRUCTURES = (*MOLECULES, "water-64", "water-216")
"""9, 21 and 42 atoms; 64 and 216 periodic waters at 1 g/cm^3 (192 and 648 atoms)."""

TRAINING_STRUCTURES = ("aspirin", "Ac-Ala3-NHMe")
"""21 and 42 atoms."""

_WATER_SIDES = {"water-64": 4, "water-216": 6}


class BenchmarkError(ValueError):
    """A case could not be measured."""


def builtin_structure(name: str) -> Atoms:
    """One of `BUILTIN_STRUCTURES`.

    Raises:
        ValueError: for any other name.
    """
    if name in _WATER_SIDES:
        return water_box(_WATER_SIDES[name])
    if name not in MOLECULES:
        raise ValueError(f"no built-in structure {name!r}; choose from {list(BUILTIN_STRUCTURES)}")
    return molecule(name)


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
        raise BenchmarkError(f"{name}: the measuring process {_how_it_ended(process)}")
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except json.JSONDecodeError:
        raise BenchmarkError(f"{name}: the measuring process wrote no result but {process.stdout[:200]!r}") from None
    if "error" in answer:
        raise BenchmarkError(f"{name}: {answer['error']}")
    return answer


def _how_it_ended(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"was killed by {name}" + (": probably out of memory" if name == "SIGKILL" else "")
    lines = process.stderr.strip().splitlines()
    return f"ended with code {process.returncode}: {lines[-1] if lines else 'no message'}"
