# ruff: noqa: N802, N815 (units in names)
"""The trajectories of a report, with what one pass over each of them tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from e2former_calc.analysis.constants import AMU_A2_PER_FS2_EV, BOLTZMANN_EV_PER_K
from e2former_calc.analysis.readers import TrajectoryFile, open_trajectory
from e2former_calc.analysis.thermodynamics import angular_momenta, kinetic_energies, momenta
from e2former_calc.analysis.trajectory import (
    FrameSource,
    Trajectory,
    TrajectoryError,
    check_same_atoms,
    equal_spacing_fs,
    iterate_unchecked,
)
from e2former_calc.report.settings import ReportSettings

AT_REST = 1e-6
"""Share of the kinetic energy below which a collective motion counts as removed."""


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive frames of a source, as a source.

    Attributes:
        whole: what they are part of.
        start: first frame.
        stop: frame after the last.
    """

    whole: FrameSource
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def numbers(self) -> Int[np.ndarray, " atoms"]:
        """Atomic numbers."""
        return np.asarray(self.whole.numbers)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes of the file, if it is one."""
        return attributes_of(self.whole)

    def read(self, start: int, stop: int) -> Trajectory:
        """Frames start ... stop - 1 of this part.

        Raises:
            TrajectoryError: if they do not exist.
        """
        if not 0 <= start < stop <= len(self):
            raise TrajectoryError(f"there are no frames {start} to {stop - 1} in a part of {len(self)} frames")
        return self.whole.read(self.start + start, self.start + stop)


@dataclass(frozen=True, eq=False)
class Run:
    """One trajectory.

    Attributes:
        name: for legends and tables.
        source: its frames.
        path: its file, if it has one.
        attributes: what the file says.
        times_ps: from 0 on; None if the order of the frames means nothing.
        spacing_fs: time between frames; None if unknown or unequal.
        energies_eV: potential energies; None if not stored.
        kinetic_eV: kinetic energies; None without velocities.
        temperatures_K: kinetic temperature, or as logged; None if neither is there.
        degrees: degrees of freedom behind the kinetic temperature.
        at_rest: whether translation and rotation of the whole are at rest in all frames.
        has_forces: whether forces are stored.
        pbc: whether any direction is periodic, and whether all are.
        usable: observables use frames 0 ... usable - 1.
    """

    name: str
    source: FrameSource
    path: Path | None
    attributes: Mapping[str, Any]
    times_ps: Float[np.ndarray, " frames"] | None
    spacing_fs: float | None
    energies_eV: Float[np.ndarray, " frames"] | None
    kinetic_eV: Float[np.ndarray, " frames"] | None
    temperatures_K: Float[np.ndarray, " frames"] | None
    degrees: int
    at_rest: tuple[bool, bool]
    has_forces: bool
    pbc: tuple[bool, bool]
    usable: int

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.source.numbers)

    @property
    def good(self) -> FrameSource:
        """The frames that observables use."""
        return Part(self.source, 0, self.usable)

    @property
    def length_ps(self) -> float | None:
        """Time from the first to the last frame."""
        return None if self.times_ps is None else float(self.times_ps[-1])

    def cut(self, usable: int) -> Run:
        """The same run with so many usable frames."""
        return replace(self, usable=usable)


@dataclass(frozen=True, eq=False)
class Method:
    """A calculator, of the ground truth or of the model that is judged.

    Attributes:
        name: level of theory with the program, or name of the model.
        calculator: of ASE.
    """

    name: str
    calculator: Any


Truth = Method
"""A ground-truth calculator."""


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that sections are computed from.

    Attributes:
        rollouts: replicas, equivalent to each other.
        reference: what they are compared with.
        settings: thresholds and ranges.
        truth: calculator that frames are recalculated with; None if there is none.
        model: calculator that the rollouts were made with; None if it is not at hand.
    """

    rollouts: tuple[Run, ...]
    reference: Run
    settings: ReportSettings
    truth: Method | None = None
    model: Method | None = None

    @property
    def usable(self) -> tuple[Run, ...]:
        """Rollouts that have frames to use."""
        return tuple(run for run in self.rollouts if run.usable > 0)

    @property
    def temperature_K(self) -> float | None:
        """Target temperature: of the settings, of the reference, or of the rollouts."""
        stated = [self.settings.temperature_K]
        stated += [_number(run.attributes.get("temperature_K")) for run in (self.reference, *self.rollouts)]
        return next((value for value in stated if value is not None and value > 0), None)

    def share(self, run: Run) -> float:
        """Length of the usable part of a run over that of the reference, in time or else in frames."""
        spacings = (run.spacing_fs, self.reference.spacing_fs)
        ratio = 1.0 if not all(spacings) else float(spacings[0] or 1.0) / float(spacings[1] or 1.0)
        return run.usable * ratio / len(self.reference.source)


