"""The numbers of a report as JSON and CSV."""

from __future__ import annotations

import csv
import hashlib
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import e2former_calc
from e2former_calc.report.evaluation import Report, TrajectoryFacts
from e2former_calc.report.section import Section, Table

LIBRARIES = ("numpy", "scipy", "ase", "h5py", "matplotlib")
FORMAT = "e2former_calc rollout report"
FORMAT_VERSION = 2


def summary(report: Report, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that a report found, JSON-able.

    Args:
        report: the report.
        extra: further entries, for instance the command and its options.
    """
    verdict = report.verdict
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": {
            "stable": verdict.stable,
            "stable_rollouts": verdict.n_stable,
            "rollouts": verdict.n_rollouts,
            "closeness": verdict.closeness,
            "headline": None if verdict.headline is None else verdict.headline.to_dict(),
            "sentences": list(verdict.sentences),
            "caveats": list(verdict.caveats),
        },
        "system": {"formula": report.formula, "atoms": report.n_atoms, "temperature_K": report.temperature_K},
        "noise": report.noise,
        "rollouts": [_describe(facts) for facts in report.rollouts],
        "reference": _describe(report.reference),
        "sections": {section.name: _section(section) for section in report.sections},
        "settings": asdict(report.settings),
        "versions": versions(),
    }
    return {str(key): json_ready(value) for key, value in (content | dict(extra or {})).items()}


def versions() -> dict[str, str]:
    """Versions of Python, this package, and the libraries that the numbers depend on."""
    found = {"e2former_calc": e2former_calc.__version__, "python": platform.python_version()}
    return found | {name: version(name) for name in LIBRARIES}


def write_csv(table: Table, path: Path) -> None:
    """Write a table; what is missing or not finite becomes an empty field.

    Raises:
        ValueError: if columns differ in length.
        OSError: if it cannot be written.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows([_field(value) for value in row] for row in zip(*table.columns.values(), strict=True))


def json_ready(value: Any) -> Any:
    """The value in terms of JSON; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "skipped": section.skipped,
        "quantities": [quantity.to_dict() for quantity in section.quantities],
        "remarks": list(section.remarks),
        "tables": [f"tables/{table.name}.csv" for table in section.tables],
        "figures": [f"figures/{drawing.name}.svg" for drawing in section.drawings],
    }


def _describe(facts: TrajectoryFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "path": None if facts.path is None else str(facts.path),
        "sha256": None if facts.path is None else file_sha256(facts.path),
        "frames": facts.frames,
        "first_frame": facts.first_frame,
        "length_ps": facts.length_ps,
        "level_of_theory": facts.level,
    }


def file_sha256(path: Path) -> str:
    """Checksum of a file.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else value
