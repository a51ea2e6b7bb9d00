"""Vibrational density of states of the rollouts and of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.constants import LIGHT_CM_PER_FS
from e2former_calc.analysis.dynamics import Spectrum, velocity_autocorrelation, vibrational_spectrum
from e2former_calc.analysis.trajectory import Trajectory
from e2former_calc.report.figures import draw_spectra
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Run

TITLE = "Vibrational density of states"

HIGHEST_CM1 = {True: 4000.0, False: 2500.0}
"""Vibrations with and without hydrogen lie below; the spacing of frames must resolve them."""

WINDOW_PS = 1.0
"""Longest lag of the autocorrelation; a wavenumber is resolved to 33 1/cm."""

SHORTEST_PS = 0.2
"""A window shorter than this resolves nothing."""

PIECES = 4
"""A trajectory is cut into so many, for errors."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Velocity autocorrelations of pieces of the trajectories, lags up to the same time."""

    correlations: Float[np.ndarray, "pieces lags"]
    spacing_fs: float

    def spectrum(self, weights: Float[np.ndarray, " pieces"], highest_cm1: float) -> Spectrum:
        grid = np.arange(0.0, highest_cm1 + 1.0, 5.0)
        mean = weights @ self.correlations / weights.sum()
        return vibrational_spectrum(mean, self.spacing_fs, wavenumbers_cm1=grid)


def spectra_section(case: Case) -> Section:
    """Spectra of rollouts and reference, or why there are none."""
    highest = HIGHEST_CM1[bool((np.asarray(case.reference.source.numbers) == 1).any())]
    reason = next((why for run in (*case.usable, case.reference) if (why := _unfit(run, case, highest))), None)
    if not case.usable:
        reason = "No frame of any rollout is stable."
    if reason is not None:
        return Section("spectra", TITLE, skipped=reason)
    lengths = [_longest_part(run)[1] for run in (*case.usable, case.reference)]
    window_ps = min(WINDOW_PS, min(lengths) / PIECES / 2)
    if window_ps < SHORTEST_PS:
        shortest = 2 * PIECES * SHORTEST_PS
        return Section("spectra", TITLE, skipped=f"{min(lengths):.3g} ps are too short, needed are {shortest:g} ps.")
    rollouts, reference = _sample(case.usable, window_ps), _sample((case.reference,), window_ps)
    return _section(rollouts, reference, highest, window_ps)


def _section(rollouts: _Sample, reference: _Sample, highest: float, window_ps: float) -> Section:
    n, m = len(rollouts.correlations), len(reference.correlations)
    found, known = rollouts.spectrum(np.ones(n), highest), reference.spectrum(np.ones(m), highest)
    first = (np.arange(m) < m // 2).astype(np.float64)
    noise = reference.spectrum(first, highest).difference(reference.spectrum(1.0 - first, highest))
    left_out = np.array([rollouts.spectrum(row, highest).difference(known) for row in 1.0 - np.eye(n)])
    resolution = 1.0 / (LIGHT_CM_PER_FS * 1e3 * window_ps)
    quantity = Quantity(
        "spectrum difference", found.difference(known), "1", finite(float(np.sqrt((n - 1) * left_out.var()))),
        noise_floor=noise, note="integral of |Δ| of spectra of area 1, 0 to 2; noise: the halves of the reference",
    )  # fmt: skip
    table = Table(
        "spectra",
        {
            "wavenumber [1/cm]": known.wavenumbers_cm1.tolist(),
            "rollouts [fs]": found.intensities_fs.tolist(),
            "reference [fs]": known.intensities_fs.tolist(),
        },
    )
    drawing = Drawing(
        "spectra",
        f"Vibrational density of states from the velocities, area 1, resolution {resolution:.0f} 1/cm.",
        lambda: draw_spectra(found, known),
    )
    remarks = (
        "A thermostat with friction broadens every line by about 5.3 1/cm for each 1/ps, and the integrator shifts "
        "lines up (10 1/cm at 3000 1/cm with steps of 0.5 fs): compare runs of the same protocol.",
    )
    return Section("spectra", TITLE, (quantity,), (table,), (drawing,), remarks)


def _unfit(run: Run, case: Case, highest_cm1: float) -> str | None:
    """Why a trajectory gives no spectrum; None if it does."""
    who = "The reference" if run is case.reference else f"The rollout {run.name}"
    if run.kinetic_eV is None:
        return f"{who} stores no velocities."
    if run.times_ps is None or run.usable < 2:
        return f"{who} has no times."
    spacing = run.spacing_fs or float(1e3 * np.median(np.diff(run.times_ps)))
    nyquist = 0.5 / (LIGHT_CM_PER_FS * spacing) if spacing > 0 else 0.0
    if nyquist < highest_cm1:
        needed = 0.5 / (LIGHT_CM_PER_FS * highest_cm1)
        return (
            f"{who} has frames {spacing:.4g} fs apart, which resolve vibrations up to {nyquist:.0f} 1/cm; "
            f"for {highest_cm1:g} 1/cm they must not be more than {needed:.1f} fs apart."
        )
    return None


def _longest_part(run: Run) -> tuple[Trajectory, float]:
    part = max(run.good.read(0, run.usable).continuous_parts(), key=len)
    return part, (len(part) - 1) * part.spacing_fs() * 1e-3


def _sample(runs: tuple[Run, ...], window_ps: float) -> _Sample:
    """Correlations of pieces of every run, at the lags of the widest spacing."""
    spacing = max(_longest_part(run)[0].spacing_fs() for run in runs)
    lags = round(1e3 * window_ps / spacing)
    rows = []
    for run in runs:
        part, _ = _longest_part(run)
        step = max(1, round(spacing / part.spacing_fs()))
        kept = part.every(step)
        bounds = np.linspace(0, len(kept), PIECES + 1).astype(int)
        rows += [
            velocity_autocorrelation(kept.read(int(a), int(b)), max_lag_frames=min(lags, int(b - a) - 1))
            for a, b in pairwise(bounds)
        ]
    shortest = min(len(row) for row in rows)
    return _Sample(np.stack([row[:shortest] for row in rows]), spacing)