def open_part(text: str | Path) -> FrameSource:
    """A trajectory from a file; "FILE@START:STOP" takes frames START ... STOP - 1 of it.

    Raises:
        TrajectoryError: if there is no such trajectory or no such frames.
        OSError: if the file cannot be opened.
    """
    name, at, part = str(text).rpartition("@")
    if not at or Path(text).exists():
        return open_trajectory(text)
    first, colon, last = part.partition(":")
    whole = open_trajectory(name)
    try:
        start, stop, _ = slice(int(first or 0), int(last) if last else None).indices(len(whole))
    except ValueError:
        start, stop = 0, 0
    if not colon or start >= stop:
        raise TrajectoryError(f"{name} has {len(whole)} frames, {part!r} takes none of them: write FILE@START:STOP")
    return Part(whole, start, stop)


def first_atoms(text: str | Path) -> Atoms:
    """The first frame of a file ("FILE@START:STOP" of a part), with velocities if known.

    Raises:
        TrajectoryError: if there is no such trajectory or no such frames.
        OSError: if the file cannot be opened.
    """
    source = open_part(text)
    try:
        return source.read(0, 1).to_atoms(0)
    finally:
        close(source)


def close(source: FrameSource) -> None:
    """Close the file behind a source, if there is one."""
    whole = source.whole if isinstance(source, Part) else source
    if isinstance(whole, TrajectoryFile):
        whole.close()


def attributes_of(source: FrameSource) -> Mapping[str, Any]:
    """What the file of a source says about it; empty for frames in memory."""
    found = getattr(source, "attributes", None)
    return found if isinstance(found, Mapping) else {}


def survey(name: str, source: FrameSource, *, frame_spacing_fs: float | None = None) -> Run:
    """Read a trajectory once, frames that are not finite included.

    Args:
        name: for messages and legends.
        source: the trajectory.
        frame_spacing_fs: time between frames, in place of what the trajectory says.

    Raises:
        TrajectoryError: if parts of a file cannot be read.
    """
    chunks = [_Facts.of(chunk) for chunk in iterate_unchecked(source)]
    start = source.read(0, 1)
    times = _joined([chunk.times_fs for chunk in chunks])
    spacing = frame_spacing_fs if frame_spacing_fs is not None else _spacing(times, name)
    if frame_spacing_fs is not None:
        times = frame_spacing_fs * np.arange(len(source), dtype=np.float64)
    kinetic = _joined([chunk.kinetic_eV for chunk in chunks])
    at_rest = (all(chunk.no_translation for chunk in chunks), all(chunk.no_rotation for chunk in chunks))
    degrees = max(3 * start.n_atoms - 3 * sum(at_rest), 1)
    logged = _joined([chunk.temperatures_K for chunk in chunks])
    return Run(
        name=name,
        source=source,
        path=_path(source),
        attributes=attributes_of(source),
        times_ps=None if times is None else (times - times[0]) * 1e-3,
        spacing_fs=spacing,
        energies_eV=_joined([chunk.energies_eV for chunk in chunks]),
        kinetic_eV=kinetic,
        temperatures_K=logged if kinetic is None else kinetic * (2.0 / (degrees * BOLTZMANN_EV_PER_K)),
        degrees=degrees,
        at_rest=at_rest,
        has_forces=start.forces is not None,
        pbc=(start.is_periodic, bool(np.all(start.pbc))),
        usable=len(source),
    )


