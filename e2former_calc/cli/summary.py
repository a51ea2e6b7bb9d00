"""`PREFIX-summary.json`: everything that is needed to know, and to repeat, what a command did."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import click
import numpy as np
import torch

import e2former_calc
from e2former_calc.checkpoint.loading import resolve_path, sha256
from e2former_calc.cli.models import native_card
from e2former_calc.cli.options import CONFIG_KEY
from e2former_calc.cli.output import replacing
from e2former_calc.potentials.inference import execution
from e2former_calc.potentials.potential import EnergyPotential

if TYPE_CHECKING:
    from e2former_calc.calculator import E2FormerCalculator


@dataclass
class Stopwatch:
    """Wall times in seconds of the phases of a command."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> float:
        """End a phase; returns its duration."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now
        return self.seconds[phase]


def versions() -> dict[str, str]:
    """Versions of Python, this package, and the libraries that numbers depend on."""
    return {
        "e2former_calc": e2former_calc.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ase": ase.__version__,
        "numpy": np.__version__,
    }


def describe_inputs(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Path and checksum of each file, once."""
    return [{"path": str(path), "sha256": sha256(path)} for path in dict.fromkeys(paths)]


def describe_model(calculator: E2FormerCalculator) -> dict[str, Any]:
    """The model of a calculator and how it is used."""
    recipe, potential = calculator.todict(), calculator.potential
    card = native_card(recipe["model"])
    return {
        "card": None if card is None else card.to_dict(),
        "model": recipe["model"],
        "path": str(resolve_path(recipe["model"]).resolve()),
        "sha256": recipe["sha256"],
        "config": recipe["config"],
        "variant": recipe["variant"],
        "weights": recipe["weights"],
        "head": getattr(potential, "head", recipe["head"]),
        "cutoff_A": potential.cutoff,
        "neighbor_cap": recipe["neighbor_cap"],
        "forces": "gradient" if potential.conservative else "head",
        "device": str(potential.device),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "execution": execution(potential) if isinstance(potential, EnergyPotential) else None,
    }


def write_summary(
    path: Path,
    *,
    calculator: E2FormerCalculator,
    inputs: Iterable[Path],
    stopwatch: Stopwatch,
    results: Mapping[str, Any],
) -> None:
    """Write the summary of the running command, atomically.

    Args:
        path: file to write.
        calculator: model, device and dtype come from it.
        inputs: files that were read, the model aside.
        stopwatch: start and phases.
        results: JSON-able, with units in the names; arrays become lists, NaN becomes null.

    Raises:
        OSError: if it cannot be written; an older file stays.
    """
    context = click.get_current_context()
    content = {
        "command": context.command_path,
        "options": dict(sorted(context.params.items())),
        "config_file": context.meta.get(CONFIG_KEY),
        "versions": versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "model": describe_model(calculator),
        "inputs": describe_inputs(inputs),
        "started": stopwatch.started.isoformat(timespec="seconds"),
        "timings_s": stopwatch.seconds | {"total": sum(stopwatch.seconds.values())},
        "results": dict(results),
    }
    text = json.dumps(json_ready(content), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def json_ready(value: Any) -> Any:
    """The value in terms of JSON: arrays as lists, paths as text, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
