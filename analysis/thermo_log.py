# ruff: noqa: N815 (units in names)
"""`thermo.log`: energies and temperatures beside a trajectory, as ASE's `MDLogger` and the MDsim code write them.

    Time[ps]      Etot[eV]     Epot[eV]     Ekin[eV]    T[K]
    0.0000      -17636.2422  -17637.7285       1.4863   547.5

A run that was continued repeats the header in the middle; all rows are kept, and `restarts` says where they begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.constants import FS_PER_PS
from e2former_calc.analysis.trajectory import TrajectoryError

FILE_NAME: Final = "thermo.log"
COLUMNS: Final = ("Time[ps]", "Etot[eV]", "Epot[eV]", "Ekin[eV]", "T[K]")
PER_ATOM_COLUMNS: Final = ("Time[ps]", "Etot/N[eV]", "Epot/N[eV]", "Ekin/N[eV]", "T[K]")


@dataclass(frozen=True, eq=False)
class ThermoLog:
    """Rows of a `thermo.log`.

    Attributes:
        times_fs: time of each row.
        total_eV: potential plus kinetic energy.
        potential_eV: potential energy.
        kinetic_eV: kinetic energy.
        temperatures_K: of 3 N degrees of freedom, whatever motions are at rest.
        per_atom: whether the energies are those of one atom.
        restarts: rows that a continued run begins with.
    """

    times_fs: Float[np.ndarray, " rows"]
    total_eV: Float[np.ndarray, " rows"]
    potential_eV: Float[np.ndarray, " rows"]
    kinetic_eV: Float[np.ndarray, " rows"]
    temperatures_K: Float[np.ndarray, " rows"]
    per_atom: bool = False
    restarts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.times_fs)


def read_thermo_log(file: str | Path) -> ThermoLog:
    """All rows of a `thermo.log`; columns after the five known ones (stress of ASE's logger) are left out.

    Raises:
        TrajectoryError: if it is no such log, or naming the first line that is damaged. A last line without a line end
            is left out: the run was killed while it wrote.
        OSError: if it cannot be read.
    """
    path = Path(file)
    complete, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    lines = [(number, line.split()) for number, line in enumerate(complete.splitlines(), 1) if line.strip()]
    header = tuple(lines[0][1][:5]) if lines else ()
    if header not in (COLUMNS, PER_ATOM_COLUMNS):
        found = " ".join(header) or "nothing"
        raise TrajectoryError(f"{path} is no thermo.log: it must begin with '{' '.join(COLUMNS)}', found {found!r}")
    rows: list[list[float]] = []
    restarts = []
    for number, words in lines[1:]:
        if tuple(words[:5]) == header:
            restarts.append(len(rows))
            continue
        rows.append(_row(words, f"{path}, line {number}"))
    if not rows:
        raise TrajectoryError(f"{path} has a header and no row: the run wrote nothing")
    time, total, potential, kinetic, temperature = np.array(rows).T
    return ThermoLog(
        times_fs=time * FS_PER_PS,
        total_eV=total,
        potential_eV=potential,
        kinetic_eV=kinetic,
        temperatures_K=temperature,
        per_atom=header == PER_ATOM_COLUMNS,
        restarts=tuple(row for row in restarts if 0 < row < len(rows)),
    )


def _row(words: list[str], where: str) -> list[float]:
    try:
        values = [float(word) for word in words[:5]]
    except ValueError:
        values = []
    if len(values) < 5:
        raise TrajectoryError(f"{where}: needed are five numbers, found {' '.join(words)!r}")
    return values
