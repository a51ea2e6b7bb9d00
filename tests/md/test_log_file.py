"""The CSV log: full precision, empty where nothing is known, cut where a run continues."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from e2former_calc.md.log_file import COLUMNS, LogFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.csv"


def write(path: Path, steps: range, **options: int) -> None:
    log = LogFile(path, **options)
    for step in steps:
        log.append((step, 0.1 * step, 0, -1 / 3, 1.0, 2 / 3, math.nan, 300.0, math.nan, math.inf))
    log.commit()
    log.close()
    log.close()


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_numbers_keep_their_last_bit(path: Path) -> None:
    write(path, range(2))
    rows = rows_of(path)
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[1]["potential_energy_eV"]) == -1 / 3
    assert rows[1]["step"] == "1"


def test_what_is_not_finite_stays_empty(path: Path) -> None:
    write(path, range(1))
    row = rows_of(path)[0]
    assert (row["conserved_energy_eV"], row["pressure_bar"], row["volume_A3"]) == ("", "", "")


@pytest.mark.parametrize("lost", [0, 1, 30])
def test_a_continued_log_equals_one_in_one_go(path: Path, tmp_path: Path, lost: int) -> None:
    whole = tmp_path / "whole.csv"
    write(whole, range(10))
    write(path, range(8))
    path.write_bytes(path.read_bytes()[: -lost or None])
    write(path, range(5, 10), keep_until=4)
    assert path.read_bytes() == whole.read_bytes()


def test_a_log_that_was_removed_begins_anew(path: Path) -> None:
    write(path, range(5, 7), keep_until=4)
    assert [row["step"] for row in rows_of(path)] == ["5", "6"]