def check_comparable(rollout: Run, reference: Run) -> None:
    """Refuse a comparison of different systems.

    Raises:
        TrajectoryError: naming the rollout and what differs.
    """
    names = ("the reference", f"the rollout {rollout.name}")
    check_same_atoms(np.asarray(reference.source.numbers), np.asarray(rollout.source.numbers), names=names)
    if rollout.pbc[0] != reference.pbc[0]:
        first, second = ("periodic", "not") if rollout.pbc[0] else ("not periodic", "is")
        raise TrajectoryError(
            f"the rollout {rollout.name} is {first}, the reference {second}: store both with the same boundaries "
            "(a molecule needs none, pbc = False)"
        )


@dataclass(frozen=True, eq=False)
class _Facts:
    """What is kept of a chunk of frames."""

    times_fs: Float[np.ndarray, " frames"] | None
    energies_eV: Float[np.ndarray, " frames"] | None
    kinetic_eV: Float[np.ndarray, " frames"] | None
    temperatures_K: Float[np.ndarray, " frames"] | None
    no_translation: bool
    no_rotation: bool

    @staticmethod
    def of(chunk: Trajectory) -> _Facts:
        if chunk.velocities is None:
            return _Facts(chunk.times_fs, chunk.energies, None, chunk.temperatures_K, False, False)
        with np.errstate(invalid="ignore", over="ignore"):
            kinetic = kinetic_energies(chunk)
            masses = np.asarray(chunk.masses)
            moving = 0.5 * AMU_A2_PER_FS2_EV * (momenta(chunk) ** 2).sum(axis=1) / masses.sum()
            center = np.einsum("a,fak->fk", masses / masses.sum(), chunk.positions)[:, None]
            inertia = np.einsum("a,fak->f", masses, (chunk.positions - center) ** 2)
            spin = (angular_momenta(chunk) ** 2).sum(axis=1)
            spinning = 0.5 * AMU_A2_PER_FS2_EV * np.divide(spin, inertia, out=np.zeros_like(spin), where=inertia > 0)
        open_boundary = not chunk.is_periodic and chunk.n_atoms > 2
        return _Facts(
            times_fs=chunk.times_fs,
            energies_eV=chunk.energies,
            kinetic_eV=kinetic,
            temperatures_K=chunk.temperatures_K,
            no_translation=_at_rest(moving, kinetic),
            no_rotation=open_boundary and _at_rest(spinning, kinetic),
        )


def _at_rest(part: Float[np.ndarray, " frames"], kinetic: Float[np.ndarray, " frames"]) -> bool:
    known = np.isfinite(part) & np.isfinite(kinetic)
    return bool(known.any() and (part[known] <= AT_REST * kinetic[known]).all() and kinetic[known].any())


def _joined(parts: Sequence[Float[np.ndarray, " frames"] | None]) -> Float[np.ndarray, " frames"] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _spacing(times_fs: Float[np.ndarray, " frames"] | None, name: str) -> float | None:
    if times_fs is None or len(times_fs) < 2:
        return None
    try:
        return equal_spacing_fs(times_fs, source=name)
    except TrajectoryError:
        return None


def _path(source: FrameSource) -> Path | None:
    whole = source.whole if isinstance(source, Part) else source
    found = getattr(whole, "path", None) or getattr(whole, "source", None)
    path = None if found is None else Path(found)
    return path if path is not None and path.is_file() else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
