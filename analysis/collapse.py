# ruff: noqa: N815 (units in names)
"""Collapse detectors: cheap signs that a simulation has left physics, whatever the reference says.

Every detector runs over the frames in parts and reports its first violation; `detect_collapse` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int

from e2former_calc.analysis.stability import Stability
from e2former_calc.analysis.thermodynamics import kinetic_energies, temperatures
from e2former_calc.analysis.topology import BOND_TOLERANCE_A, molecules, pair_vectors
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, iterate_unchecked

PAIR_BATCH = 200_000
"""Distances computed at a time."""


@dataclass(frozen=True)
class CollapseLimits:
    """What counts as collapse.

    Attributes:
        force_eV_per_A: largest force on an atom.
        temperature_K: target temperature; None: temperatures are not judged.
        temperature_range: lowest and highest mean temperature of a window, as multiples of the target.
        temperature_window_fs: length of that window; at least one frame.
        n_degrees_of_freedom: for the temperature; default 3 per atom.
        contact_scale: non-bonded atoms closer than this times the sum of their covalent radii are too close.
        energy_jump_sigma: largest change of the total energy between frames, in standard deviations of the changes
            before; None: not judged (right for thermostatted runs, whose total energy is not conserved).
        check_topology: whether to compare the number of fragments and free atoms with the first frame.
    """

    force_eV_per_A: float = 50.0
    temperature_K: float | None = None
    temperature_range: tuple[float, float] = (0.1, 5.0)
    temperature_window_fs: float = 50.0
    n_degrees_of_freedom: int | None = None
    contact_scale: float = 0.6
    energy_jump_sigma: float | None = None
    check_topology: bool = True


@dataclass(frozen=True)
class Violation:
    """First frame in which one detector fires.

    Attributes:
        detector: "not finite", "force", "temperature", "contact", "fragments", "free atom" or "energy jump".
        frame: number of the frame.
        time_fs: its time; None if the trajectory has no times.
        reason: what was found, with numbers.
    """

    detector: str
    frame: int
    time_fs: float | None
    reason: str


Finding = tuple[str, int, str]
Detector = Callable[[Trajectory], Iterator[Finding]]


def detect_collapse(source: FrameSource, limits: CollapseLimits | None = None) -> list[Violation]:
    """First violation of every detector, earliest first; empty if there is none.

    Frames from the first one that is not finite on are not examined further. Detectors that need forces, velocities or
    energies are skipped where these are not stored. Non-bonded pairs are those not bonded in the first frame.
    """
    chosen = limits or CollapseLimits()
    detectors = _detectors(source, chosen)
    first: dict[str, Violation] = {}
    for chunk in iterate_unchecked(source):
        finite = _finite_frames(chunk)
        part = chunk if finite.all() else _head(chunk, int(np.argmin(finite)))
        if part is not None:
            for detector in detectors:
                for name, index, reason in detector(part):
                    first.setdefault(name, _violation(name, part, index, reason))
        if not finite.all():
            index = int(np.argmin(finite))
            first["not finite"] = _violation("not finite", chunk, index, _what_is_not_finite(chunk, index))
            break
    return sorted(first.values(), key=lambda violation: violation.frame)


def earliest_failure(verdict: Stability, violations: Sequence[Violation]) -> Stability:
    """The verdict of a criterion, replaced by a collapse that comes before its own failure, if there is one."""
    if not violations:
        return verdict
    first = min(violations, key=lambda violation: violation.frame)
    if verdict.frame is not None and verdict.frame <= first.frame:
        return verdict
    stable = max(first.frame - 1, 0)
    return replace(
        verdict,
        criterion=f"{verdict.criterion}, no collapse",
        frame=first.frame,
        reason=f"{first.detector}: {first.reason}",
        stable_ps=stable * verdict.frame_spacing_fs * 1e-3,
        stable_frames=stable,
        usable_frames=first.frame,
    )


def _detectors(source: FrameSource, limits: CollapseLimits) -> list[Detector]:
    detectors: list[Detector] = [lambda chunk: _large_forces(chunk, limits.force_eV_per_A)]
    if limits.temperature_K is not None:
        detectors.append(_TemperatureWindow(limits, limits.temperature_K))
    start = source.read(0, 1)
    if limits.check_topology and np.isfinite(start.positions).all():
        detectors.append(_Geometry(start, limits.contact_scale))
    if limits.energy_jump_sigma is not None:
        detectors.append(_EnergyJump(limits.energy_jump_sigma))
    return detectors


def _large_forces(chunk: Trajectory, limit: float) -> Iterator[Finding]:
    if chunk.forces is None:
        return
    size = np.linalg.norm(chunk.forces, axis=-1)
    bad = size.max(axis=1) > limit
    if bad.any():
        frame = int(np.argmax(bad))
        atom = int(np.argmax(size[frame]))
        yield "force", frame, f"force on atom {atom} is {size[frame, atom]:.4g} eV/Å, the limit is {limit:g} eV/Å"


class _TemperatureWindow:
    """Mean temperature over a sliding window of frames."""

    def __init__(self, limits: CollapseLimits, target_K: float) -> None:
        self._limits, self._target = limits, target_K
        self._tail = np.zeros(0)

    def __call__(self, chunk: Trajectory) -> Iterator[Finding]:
        if chunk.velocities is None and chunk.temperatures_K is None:
            return
        if chunk.velocities is not None:
            values = temperatures(chunk, self._limits.n_degrees_of_freedom or 3 * chunk.n_atoms)
        else:
            values = np.asarray(chunk.temperatures_K)
        length = self._window_frames(chunk)
        series = np.concatenate([self._tail, values])
        self._tail = series[len(series) - min(len(series), length - 1) :]
        if len(series) < length:
            return
        mean = np.convolve(series, np.full(length, 1.0 / length), mode="valid")
        low, high = (factor * self._target for factor in self._limits.temperature_range)
        bad = (mean < low) | (mean > high)
        if bad.any():
            window = int(np.argmax(bad))
            frame = max(0, window + length - 1 - (len(series) - len(values)))
            yield (
                "temperature",
                frame,
                f"mean of {length} frames is {mean[window]:.4g} K, allowed {low:g} to {high:g} K",
            )

    def _window_frames(self, chunk: Trajectory) -> int:
        if chunk.times_fs is None or len(chunk) < 2:
            return 1
        spacing = float(np.median(np.diff(chunk.times_fs)))
        return max(1, int(np.ceil(self._limits.temperature_window_fs / spacing))) if spacing > 0 else 1


class _Geometry:
    """Close contacts, fragments and atoms that lost all bonds, against the first frame."""

    def __init__(self, start: Trajectory, contact_scale: float) -> None:
        radii = covalent_radii[start.numbers]
        first, second = np.triu_indices(start.n_atoms, 1)
        self._pairs = np.stack([first, second], axis=1)
        self._bond_limit = radii[first] + radii[second] + BOND_TOLERANCE_A
        self._bonded = self._distances(start)[0] < self._bond_limit
        self._contact_limit = np.where(self._bonded, 0.0, contact_scale * (radii[first] + radii[second]))
        self._fragments = self._count_fragments(self._bonded, start.n_atoms)
        self._had_bond = self._bond_counts(self._bonded, start.n_atoms) > 0

    def __call__(self, chunk: Trajectory) -> Iterator[Finding]:
        done: set[str] = set()
        rows = max(1, PAIR_BATCH // max(1, len(self._pairs)))
        for start in range(0, len(chunk), rows):
            part = chunk.read(start, min(start + rows, len(chunk)))
            for name, frame, reason in self._judge(part):
                if name not in done:
                    done.add(name)
                    yield name, start + frame, reason

    def _judge(self, part: Trajectory) -> Iterator[Finding]:
        distances = self._distances(part)
        close = distances < self._contact_limit
        if close.any():
            frame = int(np.argmax(close.any(axis=1)))
            k = int(np.argmin(np.where(close[frame], distances[frame], np.inf)))
            i, j = self._pairs[k].tolist()
            yield "contact", frame, f"atoms {i} and {j} are {distances[frame, k]:.3f} Å apart without being bonded"
        bonded = distances < self._bond_limit
        for frame in np.flatnonzero((bonded != self._bonded).any(axis=1)).tolist():
            count = self._count_fragments(bonded[frame], part.n_atoms)
            if count != self._fragments:
                yield "fragments", frame, f"{count} fragments instead of {self._fragments}"
            lonely = self._had_bond & (self._bond_counts(bonded[frame], part.n_atoms) == 0)
            if lonely.any():
                yield "free atom", frame, f"atom {int(np.argmax(lonely))} has lost all its bonds"

    def _distances(self, part: Trajectory) -> Float[np.ndarray, "frames pairs"]:
        vectors = pair_vectors(part, self._pairs)
        return np.asarray(np.sqrt(np.einsum("fpk,fpk->fp", vectors, vectors)))

    def _count_fragments(self, bonded: Bool[np.ndarray, " pairs"], n_atoms: int) -> int:
        return int(molecules(n_atoms, self._pairs[bonded]).max()) + 1

    def _bond_counts(self, bonded: Bool[np.ndarray, " pairs"], n_atoms: int) -> Int[np.ndarray, " atoms"]:
        return np.bincount(self._pairs[bonded].ravel(), minlength=n_atoms)


class _EnergyJump:
    """Change of the total energy between frames against the changes seen before."""

    MINIMUM = 20

    def __init__(self, sigmas: float) -> None:
        self._sigmas = sigmas
        self._last: float | None = None
        self._sums = np.zeros(3)

    def __call__(self, chunk: Trajectory) -> Iterator[Finding]:
        if chunk.energies is None or chunk.velocities is None:
            return
        total = chunk.energies + kinetic_energies(chunk)
        head = total[:1] if self._last is None else np.array([self._last])
        change = np.diff(np.concatenate([head, total]))
        count, mean, std = self._running(change)
        bad = (count >= self.MINIMUM) & (np.abs(change - mean) > self._sigmas * std)
        if bad.any():
            frame = int(np.argmax(bad))
            size = abs(change[frame] - mean[frame]) / max(std[frame], 1e-300)
            yield (
                "energy jump",
                frame,
                f"total energy changes by {change[frame]:.4g} eV, {size:.3g} standard deviations",
            )
        self._last = float(total[-1])

    def _running(
        self, change: Float[np.ndarray, " frames"]
    ) -> tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
        """Number, mean and standard deviation of the changes before each one."""
        terms = np.stack([np.ones_like(change), change, change**2])
        sums = self._sums[:, None] + np.cumsum(terms, axis=1)
        before = np.concatenate([self._sums[:, None], sums[:, :-1]], axis=1)
        self._sums = sums[:, -1]
        count = np.maximum(before[0], 1.0)
        mean = before[1] / count
        return before[0], mean, np.sqrt(np.maximum(before[2] / count - mean**2, 0.0))


def _finite_frames(chunk: Trajectory) -> Bool[np.ndarray, " frames"]:
    arrays = [chunk.positions, chunk.velocities, chunk.forces, chunk.energies]
    flags = [np.isfinite(a.reshape(len(chunk), -1)).all(axis=1) for a in arrays if a is not None]
    return np.asarray(np.logical_and.reduce(flags))


def _what_is_not_finite(chunk: Trajectory, frame: int) -> str:
    for name in ("positions", "velocities", "forces", "energies"):
        values = getattr(chunk, name)
        if values is not None and not np.isfinite(values[frame]).all():
            return f"{name} are not finite"
    return "not finite"


def _head(chunk: Trajectory, n_frames: int) -> Trajectory | None:
    return chunk.read(0, n_frames) if n_frames else None


def _violation(detector: str, chunk: Trajectory, index: int, reason: str) -> Violation:
    time_fs = None if chunk.times_fs is None else float(chunk.times_fs[index])
    return Violation(detector, chunk.first_frame + index, time_fs, reason)
