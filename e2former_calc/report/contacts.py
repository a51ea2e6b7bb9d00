"""Bonds that the reference does not have: of a reaction that breaks none, or of atoms in another order."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from jaxtyping import Int

from e2former_calc.analysis.collapse import PAIR_BATCH, Violation
from e2former_calc.analysis.stability import BondReference
from e2former_calc.analysis.topology import bond_lengths, bonds_of_frame
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError, iterate_unchecked
from e2former_calc.report.sources import Run

NEW_BOND_SCALE = 1.25
"""Times the sum of covalent radii: O-H 1.21 Å, C-C 1.90 Å, well below what atoms two bonds apart come to."""

LEAST_EXCHANGED = 2
"""Bonds between other atoms that are no accident; a single one may be a proton on its way."""


def check_order(run: Run, known: BondReference) -> None:
    """Refuse a rollout that begins with the bonds of the reference between other atoms of the same elements.

    Raises:
        TrajectoryError: naming the rollout and such a bond.
    """
    start = run.source.read(0, 1)
    if not np.isfinite(start.positions).all():
        return
    wanted, found = ({tuple(bond) for bond in bonds.tolist()} for bonds in (known.bonds, bonds_of_frame(start)))
    missing = sorted(wanted - found)
    same_kinds = _kinds(start, wanted) == _kinds(start, found)
    if same_kinds and len(missing) >= LEAST_EXCHANGED:
        i, j = missing[0]
        raise TrajectoryError(
            f"the rollout {run.name} has as many bonds as the reference, but between other atoms ({i}-{j} is a bond of "
            "the reference only): its atoms are in another order than those of the reference, sort them"
        )


def _kinds(start: Trajectory, bonds: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(int(start.numbers[atom]) for atom in bond)) for bond in bonds)


def first_new_bond(source: FrameSource, bonds: Int[np.ndarray, "bonds 2"]) -> Violation | None:
    """The first frame in which two atoms without a bond in `bonds` are as close as bonded ones; None if there is none.

    Frames from the first one that is not finite on are not examined.
    """
    numbers = np.asarray(source.numbers)
    free = np.ones((len(numbers), len(numbers)), dtype=bool)
    free[bonds[:, 0], bonds[:, 1]] = free[bonds[:, 1], bonds[:, 0]] = False
    pairs = np.argwhere(np.triu(free, 1))
    if not len(pairs):
        return None
    rows, seen = max(1, PAIR_BATCH // len(pairs)), 0
    for chunk in iterate_unchecked(source):
        for start in range(0, len(chunk), rows):
            part = chunk.read(start, min(start + rows, len(chunk)))
            finite = np.isfinite(part.positions).all(axis=(1, 2))
            end = len(part) if finite.all() else int(np.argmin(finite))
            found = _first(part.read(0, end), pairs, seen + start) if end else None
            if found is not None or end < len(part):
                return found
        seen += len(chunk)
    return None


def _first(part: Trajectory, pairs: Int[np.ndarray, "pairs 2"], offset: int) -> Violation | None:
    with np.errstate(over="ignore"):
        distances = bond_lengths(part, pairs)
    close = distances < NEW_BOND_SCALE * covalent_radii[part.numbers[pairs]].sum(axis=1)
    if not close.any():
        return None
    frame = int(np.argmax(close.any(axis=1)))
    k = int(np.argmin(np.where(close[frame], distances[frame], np.inf)))
    i, j = pairs[k].tolist()
    names = f"{chemical_symbols[part.numbers[i]]} {i} and {chemical_symbols[part.numbers[j]]} {j}"
    time = None if part.times_fs is None else float(part.times_fs[frame])
    return Violation("new bond", offset + frame, time, f"atoms {names} are {distances[frame, k]:.3f} Å apart")
