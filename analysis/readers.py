"""Trajectories from files: H5MD, other HDF5 layouts, npz, and whatever `ase.io` reads.

HDF5 files are read in parts, when asked (`TrajectoryFile`); npz files and formats of ASE are read at once.
Recognised HDF5 layouts, with the dataset names of `ARRAYS` in the file itself or in a group:

* H5MD 1, of this package or of another program, one group of particles;
* `numbers`, `positions`, `energy`, `forces`, `velocities`, attributes `frame_spacing_fs` or `frame_spacing_ps`;
* rollouts in the same file as their reference, chosen with `part="reference"`.

A `thermo.log` beside a file that ASE reads gives the times, temperatures and potential energies that the file lacks.

Without a stated unit, velocities called `velocities` are in Å/ps, as in the data sets that use this layout.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ase.io
import h5py
import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.constants import FS_PER_PS, KCAL_PER_MOL_EV
from e2former_calc.analysis.h5md_units import h5md_unit
from e2former_calc.analysis.thermo_log import FILE_NAME, ThermoLog, read_thermo_log
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError

HDF5_SUFFIXES: Final = (".h5", ".hdf5", ".h5md")

ARRAYS: Final[Mapping[str, tuple[tuple[str, float], ...]]] = {
    "positions": (("positions", 1.0), ("positions_unwrapped", 1.0), ("positions_wrapped", 1.0)),
    "velocities": (("velocities_A_per_ps", 1e-3), ("velocities_A_per_fs", 1.0), ("velocities", 1e-3)),
    "forces": (("forces", 1.0), ("forces_eV_per_A", 1.0)),
    "energies": (("energy", 1.0), ("potential_energy_eV", 1.0)),
    "temperatures_K": (("temperature_K", 1.0),),
    "times_fs": (("time_fs", 1.0), ("time_ps", FS_PER_PS)),
    "cell": (("cell", 1.0), ("cell_A", 1.0)),
    "masses": (("masses", 1.0), ("masses_amu", 1.0)),
}
"""Names of datasets for each field of `Trajectory`, and the factor to its unit."""

NPZ_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "positions": ("positions", "R", "coords"),
    "numbers": ("numbers", "z", "nuclear_charges"),
    "energies": ("E", "energies"),
    "forces": ("F", "forces"),
    "cell": ("cell", "lattice"),
}
ENERGY_UNITS: Final[Mapping[str, float]] = {"eV": 1.0, "kcal/mol": KCAL_PER_MOL_EV}


@dataclass(frozen=True)
class _Stored:
    """A dataset and the factor from its unit to ours."""

    path: str
    factor: float
    per_frame: bool = True


class TrajectoryFile:
    """An HDF5 trajectory of which parts are read when asked; use it in a `with` statement, or close it.

    Args:
        file: path.
        part: "rollout", or "reference" for the positions called `reference_positions` in the same file.

    Raises:
        TrajectoryError: if it is damaged, being written, or its layout is not known; the message says which.
        OSError: if it cannot be opened.
    """

    def __init__(self, file: str | Path, *, part: str = "rollout") -> None:
        if part not in ("rollout", "reference"):
            raise TrajectoryError(f"`part` must be 'rollout' or 'reference', got {part!r}")
        self.path = Path(file)
        self._file = _open(self.path)
        try:
            self._survey(part)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._length

    @property
    def numbers(self) -> Int[np.ndarray, " atoms"]:
        """Atomic numbers."""
        return self._numbers

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file: level of theory, temperature and so on, as its writer named them."""
        return {
            name: value.item() if isinstance(value, np.generic) else value for name, value in self._file.attrs.items()
        }

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self._file.close()

    def read(self, start: int, stop: int) -> Trajectory:
        """Frames start ... stop - 1.

        Raises:
            TrajectoryError: if they do not exist.
        """
        if not 0 <= start < stop <= len(self):
            raise TrajectoryError(f"{self.path} has {len(self)} frames: there are no frames {start} to {stop - 1}")
        rows: dict[str, Any] = {name: self._rows(stored, start, stop) for name, stored in self._fields.items()}
        if "times_fs" not in rows and self._spacing_fs is not None:
            rows["times_fs"] = self._spacing_fs * (np.arange(start, stop) + self._breaks(start, stop))
        if "cell" in rows and rows["cell"].ndim == 2 and rows["cell"].shape != (3, 3):
            rows["cell"] = rows["cell"][:, :, None] * np.eye(3)
        return Trajectory(numbers=self._numbers, pbc=self._pbc, source=str(self.path), first_frame=start, **rows)

    def read_all(self) -> Trajectory:
        """All frames in memory."""
        return self.read(0, len(self))

    def _survey(self, part: str) -> None:
        self._spacing_fs: float | None = None
        self._pbc: Any = None
        if "h5md" in self._file:
            self._survey_h5md()
        else:
            self._survey_plain(part)
        positions = self._file[self._fields["positions"].path]
        if positions.ndim != 3 or positions.shape[1:] != (len(self._numbers), 3) or not self._length:
            raise TrajectoryError(
                f"{self.path}: {positions.name} has shape {positions.shape} for {len(self._numbers)} atoms; needed are "
                "frames of one system, (frames, atoms, 3), at least one (ragged sets are no trajectory)"
            )

    def _survey_plain(self, part: str) -> None:
        groups = [self._file[name] for name in ("inputs", "trajectory") if name in self._file] + [self._file]
        prefix = "reference_" if part == "reference" else ""
        group = next((g for g in groups if _find(g, "positions", prefix)), None)
        if group is None or "numbers" not in group:
            raise TrajectoryError(
                f"{self.path} is no trajectory: it needs datasets 'numbers' and '{prefix}positions', "
                f"found {sorted(self._file)}"
            )
        self._numbers = np.asarray(group["numbers"][()], dtype=np.int64)
        self._fields = {}
        for name in ARRAYS:
            shared = name in ("cell", "masses")
            stored = _find(group, name, "" if shared else prefix)
            if stored is not None:
                self._fields[name] = stored
        self._length = int(self._file[self._fields["positions"].path].shape[0])
        self._drop_partial()
        self._set_spacing(prefix)

    def _breaks(self, start: int, stop: int) -> Int[np.ndarray, " frames"]:
        """Interruptions of the recording before each frame; each counts as one missing frame, at least."""
        if "segment" not in self._file:
            return np.zeros(stop - start, dtype=np.int64)
        return np.asarray(self._file["segment"][start:stop], dtype=np.int64)

    def _drop_partial(self) -> None:
        for name in list(self._fields):
            shape = self._file[self._fields[name].path].shape
            if name == "masses" or (name == "cell" and len(shape) == 2):
                self._fields[name] = _Stored(self._fields[name].path, self._fields[name].factor, per_frame=False)
            elif shape[:1] != (self._length,):
                del self._fields[name]

    def _set_spacing(self, prefix: str) -> None:
        attributes = self._file.attrs
        if prefix or "times_fs" in self._fields or "shuffled" in str(attributes.get("order", "")):
            return
        if "frame_spacing_fs" in attributes:
            self._spacing_fs = float(attributes["frame_spacing_fs"])
        elif "frame_spacing_ps" in attributes:
            self._spacing_fs = FS_PER_PS * float(attributes["frame_spacing_ps"])

    def _survey_h5md(self) -> None:
        particles = [group for group in self._file["particles"].values() if "position/value" in group]
        if len(particles) != 1:
            raise TrajectoryError(f"{self.path} must have one group of particles with positions, has {len(particles)}")
        group = particles[0]
        if not isinstance(group.get("species"), h5py.Dataset):
            raise TrajectoryError(f"{self.path} has no constant species in {group.name}: the elements are not known")
        self._numbers = np.asarray(group["species"][()], dtype=np.int64)
        boundary = np.atleast_1d(group["box"].attrs["boundary"]) if "box" in group else np.array(["none"])
        self._pbc = np.broadcast_to([name in (b"periodic", "periodic") for name in boundary], (3,)).copy()
        committed = self._file.get("parameters/committed_frames")
        self._length = len(group["position/value"]) if committed is None else int(committed[()])
        self._fields = {}
        elements = {"positions": "position", "velocities": "velocity", "forces": "force", "cell": "box/edges"}
        for name, element in elements.items():
            self._add_h5md(name, group.get(element))
        self._add_h5md("energies", self._file.get("observables/potential_energy"))
        self._add_h5md("temperatures_K", self._file.get("observables/temperature"))
        if "mass" in group:
            self._fields["masses"] = _Stored(group["mass"].name, 1.0, per_frame=False)
        self._set_h5md_times(group["position"])

    def _add_h5md(self, name: str, element: Any) -> None:
        if element is None:
            return
        fixed = isinstance(element, h5py.Dataset)
        dataset = element if fixed else element["value"]
        if not fixed and len(dataset) < self._length:
            return
        self._fields[name] = _Stored(dataset.name, h5md_unit(dataset, name, self.path), per_frame=not fixed)

    def _set_h5md_times(self, positions: Any) -> None:
        time = positions.get("time")
        if time is None:
            return
        factor = h5md_unit(time, "times_fs", self.path)
        if time.shape == ():
            self._spacing_fs = float(time[()]) * factor
        else:
            self._fields["times_fs"] = _Stored(time.name, factor)

    def _rows(self, stored: _Stored, start: int, stop: int) -> Float[np.ndarray, "..."]:
        dataset = self._file[stored.path]
        values = dataset[start:stop] if stored.per_frame else dataset[()]
        rows: Float[np.ndarray, "..."] = np.asarray(values, dtype=np.float64) * stored.factor
        if not stored.per_frame and rows.ndim == 1 and stored.path.endswith("edges"):
            return np.diag(rows)
        return rows


