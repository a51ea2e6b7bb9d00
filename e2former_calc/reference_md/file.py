"""HDF5 files of reference trajectories, which a killed run leaves readable and able to continue.

HDF5 is not safe against a crash while a file is open for writing. Therefore a file is never changed: new frames
and the state to continue from are written with the old frames into a file beside it, which then takes its place
in one step of the operating system. Frames and state are one file, so they cannot contradict each other. The
price is a copy of the compressed frames per save; callers save at intervals that are long compared to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import units
from jaxtyping import Float, Float64
from numpy.typing import NDArray

UNITS = "A, A/ps, eV/A, eV, amu"
RESTART = "restart"
ROWS: dict[str, tuple[type[np.generic], bool]] = {
    "energy": (np.float64, False),
    "kinetic_energy": (np.float64, False),
    "forces": (np.float32, True),
    "positions": (np.float32, True),
    "velocities": (np.float32, True),
}
"""Tables with a row for each frame: type, and whether a row has a vector for each atom."""

CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class RestartState:
    """Where a trajectory continues.

    Attributes:
        step: steps done, equilibration included.
        frames: frames recorded before this step.
        positions: Å.
        momenta: ASE units.
        random_state: of numpy's bit generator, as JSON.
    """

    step: int
    frames: int
    positions: Float64[np.ndarray, "atoms 3"]
    momenta: Float64[np.ndarray, "atoms 3"]
    random_state: str


@dataclass(frozen=True)
class Frame:
    """One recorded frame: energies in eV, forces in eV/Å, positions in Å, velocities in Å/ps."""

    energy: float
    kinetic_energy: float
    forces: Float[np.ndarray, "atoms 3"]
    positions: Float[np.ndarray, "atoms 3"]
    velocities: Float[np.ndarray, "atoms 3"]


@dataclass(frozen=True)
class Header:
    """What does not change along a trajectory.

    Attributes:
        attributes: of the file.
        tables: numbers, masses, cell, ...
        settings: what a run that continues must have in common, JSON-able.
        start: tables that a run that continues must have in common: the structure as it was given.
    """

    attributes: Mapping[str, Any]
    tables: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]
    start: Mapping[str, NDArray[Any]]


class ReferenceFile:
    """The file of one trajectory.

    Args:
        path: the file.
        header: of a new file.
        frames: frames of the existing file that stay, 0 for a new one.
    """

    def __init__(self, path: Path, header: Header, *, frames: int) -> None:
        self.path = path
        self._header = header
        self._kept = frames
        self._pending: list[Frame] = []

    @property
    def frames(self) -> int:
        """Frames recorded, saved or not."""
        return self._kept + len(self._pending)

    def add(self, frame: Frame) -> None:
        """Record a frame; it is on disk after the next `save`."""
        self._pending.append(frame)

    def save(self, state: RestartState) -> None:
        """Bring all frames and the state to disk, at once or not at all.

        Raises:
            OSError: if that fails; the older file stays.
        """
        partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        try:
            with h5py.File(partial, "w") as new:
                self._write_header(new)
                self._write_rows(new)
                _write_state(new, state)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._kept += len(self._pending)
        self._pending = []

    def _write_header(self, new: h5py.File) -> None:
        header = self._header
        new.attrs.update(header.attributes)
        for name, table in header.tables.items():
            new[name] = table
        group = new.create_group(RESTART)
        group.attrs["settings"] = json.dumps(dict(header.settings))
        for name, table in header.start.items():
            group[f"start/{name}"] = table

    def _write_rows(self, new: h5py.File) -> None:
        atoms = len(self._header.tables["numbers"])
        if self._kept:
            with h5py.File(self.path, "r") as old:
                for name in ROWS:
                    old.copy(name, new)
        for name, (kind, vector) in ROWS.items():
            if name not in new:
                _create_rows(new, name, kind, (atoms, 3) if vector else ())
            table = new[name]
            table.resize(self.frames, axis=0)
            if self._pending:
                table[self._kept :] = [getattr(frame, name) for frame in self._pending]


def _create_rows(new: h5py.File, name: str, kind: type[np.generic], row: tuple[int, ...]) -> None:
    rows = max(1, CHUNK_BYTES // (np.dtype(kind).itemsize * int(np.prod(row))))
    compression = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if row else {}
    new.create_dataset(name, (0, *row), kind, maxshape=(None, *row), chunks=(rows, *row), **compression)


def _write_state(new: h5py.File, state: RestartState) -> None:
    group = new[RESTART]
    group.attrs.update(step=state.step, frames=state.frames, random_state=state.random_state)
    group["positions"] = state.positions
    group["momenta"] = state.momenta


@dataclass(frozen=True)
class Saved:
    """What an existing file says about its run.

    Attributes:
        state: where to continue.
        settings: of the run.
        start: the structure as it was given.
        tables: the constant tables, such as minimum_positions.
        frames: frames in the file, some of them perhaps behind the state.
    """

    state: RestartState
    settings: Mapping[str, Any]
    start: Mapping[str, NDArray[Any]]
    tables: Mapping[str, NDArray[Any]]
    frames: int


def read_saved(path: Path) -> Saved:
    """Read what is needed to continue.

    Raises:
        ValueError: if the file was not written by this command.
    """
    try:
        with h5py.File(path, "r") as file:
            group = file[RESTART]
            attributes = group.attrs
            state = RestartState(
                step=int(attributes["step"]), frames=int(attributes["frames"]), positions=group["positions"][()],
                momenta=group["momenta"][()], random_state=str(attributes["random_state"]),
            )  # fmt: skip
            return Saved(
                state=state,
                settings=json.loads(attributes["settings"]),
                start={name: table[()] for name, table in group["start"].items()},
                tables={name: table[()] for name, table in file.items() if name not in (*ROWS, RESTART)},
                frames=len(file["energy"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be continued, it is no file of 'e2former reference': {error}") from None


@dataclass(frozen=True)
class Summary:
    """Numbers of a trajectory.

    Attributes:
        frames: how many.
        time_ps: from the first to the last.
        temperature: mean of the instantaneous temperature, None without frames.
        drift: slope of the total energy in meV per atom and ps, None with fewer than three frames.
    """

    frames: int
    time_ps: float
    temperature: float | None
    drift: float | None


def summarize(path: Path) -> Summary:
    """Mean temperature and energy drift of a file."""
    with h5py.File(path, "r") as file:
        kinetic = file["kinetic_energy"][()]
        total = file["energy"][()] + kinetic
        atoms = len(file["numbers"])
        freedom, spacing_ps = int(file.attrs["degrees_of_freedom"]), float(file.attrs["frame_spacing_fs"]) / 1000
    frames = len(total)
    temperature = 2 * float(kinetic.mean()) / (freedom * units.kB) if frames and freedom else None
    drift = None
    if frames > 2:
        time = np.arange(frames) * spacing_ps
        drift = 1000 * float(np.polyfit(time - time.mean(), total - total[0], 1)[0]) / atoms
    return Summary(frames, max(0, frames - 1) * spacing_ps, temperature, drift)
