# ruff: noqa: N802, N815 (units in names)
"""A trajectory as arrays, and the checks that every observable relies on.

`Trajectory` holds frames in memory. A `FrameSource` is a trajectory or a file of which only parts are read at
a time (`readers.open_trajectory`); observables that can stream accept any `FrameSource`.

>>> import numpy as np
>>> positions = np.zeros((3, 2, 3))
>>> positions[:, 1, 0] = [0.74, 0.75, 0.76]
>>> trajectory = Trajectory(positions=positions, numbers=np.array([1, 1]), times_fs=np.array([0.0, 0.5, 1.0]))
>>> len(trajectory), trajectory.spacing_fs()
(3, 0.5)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import atomic_masses, chemical_symbols
from jaxtyping import Bool, Float, Int

CHUNK_BYTES = 2**25
"""Positions that a streaming function holds in memory at a time."""

SPACING_TOLERANCE = 1e-3
"""Largest relative deviation between frame spacings that counts as equal (files round their times)."""

PER_FRAME = ("positions", "times_fs", "velocities", "forces", "energies", "temperatures_K")


class TrajectoryError(ValueError):
    """A trajectory cannot be used for what was asked; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Frames of one system, in memory.

    Attributes:
        positions: Å, wrapped or not.
        numbers: atomic numbers.
        cell: lattice vectors as rows, Å, one for all frames or one each; None for a molecule.
        pbc: periodicity along each lattice vector; default: periodic if there is a cell.
        masses: amu; default: standard atomic masses.
        times_fs: time of each frame in fs; None if the order of the frames means nothing.
        velocities: Å/fs.
        forces: eV/Å.
        energies: potential energies in eV.
        temperatures_K: as logged by the program that wrote the file.
        source: where it comes from, for messages.
        first_frame: number that frame 0 has in the source, so that parts of a file name frames correctly.

    Raises:
        TrajectoryError: if shapes disagree, or if there is no frame or no atom.
    """

    positions: Float[np.ndarray, "frames atoms 3"]
    numbers: Int[np.ndarray, " atoms"]
    cell: Float[np.ndarray, "... 3 3"] | None = None
    pbc: Bool[np.ndarray, "3"] | None = None
    masses: Float[np.ndarray, " atoms"] | None = None
    times_fs: Float[np.ndarray, " frames"] | None = None
    velocities: Float[np.ndarray, "frames atoms 3"] | None = None
    forces: Float[np.ndarray, "frames atoms 3"] | None = None
    energies: Float[np.ndarray, " frames"] | None = None
    temperatures_K: Float[np.ndarray, " frames"] | None = None
    source: str = "trajectory"
    first_frame: int = 0

    def __post_init__(self) -> None:
        numbers = np.asarray(self.numbers, dtype=np.int64)
        object.__setattr__(self, "numbers", numbers)
        for name in (*PER_FRAME, "cell", "masses"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
        self._check_shapes()
        if self.masses is None:
            object.__setattr__(self, "masses", atomic_masses[numbers].copy())
        periodic = self.cell is not None if self.pbc is None else self.pbc
        object.__setattr__(self, "pbc", np.broadcast_to(np.asarray(periodic, dtype=bool), (3,)).copy())
        if self.is_periodic and self.cell is None:
            raise TrajectoryError(f"{self.source} is periodic (pbc {self.pbc}) but has no cell: give `cell`")

    def __len__(self) -> int:
        return int(self.positions.shape[0])

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols."""
        return [chemical_symbols[number] for number in self.numbers]

    @property
    def is_periodic(self) -> bool:
        """Whether any direction is periodic."""
        return bool(np.any(self.pbc))

    @property
    def volumes_A3(self) -> Float[np.ndarray, " frames"]:
        """Volume of the cell in each frame (Å^3).

        Raises:
            TrajectoryError: without a cell.
        """
        return np.asarray(np.abs(np.linalg.det(self.cells())))

    def cells(self) -> Float[np.ndarray, "frames 3 3"]:
        """Lattice vectors (rows, Å) of every frame.

        Raises:
            TrajectoryError: without a cell.
        """
        if self.cell is None:
            raise TrajectoryError(f"{self.source} has no cell: this quantity is defined for periodic systems only")
        return np.broadcast_to(self.cell, (len(self), 3, 3))

    def read(self, start: int, stop: int) -> Trajectory:
        """Frames start ... stop - 1 as views of the same memory.

        Raises:
            TrajectoryError: if they do not exist.
        """
        if not 0 <= start < stop <= len(self):
            raise TrajectoryError(f"{self.source} has {len(self)} frames: there are no frames {start} to {stop - 1}")
        return self._select(slice(start, stop), first_frame=self.first_frame + start)

    def every(self, step: int) -> Trajectory:
        """Every `step`-th frame, from the first on.

        Raises:
            TrajectoryError: if `step` is not positive.
        """
        if step < 1:
            raise TrajectoryError(f"`step` must be at least 1, got {step}")
        return self._select(slice(None, None, step), first_frame=self.first_frame)

    def of_atoms(self, atoms: Int[np.ndarray, " chosen"]) -> Trajectory:
        """Positions, times and cell of some atoms."""
        return Trajectory(
            positions=self.positions[:, atoms],
            numbers=self.numbers[atoms],
            cell=self.cell,
            pbc=self.pbc,
            masses=np.asarray(self.masses)[atoms],
            times_fs=self.times_fs,
            source=self.source,
            first_frame=self.first_frame,
        )

    def require(self, *names: str) -> None:
        """Make sure that optional arrays are there.

        Raises:
            TrajectoryError: naming those that are missing.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise TrajectoryError(f"{self.source} holds no {', '.join(missing)}, which this quantity needs: store them")

    def check_finite(self) -> None:
        """Refuse positions, velocities, forces and energies that are not finite.

        Raises:
            TrajectoryError: naming the first frame.
        """
        for name in ("positions", "velocities", "forces", "energies"):
            values = getattr(self, name)
            if values is None:
                continue
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if bad.any():
                frame = self.first_frame + int(np.argmax(bad))
                raise TrajectoryError(
                    f"{self.source}: frame {frame} has {name} that are not finite (the run has exploded): "
                    "analyse the frames before it, or find out with `detect_collapse`"
                )

    def spacing_fs(self) -> float:
        """Time between two frames in fs.

        Raises:
            TrajectoryError: without times, with fewer than two frames, or if the spacing is not equal.
        """
        self.require("times_fs")
        return equal_spacing_fs(np.asarray(self.times_fs), source=self.source, first_frame=self.first_frame)

    def continuous_parts(self) -> list[Trajectory]:
        """Cut where the time between frames changes; parts of fewer than two frames are dropped.

        Raises:
            TrajectoryError: without times.
        """
        self.require("times_fs")
        times = np.asarray(self.times_fs)
        gaps = np.diff(times)
        if not len(gaps):
            return [self]
        spacing = float(np.median(gaps))
        jumps = np.flatnonzero(np.abs(gaps - spacing) > SPACING_TOLERANCE * abs(spacing) + _rounding_fs(times)) + 1
        bounds = [0, *jumps.tolist(), len(self)]
        return [self.read(a, b) for a, b in pairwise(bounds) if b - a > 1]

    @staticmethod
    def from_atoms(images: Sequence[Atoms], *, source: str = "ASE frames") -> Trajectory:
        """Frames of ASE, with times from `info["time_fs"]` and results of their calculators where all frames have them.

        Raises:
            TrajectoryError: if there is no frame, or if frames differ in their atoms.
        """
        if not images:
            raise TrajectoryError(f"{source} holds no frame")
        first = images[0]
        for frame, atoms in enumerate(images):
            check_same_atoms(first.numbers, atoms.numbers, names=(f"{source}, frame 0", f"frame {frame}"))
        has_cell = bool(first.pbc.any() or first.cell.array.any())
        return Trajectory(
            positions=np.stack([atoms.positions for atoms in images]),
            numbers=first.numbers,
            cell=_cells_of(images) if has_cell else None,
            pbc=first.pbc,
            masses=first.get_masses(),
            times_fs=_collect([atoms.info.get("time_fs") for atoms in images]),
            velocities=_collect([_velocities_of(atoms) for atoms in images]),
            forces=_collect([_result(atoms, "forces") for atoms in images]),
            energies=_collect([_result(atoms, "energy") for atoms in images]),
            source=source,
        )

    def to_atoms(self, frame: int) -> Atoms:
        """One frame as `Atoms`, with velocities if known."""
        atoms = Atoms(self.numbers, self.positions[frame], pbc=self.pbc, masses=self.masses)
        if self.cell is not None:
            atoms.cell = self.cells()[frame]
        if self.velocities is not None:
            atoms.set_velocities(self.velocities[frame] / units.fs)
        return atoms

    def _select(self, rows: slice, *, first_frame: int) -> Trajectory:
        chosen: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in PER_FRAME
        }
        cell = self.cell[rows] if self.cell is not None and self.cell.ndim == 3 else self.cell
        return replace(self, **chosen, cell=cell, first_frame=first_frame)

    def _check_shapes(self) -> None:
        shape = self.positions.shape
        if len(shape) != 3 or shape[2] != 3 or shape[1] != len(self.numbers) or 0 in shape:
            raise TrajectoryError(
                f"{self.source} has positions of shape {shape} and {len(self.numbers)} atomic numbers; "
                "needed are (frames, atoms, 3) and (atoms,), not empty"
            )
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(("times_fs", "energies", "temperatures_K"), shape[:1])
        expected |= {"velocities": shape, "forces": shape, "masses": shape[1:2]}
        for name, needed in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != needed:
                raise TrajectoryError(f"{self.source} has {name} of shape {value.shape}, but needs {needed}")
        if self.cell is not None and self.cell.shape not in ((3, 3), (shape[0], 3, 3)):
            raise TrajectoryError(f"{self.source} has a cell of shape {self.cell.shape}, needs (3, 3) or one per frame")


@runtime_checkable
class FrameSource(Protocol):
    """What streaming observables read: a `Trajectory`, or a file that is read in parts."""

    def __len__(self) -> int: ...

    @property
    def numbers(self) -> Int[np.ndarray, " atoms"]:
        """Atomic numbers."""
        ...

    def read(self, start: int, stop: int) -> Trajectory:
        """Frames start ... stop - 1."""
        ...


@dataclass(frozen=True, eq=False)
class EveryNth:
    """Every `step`-th frame of a source, from the first on, as a source.

    Attributes:
        whole: what frames are taken from.
        step: distance of the frames that are taken, 1 or more.
    """

    whole: FrameSource
    step: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise TrajectoryError(f"`step` must be at least 1, got {self.step}")

    def __len__(self) -> int:
        return -(-len(self.whole) // self.step)

    @property
    def numbers(self) -> Int[np.ndarray, " atoms"]:
        """Atomic numbers."""
        return np.asarray(self.whole.numbers)

    def read(self, start: int, stop: int) -> Trajectory:
        """Frames start ... stop - 1 of those that are taken.

        Raises:
            TrajectoryError: if they do not exist.
        """
        if not 0 <= start < stop <= len(self):
            raise TrajectoryError(f"there are no frames {start} to {stop - 1} in {len(self)} frames")
        return self.whole.read(start * self.step, (stop - 1) * self.step + 1).every(self.step)


def at_most(source: FrameSource, n_frames: int) -> FrameSource:
    """The source, or equally spaced frames of it, no more than `n_frames`.

    Raises:
        TrajectoryError: if `n_frames` is not positive.
    """
    if n_frames < 1:
        raise TrajectoryError(f"`n_frames` must be at least 1, got {n_frames}")
    return source if len(source) <= n_frames else EveryNth(source, -(-len(source) // n_frames))


def read_atoms(source: FrameSource, atoms: Int[np.ndarray, " chosen"], *, stop: int | None = None) -> Trajectory:
    """Positions and times of some atoms in all frames, in memory; the source is read in parts.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
    """
    parts = [chunk.of_atoms(atoms) for chunk in iterate_chunks(source, stop=stop)]
    if not parts:
        raise TrajectoryError("there is no frame to read")
    first = parts[0]
    cells = None
    if first.cell is not None:
        cells = first.cell if first.cell.ndim == 2 else np.concatenate([part.cells() for part in parts])
    times = None if first.times_fs is None else np.concatenate([np.asarray(part.times_fs) for part in parts])
    return replace(first, positions=np.concatenate([part.positions for part in parts]), cell=cells, times_fs=times)


def iterate_chunks(source: FrameSource, *, start: int = 0, stop: int | None = None) -> Iterator[Trajectory]:
    """Parts of a source, one after the other, each small enough for memory; positions are checked to be finite.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
    """
    for chunk in iterate_unchecked(source, start=start, stop=stop):
        chunk.check_finite()
        yield chunk


def iterate_unchecked(source: FrameSource, *, start: int = 0, stop: int | None = None) -> Iterator[Trajectory]:
    """Like `iterate_chunks`, but frames that are not finite pass."""
    end = len(source) if stop is None else min(stop, len(source))
    size = max(1, CHUNK_BYTES // (24 * len(source.numbers)))
    for first in range(start, end, size):
        yield source.read(first, min(first + size, end))


def equal_spacing_fs(times_fs: Float[np.ndarray, " frames"], *, source: str, first_frame: int = 0) -> float:
    """Time between two frames in fs, of frames that are equally spaced.

    Raises:
        TrajectoryError: with fewer than two frames, or naming the first two frames that are spaced differently.
    """
    if len(times_fs) < 2:
        raise TrajectoryError(f"{source} has one frame: a spacing needs two")
    gaps = np.diff(times_fs)
    spacing = float(np.median(gaps))
    unequal = (np.abs(gaps - spacing) > SPACING_TOLERANCE * abs(spacing) + _rounding_fs(times_fs)) | (gaps <= 0)
    if unequal.any():
        frame = int(np.argmax(unequal))
        raise TrajectoryError(
            f"{source}: frames {first_frame + frame} and {first_frame + frame + 1} are {gaps[frame]:g} fs apart, most "
            f"others {spacing:g} fs; frames must be equally spaced: use `continuous_parts`, or remove repeated frames"
        )
    return float(times_fs[-1] - times_fs[0]) / (len(times_fs) - 1)


def check_same_atoms(
    reference: Int[np.ndarray, " atoms"],
    rollout: Int[np.ndarray, " other_atoms"],
    *,
    names: tuple[str, str] = ("the reference", "the rollout"),
) -> None:
    """Refuse a comparison of different systems.

    Raises:
        TrajectoryError: if the number, the elements or the order of the atoms differ.
    """
    first, second = names
    if len(reference) != len(rollout):
        raise TrajectoryError(f"{second} has {len(rollout)} atoms, {first} has {len(reference)}: not the same system")
    different = np.flatnonzero(np.asarray(reference) != np.asarray(rollout))
    if not len(different):
        return
    atom = int(different[0])
    pair = f"{chemical_symbols[rollout[atom]]} instead of {chemical_symbols[reference[atom]]}"
    if np.array_equal(np.sort(reference), np.sort(rollout)):
        raise TrajectoryError(f"{second} has its atoms in another order than {first} (atom {atom}: {pair}): sort them")
    raise TrajectoryError(f"{second} has other elements than {first} (atom {atom}: {pair}): not the same system")


def _rounding_fs(times_fs: Float[np.ndarray, " frames"]) -> float:
    """Error of differences of times that were stored in single precision or rounded to four digits of a ps."""
    return float(4 * np.finfo(np.float32).eps * np.abs(times_fs).max())


def _cells_of(images: Sequence[Atoms]) -> Float[np.ndarray, "... 3 3"]:
    cells = np.stack([atoms.cell.array for atoms in images])
    return cells[0] if np.array_equal(cells, np.broadcast_to(cells[0], cells.shape)) else cells


def _velocities_of(atoms: Atoms) -> Float[np.ndarray, "atoms 3"] | None:
    return atoms.get_velocities() * units.fs if atoms.has("momenta") else None


def _result(atoms: Atoms, name: str) -> Any:
    if atoms.calc is None:
        return None
    try:
        return atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None


def _collect(values: list[Any]) -> Any:
    return None if any(value is None for value in values) else np.array(values, dtype=np.float64)
