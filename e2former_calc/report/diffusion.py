"""Diffusion in periodic systems: mean squared displacements and the coefficients from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from e2former_calc.analysis.dynamics import Diffusion, diffusion, finite_size_correction_A2_per_ps
from e2former_calc.analysis.statistics import Estimate, block_error
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError, read_atoms
from e2former_calc.report.curves import NO_FRAME
from e2former_calc.report.motion_figures import Line, draw_displacements
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Run

TITLE = "Diffusion"

LONGEST_LAG = 0.1
"""Of the shortest trajectory: longer lags have too few independent origins, and blocks for errors too few frames."""

FIT_START = 0.4
"""Of the longest lag: the fit begins where motion is more likely to be diffusive."""

LEAST_LAG_FRAMES = 5
"""Frames of the longest lag, at least."""

DIFFUSIVE = (0.85, 1.15)
"""Exponents of the mean squared displacement that count as diffusive."""


@dataclass(frozen=True, eq=False)
class _Motion:
    """Fits for one element.

    Attributes:
        symbol: of the element.
        rollouts: one fit for each rollout.
        reference: of the reference.
    """

    symbol: str
    rollouts: tuple[Diffusion, ...]
    reference: Diffusion

    def mean(self) -> Estimate:
        """Mean over the rollouts; the error from their blocks, or from the spread of several short ones."""
        values = np.array([fit.D_A2_per_ps for fit in self.rollouts])
        errors = np.array([fit.error_A2_per_ps for fit in self.rollouts])
        if np.isfinite(errors).all():
            return Estimate(float(values.mean()), float(np.sqrt((errors**2).sum())) / len(values), float(len(values)))
        return block_error(values)


def diffusion_section(case: Case) -> Section:
    """Diffusion coefficients of the elements of a periodic system, heavy elements only where hydrogen is bonded."""
    if not case.reference.pbc[1]:
        return Section("diffusion", TITLE, skipped="A single molecule without a cell has no diffusion to compare.")
    if not case.usable:
        return Section("diffusion", TITLE, skipped=NO_FRAME)
    atoms = _elements(np.asarray(case.reference.source.numbers))
    everything = np.concatenate(list(atoms.values()))
    parts = [_longest_part(run, everything) for run in (*case.usable, case.reference)]
    lengths = [(len(part) - 1) * part.spacing_fs() * 1e-3 for part in parts]
    longest_ps, spacing_ps = LONGEST_LAG * min(lengths), max(part.spacing_fs() for part in parts) * 1e-3
    if longest_ps < LEAST_LAG_FRAMES * spacing_ps:
        needed = LEAST_LAG_FRAMES * spacing_ps / LONGEST_LAG
        reason = f"The shortest trajectory without a gap is {min(lengths):.3g} ps long; {needed:.3g} ps are needed."
        return Section("diffusion", TITLE, skipped=reason)
    window = (FIT_START * longest_ps, longest_ps)
    motions = []
    start = 0
    for symbol, mine in atoms.items():
        chosen = np.arange(start, start + len(mine))
        fits = [diffusion(part, chosen, fit_window_ps=window) for part in parts]
        motions.append(_Motion(symbol, tuple(fits[:-1]), fits[-1]))
        start += len(mine)
    return _section(motions, case, window)


def _elements(numbers: Int[np.ndarray, " atoms"]) -> Mapping[str, Int[np.ndarray, " chosen"]]:
    kinds = np.unique(numbers)[::-1]
    heavy = kinds[kinds > 1]
    chosen = heavy if len(heavy) else kinds
    return {chemical_symbols[z]: np.flatnonzero(numbers == z) for z in chosen}


def _longest_part(run: Run, atoms: Int[np.ndarray, " chosen"]) -> Trajectory:
    """The longest stretch of equally spaced frames.

    Raises:
        TrajectoryError: without times.
    """
    if run.times_ps is None:
        who = "the reference" if run.name == "reference" else f"the rollout {run.name}"
        raise TrajectoryError(f"{who} has no times, so nothing is known of its motion")
    trajectory = replace(read_atoms(run.source, atoms, stop=run.usable), times_fs=1e3 * run.times_ps[: run.usable])
    parts = trajectory.continuous_parts()
    if not parts:
        raise TrajectoryError(f"{run.name} has no two frames in a row")
    return max(parts, key=len)


def _section(motions: list[_Motion], case: Case, window: tuple[float, float]) -> Section:
    quantities = [_quantity(motion, window) for motion in motions]
    drawing = Drawing(
        "displacements",
        f"Mean squared displacement against the lag, centre of the element at rest; the grey area is the window of the "
        f"fit, {window[0]:.3g} to {window[1]:.3g} ps. A straight line is diffusion.",
        lambda: draw_displacements(
            {m.symbol: ([Line(f.lags_ps, f.msd_A2) for f in m.rollouts], Line(m.reference.lags_ps, m.reference.msd_A2))
             for m in motions},
            window_ps=window,
        ),
    )  # fmt: skip
    return Section(
        "diffusion",
        TITLE,
        tuple(quantities),
        (_table(motions, case), *_msd_tables(motions, case)),
        (drawing,),
        _remarks(motions, case),
    )


def _quantity(motion: _Motion, window: tuple[float, float]) -> Quantity:
    mean, known = motion.mean(), motion.reference
    note = f"slope / 6 between {window[0]:.3g} and {window[1]:.3g} ps; error from blocks of the trajectories; not "
    note += "corrected for the size of the cell"
    return Quantity(
        f"diffusion coefficient of {motion.symbol}",
        mean.value,
        "Å²/ps",
        finite(mean.error),
        known.D_A2_per_ps,
        finite(known.error_A2_per_ps),
        note=note,
    )


def _table(motions: list[_Motion], case: Case) -> Table:
    columns: dict[str, list[object]] = {
        name: []
        for name in ("element", "trajectory", "D [Å²/ps]", "error [Å²/ps]", "D [10⁻⁹ m²/s]", "exponent", "blocks")
    }
    for motion in motions:
        names = [run.name for run in case.usable] + ["reference"]
        for name, fit in zip(names, (*motion.rollouts, motion.reference), strict=True):
            row = (
                motion.symbol, name, fit.D_A2_per_ps, finite(fit.error_A2_per_ps), fit.D_1e9_m2_per_s,
                finite(fit.exponent), fit.n_blocks,
            )  # fmt: skip
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    caption = "Each trajectory; the exponent is the slope of log MSD against log lag in the window, 1 for diffusion."
    return Table("diffusion", columns, shown=True, caption=caption)


def _msd_tables(motions: list[_Motion], case: Case) -> list[Table]:
    names = [run.name for run in case.usable] + ["reference"]
    return [
        Table(
            f"displacements-{motion.symbol}",
            {
                "trajectory": [
                    name for name, fit in zip(names, (*motion.rollouts, motion.reference), strict=True)
                    for _ in fit.lags_ps
                ],
                "lag [ps]": _joined([fit.lags_ps for fit in (*motion.rollouts, motion.reference)]),
                "MSD [Å²]": _joined([fit.msd_A2 for fit in (*motion.rollouts, motion.reference)]),
            },
        )
        for motion in motions
    ]  # fmt: skip


def _joined(parts: list[Float[np.ndarray, " lags"]]) -> list[float]:
    values: list[float] = np.concatenate(parts).tolist()
    return values


def _remarks(motions: list[_Motion], case: Case) -> tuple[str, ...]:
    remarks = []
    odd = [
        f"{motion.symbol} ({fit.exponent:.2f})"
        for motion in motions
        for fit in (motion.reference, *motion.rollouts)
        if not DIFFUSIVE[0] <= fit.exponent <= DIFFUSIVE[1]
    ]
    if odd:
        remarks.append(
            f"Not diffusive within the window, so that the numbers depend on it: exponents of {', '.join(odd)}; longer "
            "trajectories would tell."
        )
    correction = _finite_size(case)
    if correction is not None:
        remarks.append(correction)
    return tuple(remarks)


def _finite_size(case: Case) -> str | None:
    """What the finite cell costs, for a viscosity that the reader has to know."""
    if case.temperature_K is None:
        return "The correction for the size of the cell needs the temperature."
    cells = case.reference.source.read(0, 1).cells()[0]
    lengths = np.linalg.norm(cells, axis=1)
    if not np.allclose(cells @ cells.T, np.eye(3) * lengths[0] ** 2, rtol=1e-3, atol=1e-3 * lengths[0] ** 2):
        return "The correction of D for the size of the cell (Yeh and Hummer) is known for cubes; this cell is none."
    value = finite_size_correction_A2_per_ps(case.temperature_K, 1.0, float(lengths[0]))
    return (
        f"Correction for the size of the cube (Yeh, Hummer): add {value:.3g} Å²/ps divided by the viscosity in mPa s, "
        f"at {case.temperature_K:g} K. It is the same for rollouts and reference as far as their viscosities agree."
    )
