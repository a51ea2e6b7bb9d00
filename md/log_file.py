"""Energies, temperature, volume and pressure of a simulation as a CSV file, one row for each replica and report."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path

COLUMNS = (
    "step", "time_ps", "replica", "potential_energy_eV", "kinetic_energy_eV", "total_energy_eV", "conserved_energy_eV",
    "temperature_K", "pressure_bar", "volume_A3",
)  # fmt: skip


class LogFile:
    """Rows of numbers, written in full precision; what is not finite stays empty.

    Args:
        path: the file.
        keep_until: continue it behind this step; None begins a new one.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, *, keep_until: int | None = None) -> None:
        if keep_until is not None and path.is_file():
            _cut(path, keep_until)
        else:
            path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        self.path = path
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")

    def append(self, row: Iterable[float | int]) -> None:
        """Add a row, with values in the order of `COLUMNS`."""
        self._rows.writerow([repr(value) if math.isfinite(value) else "" for value in row])

    def show(self) -> None:
        """Let readers see the rows written so far.

        Raises:
            OSError: if they cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write the log ({error.strerror})", str(self.path)) from error

    def commit(self) -> None:
        """Bring all rows to the disk itself.

        Raises:
            OSError: if that fails.
        """
        self.show()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write and close; further calls do nothing."""
        if not self._file.closed:
            try:
                self.show()
            finally:
                self._abandon()

    def _abandon(self) -> None:
        """Close, whatever is left over."""
        try:
            self._file.close()
        except OSError:
            # The error was reported when the rows were to be shown; the descriptor is closed nevertheless.
            return


def _cut(path: Path, step: int) -> None:
    """Remove rows behind a step, and a last row that is not complete."""
    with path.open("rb+") as file:
        end = 0
        for line in file:
            first = line.split(b",", 1)[0]
            if not line.endswith(b"\n") or (first.isdigit() and int(first) > step):
                break
            end += len(line)
        file.truncate(end)