def open_trajectory(file: str | Path, *, part: str = "rollout") -> FrameSource:
    """A trajectory from a file, read in parts where the format allows.

    Args:
        file: H5MD or other HDF5 (suffix .h5, .hdf5, .h5md), npz, or any format that `ase.io.read` knows.
        part: "reference" for the reference positions stored beside a rollout in HDF5.

    Raises:
        TrajectoryError: if it holds no trajectory; the message says what is missing.
        OSError: if it cannot be opened.
    """
    path = Path(file)
    if not path.exists():
        raise TrajectoryError(f"there is no file {path}: give the path of a trajectory")
    if path.suffix in HDF5_SUFFIXES or h5py.is_hdf5(path):
        return TrajectoryFile(path, part=part)
    if part != "rollout":
        raise TrajectoryError(f"{path} is not HDF5 and has no part {part!r}")
    return _read_npz(path) if path.suffix == ".npz" else _read_ase(path)


def read_trajectory(file: str | Path, *, part: str = "rollout") -> Trajectory:
    """All frames of a file in memory.

    Raises:
        TrajectoryError: if it holds no trajectory; the message says what is missing.
        OSError: if it cannot be opened.
    """
    source = open_trajectory(file, part=part)
    if isinstance(source, TrajectoryFile):
        with source:
            return source.read_all()
    return source.read(0, len(source))


