"""A run that has been judged against a reference: its report in memory, or read back from its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from e2former_calc.analysis.survival import SurvivalCurve, kaplan_meier
from e2former_calc.report.evaluation import Report
from e2former_calc.report.section import Quantity, finite
from e2former_calc.report.settings import ReportSettings
from e2former_calc.report.tables import FORMAT, FORMAT_VERSION, summary
from e2former_calc.report.writing import SUMMARY

Columns = Mapping[str, Sequence[Any]]
MERGED_BY_REPORT = ("mean stable time", "median survival", "rollouts stable to the end")
"""Numbers over all rollouts of a run that are formed anew, the same way for one rollout and for many."""


class ComparisonError(ValueError):
    """Runs cannot be compared; the message names what differs and what to do."""


@dataclass(frozen=True, eq=False)
class JudgedRun:
    """One model's rollouts with what their report says.

    Attributes:
        name: in tables and legends.
        origin: folder of the report, or the trajectories.
        summary: as in `summary.json`.
        tables: columns by header, by the name of the table.
    """

    name: str
    origin: str
    summary: Mapping[str, Any]
    tables: Mapping[str, Columns]

    @property
    def rollouts(self) -> list[str]:
        """Names of the trajectories."""
        return [str(facts["name"]) for facts in self.summary["rollouts"]]

    @property
    def settings(self) -> ReportSettings:
        """Thresholds and ranges; entries that this version does not know are left out.

        Raises:
            ComparisonError: if a value makes no sense.
        """
        known = {field.name for field in fields(ReportSettings)}
        stated = self.summary["settings"]
        try:
            return ReportSettings(**{name: value for name, value in stated.items() if name in known})
        except (TypeError, ValueError) as error:
            raise ComparisonError(f"the run {self.name} has settings that make no sense: {error}") from error

    @property
    def stable_ps(self) -> float:
        """Stable time of all rollouts together."""
        return float(sum(self.tables["stability"]["stable [ps]"]))

    def survival(self) -> SurvivalCurve:
        """Kaplan-Meier estimate over the rollouts."""
        table = self.tables["stability"]
        return kaplan_meier(table["stable [ps]"], [frame is not None for frame in table["first bad frame"]])

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Name of the section and number, numbers of single rollouts merged to their mean."""
        times = np.array(self.tables["stability"]["stable [ps]"], dtype=np.float64)
        yield "stability", _stable_time(times)
        yield "stability", _stable_share(self.summary["verdict"])
        for section, content in self.summary["sections"].items():
            found = [Quantity(**_arguments(entry)) for entry in content["quantities"]]
            for quantity in _merged(found, self.rollouts):
                if quantity.name not in (*MERGED_BY_REPORT, "stable time"):
                    yield section, quantity


def read_run(folder: str | Path, name: str) -> JudgedRun:
    """What `e2former analyze` or `e2former rollout` wrote to a folder.

    Raises:
        ComparisonError: if there is no report, or if it is damaged; names what is missing.
        OSError: if a file cannot be read.
    """
    folder = Path(folder)
    path = folder / SUMMARY
    if not path.is_file():
        raise ComparisonError(f"{folder} holds no {SUMMARY}: give a folder that 'e2former analyze' or 'rollout' wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{path} is damaged ({error}): analyse the run again") from error
    needed = ("verdict", "system", "rollouts", "reference", "sections", "settings", "versions")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing or content.get("format") != FORMAT:
        raise ComparisonError(f"{path} is not the summary of a rollout report (no {', '.join(missing) or FORMAT!r})")
    if content.get("format_version") != FORMAT_VERSION:
        raise ComparisonError(f"{path} was written by another version, with other noise floors: analyse the run again")
    tables = {table.stem: _read_table(table) for table in sorted((folder / "tables").glob("*.csv"))}
    if "stability" not in tables:
        raise ComparisonError(f"{folder} has no tables/stability.csv: analyse the run again")
    return JudgedRun(name, str(folder), content, tables)


def judged(report: Report, name: str, origin: str) -> JudgedRun:
    """A report in memory, in the same form."""
    tables = {table.name: table.columns for section in report.sections for table in section.tables}
    return JudgedRun(name, origin, summary(report), tables)


def _read_table(path: Path) -> Columns:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if any(len(row) != len(header) for row in rows):
        raise ComparisonError(f"{path} is damaged: its rows have different lengths; analyse the run again")
    return {title: _typed([row[k] for row in rows]) for k, title in enumerate(header)}


def _typed(column: Sequence[str]) -> list[Any]:
    """Numbers if all are, empty fields as None."""
    try:
        return [None if text == "" else float(text) for text in column]
    except ValueError:
        return [text or None for text in column]


def _arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: entry[field.name] for field in fields(Quantity) if field.name in entry}


def _merged(quantities: Sequence[Quantity], rollouts: Sequence[str]) -> Iterator[Quantity]:
    """Numbers called "WHAT, ROLLOUT" as one called "WHAT"."""
    groups: dict[tuple[str, str], list[Quantity]] = {}
    for quantity in quantities:
        own = next((name for name in rollouts if quantity.name.endswith(f", {name}")), None)
        base = quantity.name if own is None else quantity.name.removesuffix(f", {own}")
        groups.setdefault((base, quantity.unit), []).append(quantity)
    for (base, _), group in groups.items():
        yield _mean(base, group)


def _mean(name: str, group: Sequence[Quantity]) -> Quantity:
    """Mean over rollouts; its error is the larger one of those within rollouts and of the scatter between them."""
    first = group[0]
    known = [quantity for quantity in group if quantity.value is not None]
    if len(group) == 1 or not known:
        return Quantity(**(_arguments(first.to_dict()) | {"name": name}))
    values = np.array([quantity.value for quantity in known], dtype=np.float64)
    errors = np.array([np.nan if quantity.error is None else quantity.error for quantity in known])
    within = float(np.sqrt((errors**2).sum())) / len(known)
    between = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    error = float(np.fmax(within, between))
    note = f"mean of {len(known)} rollouts; {first.note}" if first.note else f"mean of {len(known)} rollouts"
    return Quantity(
        name, float(values.mean()), first.unit, finite(error), first.reference, first.reference_error, note=note
    )


def _stable_time(times_ps: Any) -> Quantity:
    n = len(times_ps)
    error = float(times_ps.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    note = f"mean of {n} rollouts, none longer than run" if n > 1 else "one rollout, so no error is known"
    return Quantity("stable time", float(times_ps.mean()), "ps", error, note=note)


def _stable_share(verdict: Mapping[str, Any]) -> Quantity:
    stable, count = int(verdict["stable_rollouts"]), int(verdict["rollouts"])
    return Quantity(
        "rollouts stable to the end", 100.0 * stable / count, "%", note=f"{stable} of {count}; a count has no error"
    )
