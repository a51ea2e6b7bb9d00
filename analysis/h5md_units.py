"""Units that H5MD files state, as factors to eV, Å, fs and K."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2former_calc.analysis.constants import FS_PER_PS, KCAL_PER_MOL_EV, KJ_PER_MOL_EV
from e2former_calc.analysis.trajectory import TrajectoryError

LENGTHS: Final = {"Angstrom": 1.0, "angstrom": 1.0, "Ang": 1.0, "A": 1.0, "nm": 10.0, "pm": 0.01}
UNITS: Final[Mapping[str, Mapping[str, float]]] = {
    "positions": LENGTHS,
    "cell": LENGTHS,
    "times_fs": {"fs": 1.0, "ps": FS_PER_PS, "ns": 1e6},
    "velocities": {"Angstrom fs-1": 1.0, "Angstrom ps-1": 1e-3, "nm ps-1": 1e-2},
    "forces": {
        "eV Angstrom-1": 1.0,
        "kJ mol-1 Angstrom-1": KJ_PER_MOL_EV,
        "kJ mol-1 nm-1": 0.1 * KJ_PER_MOL_EV,
        "kcal mol-1 Angstrom-1": KCAL_PER_MOL_EV,
    },
    "energies": {"eV": 1.0, "kJ mol-1": KJ_PER_MOL_EV, "kcal mol-1": KCAL_PER_MOL_EV},
    "temperatures_K": {"K": 1.0},
}


def h5md_unit(dataset: Any, field: str, path: Path) -> float:
    """Factor from the unit of a dataset to that of a field of `Trajectory`.

    Raises:
        TrajectoryError: if the unit is missing or not known.
    """
    stated = dataset.attrs.get("unit", "")
    unit = stated.decode() if isinstance(stated, bytes) else str(stated)
    if unit not in UNITS[field]:
        raise TrajectoryError(f"{path}: {dataset.name} has the unit {unit!r}; known are {', '.join(UNITS[field])}")
    return UNITS[field][unit]