def _open(path: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise TrajectoryError(f"{path} is being written by another process: wait until it is done") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise TrajectoryError(f"{path} is no HDF5 file, or it is truncated ({error})") from error


def _find(group: Any, name: str, prefix: str) -> _Stored | None:
    for alias, factor in ARRAYS[name]:
        if prefix + alias in group:
            dataset = group[prefix + alias]
            return _Stored(dataset.name, factor)
    return None


def _read_npz(path: Path) -> Trajectory:
    with np.load(path, allow_pickle=False) as data:
        found = {field: next((n for n in names if n in data), None) for field, names in NPZ_NAMES.items()}
        if found["positions"] is None or found["numbers"] is None:
            raise TrajectoryError(
                f"{path} is no trajectory: it needs arrays 'positions' (or 'R') and 'numbers' (or 'z'), "
                f"found {sorted(data.files)}"
            )
        factor = ENERGY_UNITS[_npz_energy_unit(data, path)]
        arrays = {field: data[name] for field, name in found.items() if name is not None}
        arrays |= {name: data[name] for name in ("times_fs", "velocities", "temperatures_K") if name in data}
    numbers = arrays.pop("numbers").astype(np.int64)
    for name in ("energies", "forces"):
        if name in arrays:
            arrays[name] = arrays[name] * factor
    if "energies" in arrays:
        arrays["energies"] = arrays["energies"].reshape(-1)
    return Trajectory(numbers=numbers, source=str(path), **arrays)


def _npz_energy_unit(data: Any, path: Path) -> str:
    if "e_unit" in data:
        unit = str(data["e_unit"])
    else:
        unit = "eV" if "positions" in data else "kcal/mol"
    if unit not in ENERGY_UNITS:
        raise TrajectoryError(f"{path} has energies in {unit!r}; known are {', '.join(ENERGY_UNITS)}")
    return unit


def _read_ase(path: Path) -> Trajectory:
    try:
        images = ase.io.read(path, index=":")
    except Exception as error:  # readers of ASE raise whatever a malformed file leads to
        raise TrajectoryError(f"{path} is no trajectory that ASE can read ({error!r})") from error
    return _with_log(Trajectory.from_atoms(list(images), source=str(path)), path.with_name(FILE_NAME))


def _with_log(trajectory: Trajectory, path: Path) -> Trajectory:
    """Times, temperatures and potential energies from a log beside the file, where the trajectory has none."""
    if trajectory.times_fs is not None or not path.is_file():
        return trajectory
    try:
        log = read_thermo_log(path)
    except TrajectoryError as error:
        warnings.warn(f"{path} is left aside: {error}", UserWarning, stacklevel=4)
        return trajectory
    if len(log) != len(trajectory):
        text = f"{path} is left aside: it has {len(log)} rows for the {len(trajectory)} frames of {trajectory.source}"
        warnings.warn(f"{text}, and so tells no times: give the time between frames", UserWarning, stacklevel=4)
        return trajectory
    return _joined(trajectory, log)


def _joined(trajectory: Trajectory, log: ThermoLog) -> Trajectory:
    factor = trajectory.n_atoms if log.per_atom else 1
    known = trajectory.energies
    return replace(
        trajectory,
        times_fs=log.times_fs,
        energies=log.potential_eV * factor if known is None else known,
        temperatures_K=log.temperatures_K if trajectory.temperatures_K is None else trajectory.temperatures_K,
    )
