# ruff: noqa: N815 (units in names)
"""How long a rollout stays a simulation of the system it started as: bond and RDF criteria.

Two definitions of each: the clean one, and `compat="mdsim"`, which counts like the benchmark code that the field's
tables were made with. Frames that do not exist never count as stable: say with `expected_frames` how many a complete
rollout has, and one that ends early is reported as failed where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int

from e2former_calc.analysis.pair_counts import Pair, RdfSettings
from e2former_calc.analysis.rdf import MDSIM_RDF, radial_distributions, radial_distributions_by_frame
from e2former_calc.analysis.topology import BOND_TOLERANCE_A, bond_lengths, bonds_of_frame, covalent_bonds, slices
from e2former_calc.analysis.trajectory import (
    FrameSource,
    Trajectory,
    TrajectoryError,
    check_same_atoms,
    equal_spacing_fs,
    iterate_chunks,
    iterate_unchecked,
)

BOND_THRESHOLD_A: Final = 0.5
MDSIM_BOX_A: Final = 30.0
WATER_PAIRS: Final[tuple[Pair, ...]] = (("O", "O"), ("H", "H"), ("H", "O"))
WINDOW_CHUNK: Final = 400
"""Windows whose histograms are in memory at a time."""


@dataclass(frozen=True)
class Stability:
    """Verdict of one criterion on one rollout.

    Attributes:
        criterion: name of the criterion.
        frame: first frame that violates it, or that is missing; None if stable to the end.
        reason: what happened there; None if stable to the end.
        stable_ps: time from frame 0 to the last good frame; in compat mode to the violating one, as published.
        stable_frames: intervals between frames in `stable_ps`.
        usable_frames: observables use frames 0 ... usable_frames - 1; in compat mode the first broken one is included.
        n_frames: frames that exist.
        expected_frames: frames that a complete rollout has.
        frame_spacing_fs: time between frames.
    """

    criterion: str
    frame: int | None
    reason: str | None
    stable_ps: float
    stable_frames: int
    usable_frames: int
    n_frames: int
    expected_frames: int
    frame_spacing_fs: float

    @property
    def survived(self) -> bool:
        """Whether the rollout is complete and the criterion was never violated."""
        return self.reason is None


@dataclass(frozen=True, eq=False)
class BondReference:
    """Bonds and their mean lengths in the reference.

    Attributes:
        bonds: pairs i < j.
        lengths_A: mean over the frames of the reference.
        box_A: side of a cube to whose nearest image distances are taken (compat mode); None for the true cell.
    """

    bonds: Int[np.ndarray, "bonds 2"]
    lengths_A: Float[np.ndarray, " bonds"]
    box_A: float | None = None


@dataclass(frozen=True, eq=False)
class BondStability:
    """Bond criterion with its evidence.

    Attributes:
        verdict: frame, time and reason.
        reference: bonds and reference lengths.
        worst_deviation_A: largest deviation of any bond in each frame; NaN in frames that are not finite.
        worst_bond: which bond that is.
    """

    verdict: Stability
    reference: BondReference
    worst_deviation_A: Float[np.ndarray, " frames"]
    worst_bond: Int[np.ndarray, " frames"]


@dataclass(frozen=True)
class RdfCriterion:
    """When a liquid counts as dissolved.

    Attributes:
        pairs: pairs of elements; ("*", "*") for all atoms.
        window_frames: consecutive frames of a window; published: as many as make 1 ps.
        threshold_A: largest MAE of g(r) that is allowed, in Å.
        settings: range, bins and normalisation of g(r); None: `RdfSettings()`, in compat mode `MDSIM_RDF`.
    """

    pairs: tuple[Pair, ...] = WATER_PAIRS
    window_frames: int = 10
    threshold_A: float = 3.0
    settings: RdfSettings | None = None


WATER_CRITERION: Final = RdfCriterion()
LIPS_CRITERION: Final = RdfCriterion(pairs=(("*", "*"),), window_frames=80, threshold_A=1.0)


@dataclass(frozen=True, eq=False)
class RdfStability:
    """RDF criterion with its evidence.

    Attributes:
        verdict: frame, time and reason.
        pairs: pairs of elements.
        starts: first frame of each window.
        errors_A: MAE of g(r) of each window against the reference, per pair.
    """

    verdict: Stability
    pairs: tuple[Pair, ...]
    starts: Int[np.ndarray, " windows"]
    errors_A: Float[np.ndarray, "windows pairs"]


def bond_reference(
    reference: FrameSource, *, rollout: FrameSource | None = None, compat: str | None = None
) -> BondReference:
    """Bonds that a rollout has to keep, with their mean lengths in the reference.

    Clean: the bonds are those of the mean distances of the reference. `compat="mdsim"`: those of the first frame of the
    rollout, and distances are taken to the nearest image in a cube of 30 Å.

    Raises:
        TrajectoryError: for a frame that is not finite.
        ValueError: if compat mode lacks `rollout`, or for an unknown mode.
    """
    _check_compat(compat)
    if compat == "mdsim":
        if rollout is None:
            raise ValueError("compat='mdsim' takes the bonds from the first frame of the rollout: give `rollout`")
        start = rollout.read(0, 1)
        start.check_finite()
        bonds, box = bonds_of_frame(start), MDSIM_BOX_A
    else:
        bonds, box = _mean_bonds(reference), None
    if not len(bonds):
        raise TrajectoryError("there is no bond in this system: use the RDF criterion")
    total = np.zeros(len(bonds))
    for chunk in iterate_chunks(reference):
        total += _lengths(chunk, bonds, box).sum(axis=0)
    return BondReference(bonds, total / len(reference), box)


def bond_stability(
    rollout: FrameSource,
    reference: FrameSource | BondReference,
    *,
    threshold_A: float = BOND_THRESHOLD_A,
    frame_spacing_fs: float | None = None,
    expected_frames: int | None = None,
    compat: str | None = None,
) -> BondStability:
    """A frame is broken when a bond deviates from its mean length in the reference by more than `threshold_A`.

    Frames that are not finite are broken. In compat mode the last frame is not examined, as in the original.

    Args:
        rollout: trajectory or open file; it may contain frames that are not finite.
        reference: trajectory of the same atoms, or what `bond_reference` made of it (once for many replicas).
        threshold_A: 0.5 in the published tables.
        frame_spacing_fs: time between frames; default: from the times of the rollout.
        expected_frames: frames of a complete rollout; default: as many as there are.
        compat: "mdsim" or None.

    Raises:
        TrajectoryError: if the atoms differ, times are missing or unequally spaced.
        ValueError: for an unknown mode.
    """
    _check_compat(compat)
    if isinstance(reference, BondReference):
        known = reference
    else:
        check_same_atoms(np.asarray(reference.numbers), np.asarray(rollout.numbers))
        known = bond_reference(reference, rollout=rollout, compat=compat)
    worst, which = _worst_deviations(rollout, known)
    broken = ~(worst <= threshold_A)
    spacing = _spacing(rollout, frame_spacing_fs)
    expected = len(rollout) if expected_frames is None else expected_frames
    criterion = f"bonds within {threshold_A:g} Å"
    verdict = _verdict(broken, criterion, spacing_fs=spacing, expected=expected, compat=compat)
    if verdict.frame is not None and verdict.frame < len(worst):
        verdict = replace(verdict, reason=_bond_reason(verdict.frame, worst, known.bonds[which[verdict.frame]]))
    return BondStability(verdict, known, worst, which)


def rdf_stability(
    rollout: FrameSource,
    reference: FrameSource,
    criterion: RdfCriterion = WATER_CRITERION,
    *,
    frame_spacing_fs: float | None = None,
    expected_frames: int | None = None,
    compat: str | None = None,
) -> RdfStability:
    """A liquid is dissolved when g(r) of a window of frames differs too much from that of the reference.

    Windows overlap, one for each starting frame; a rollout is stable up to the start of the first bad window, and no
    longer than to its first frame that is not finite. In compat mode windows start at frames 1 ... frames - window - 1
    and g(r) is normalised as in the original.

    Args:
        rollout: trajectory or open file.
        reference: trajectory of the same atoms.
        criterion: `WATER_CRITERION`, `LIPS_CRITERION` or your own.
        frame_spacing_fs: time between frames; default: from the times of the rollout.
        expected_frames: frames of a complete rollout; default: as many as there are.
        compat: "mdsim" or None.

    Raises:
        TrajectoryError: if the atoms differ, for reference frames that are not finite, fewer frames than a window.
        ValueError: for an unknown mode or element.
    """
    _check_compat(compat)
    check_same_atoms(np.asarray(reference.numbers), np.asarray(rollout.numbers))
    offset, window, finite = int(compat == "mdsim"), criterion.window_frames, n_finite_frames(rollout)
    if window < 1 or len(rollout) < window + offset:
        raise TrajectoryError(f"{len(rollout)} frames are too few for windows of {window} frames")
    settings = criterion.settings or (MDSIM_RDF if compat == "mdsim" else RdfSettings())
    reference_g = np.stack(
        [part.g.values() for part in radial_distributions(reference, criterion.pairs, settings, n_blocks=1)]
    )
    starts = np.arange(offset, finite - window + 1 - offset)
    errors = [np.zeros((0, len(criterion.pairs)))]
    for k in range(0, len(starts), WINDOW_CHUNK):
        block = starts[k : k + WINDOW_CHUNK]
        errors.append(_window_errors(rollout, block, window, pairs=criterion.pairs, settings=settings, g=reference_g))
    series = np.concatenate(errors)
    broken = np.arange(len(rollout)) >= finite
    broken[starts[(series > criterion.threshold_A).any(axis=1)] - offset] = True
    verdict = _verdict(
        broken,
        f"g(r) of {window} frames within {criterion.threshold_A:g} Å",
        spacing_fs=_spacing(rollout, frame_spacing_fs),
        expected=len(rollout) if expected_frames is None else expected_frames,
        compat=compat,
    )
    return RdfStability(_with_rdf_reason(verdict, series, criterion, finite), criterion.pairs, starts, series)


def n_finite_frames(source: FrameSource) -> int:
    """Number of frames before the first whose positions are not finite."""
    count = 0
    for chunk in iterate_unchecked(source):
        finite = np.isfinite(chunk.positions).all(axis=(1, 2))
        if not finite.all():
            return count + int(np.argmin(finite))
        count += len(chunk)
    return count


def _with_rdf_reason(
    verdict: Stability, errors_A: Float[np.ndarray, "windows pairs"], criterion: RdfCriterion, finite: int
) -> Stability:
    if verdict.frame is None or verdict.frame >= verdict.n_frames:
        return verdict
    if verdict.frame >= min(finite, len(errors_A)):
        return replace(verdict, reason="positions are not finite")
    worst = errors_A[verdict.frame]
    label = "-".join(criterion.pairs[int(np.argmax(worst))])
    return replace(verdict, reason=f"g(r) of {label} deviates by {worst.max():.2f} Å in the window that starts there")


def _verdict(
    broken: Bool[np.ndarray, " frames"], criterion: str, *, spacing_fs: float, expected: int, compat: str | None
) -> Stability:
    """Place the first violation in time; without one, the end of the trajectory is judged."""
    n = len(broken)
    seen = broken[:-1] if compat == "mdsim" else broken
    frame = int(np.argmax(seen)) if seen.any() else None
    if frame is None:
        stable, usable = n - 1, n
        missing = n < expected
        reason = f"the trajectory ends after {n} of {expected} frames" if missing else None
        frame = n if missing else None
    else:
        stable = frame if compat == "mdsim" else max(frame - 1, 0)
        usable = frame + 1 if compat == "mdsim" else frame
        reason = criterion
    return Stability(
        criterion=criterion,
        frame=frame,
        reason=reason,
        stable_ps=stable * spacing_fs * 1e-3,
        stable_frames=stable,
        usable_frames=usable,
        n_frames=n,
        expected_frames=max(expected, n),
        frame_spacing_fs=spacing_fs,
    )


def _bond_reason(frame: int, worst: Float[np.ndarray, " frames"], bond: Int[np.ndarray, "2"]) -> str:
    if not np.isfinite(worst[frame]):
        return "positions are not finite"
    return f"bond {int(bond[0])}-{int(bond[1])} deviates by {worst[frame]:.3f} Å from its reference length"


def _worst_deviations(
    rollout: FrameSource, reference: BondReference
) -> tuple[Float[np.ndarray, " frames"], Int[np.ndarray, " frames"]]:
    worst, which = [], []
    parts = (part for chunk in iterate_unchecked(rollout) for part in slices(chunk, len(reference.bonds)))
    for part in parts:
        with np.errstate(invalid="ignore", over="ignore"):
            deviation = np.abs(_lengths(part, reference.bonds, reference.box_A) - reference.lengths_A)
        deviation[~np.isfinite(deviation)] = np.inf
        index = np.argmax(deviation, axis=1)
        value = deviation[np.arange(len(index)), index]
        worst.append(np.where(np.isfinite(value), value, np.nan))
        which.append(index)
    return np.concatenate(worst), np.concatenate(which)


def _lengths(
    chunk: Trajectory, bonds: Int[np.ndarray, "bonds 2"], box_A: float | None
) -> Float[np.ndarray, "frames bonds"]:
    if box_A is None:
        return bond_lengths(chunk, bonds)
    delta = np.abs(chunk.positions[:, bonds[:, 0]] - chunk.positions[:, bonds[:, 1]])
    return np.asarray(np.linalg.norm(np.where(delta > 0.5 * box_A, delta - box_A, delta), axis=-1))


def _mean_bonds(reference: FrameSource) -> Int[np.ndarray, "bonds 2"]:
    """Pairs whose mean distance is that of a bond; candidates are the bonds of some frames with a wider rule."""
    frames = np.unique(np.linspace(0, len(reference) - 1, min(8, len(reference))).astype(int))
    found = []
    for frame in frames.tolist():
        single = reference.read(frame, frame + 1)
        single.check_finite()
        cell = None if single.cell is None else single.cells()[0]
        found.append(
            covalent_bonds(single.numbers, single.positions[0], cell=cell, pbc=np.asarray(single.pbc), tolerance_A=1.0)
        )
    candidates = np.unique(np.concatenate(found), axis=0)
    if not len(candidates):
        return candidates
    total = np.zeros(len(candidates))
    for chunk in iterate_chunks(reference):
        total += bond_lengths(chunk, candidates).sum(axis=0)
    return candidates[total / len(reference) < _bond_limits(np.asarray(reference.numbers), candidates)]


def _bond_limits(numbers: Int[np.ndarray, " atoms"], pairs: Int[np.ndarray, "pairs 2"]) -> Float[np.ndarray, " pairs"]:
    return np.asarray(covalent_radii[numbers[pairs]].sum(axis=1) + BOND_TOLERANCE_A)


def _window_errors(
    rollout: FrameSource,
    starts: Int[np.ndarray, " windows"],
    window: int,
    *,
    pairs: Sequence[Pair],
    settings: RdfSettings,
    g: Float[np.ndarray, "pairs bins"],
) -> Float[np.ndarray, "windows pairs"]:
    part = rollout.read(int(starts[0]), int(starts[-1]) + window)
    errors = []
    for k, single in enumerate(radial_distributions_by_frame(part, pairs, settings)):
        above, below = (
            np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
            for values in (single.g.numerators, single.g.denominators)
        )
        values = (above[window:] - above[:-window]) / (below[window:] - below[:-window])[:, None]
        errors.append(settings.r_max_A * np.abs(values - g[k]).mean(axis=1))
    return np.stack(errors, axis=1)


def _spacing(rollout: FrameSource, given_fs: float | None) -> float:
    if given_fs is not None:
        return given_fs
    if len(rollout) < 2:
        return 0.0
    times = [np.asarray(chunk.times_fs) for chunk in iterate_unchecked(rollout) if chunk.times_fs is not None]
    if not times:
        raise TrajectoryError("the rollout has no times: give `frame_spacing_fs`, or store them")
    return equal_spacing_fs(np.concatenate(times), source="the rollout")


def _check_compat(compat: str | None) -> None:
    if compat not in (None, "mdsim"):
        raise ValueError(f"`compat` must be 'mdsim' or None, got {compat!r}")
