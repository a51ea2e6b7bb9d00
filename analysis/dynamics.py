# ruff: noqa: N802, N815 (units in names)
"""Motion: unwrapping, mean squared displacement, diffusion, velocity autocorrelation and vibrational spectra."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
import scipy.constants
from jaxtyping import Float, Int

from e2former_calc.analysis.constants import A2_PER_PS_IN_1E9_M2_PER_S, FS_PER_PS, LIGHT_CM_PER_FS
from e2former_calc.analysis.correlation import autocorrelation, mean_squared_displacement
from e2former_calc.analysis.histograms import block_bounds
from e2former_calc.analysis.statistics import block_error
from e2former_calc.analysis.topology import nearest_image, plane_spacings
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

CUBIC_MADELUNG: Final = 2.837297


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Diffusion coefficient from the slope of the mean squared displacement.

    Attributes:
        D_A2_per_ps: slope / 6 within the fit window.
        error_A2_per_ps: standard error from blocks of the trajectory; NaN with a single block.
        fit_window_ps: lags that were fitted.
        lags_ps: lags of `msd_A2`.
        msd_A2: mean squared displacement of the whole trajectory.
        exponent: slope of log MSD against log lag in the window; about 1 when motion is diffusive.
        n_blocks: blocks behind the error.
    """

    D_A2_per_ps: float
    error_A2_per_ps: float
    fit_window_ps: tuple[float, float]
    lags_ps: Float[np.ndarray, " lags"]
    msd_A2: Float[np.ndarray, " lags"]
    exponent: float
    n_blocks: int

    @property
    def D_1e9_m2_per_s(self) -> float:
        """Diffusion coefficient in 10^-9 m^2/s."""
        return self.D_A2_per_ps * A2_PER_PS_IN_1E9_M2_PER_S


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Vibrational density of states.

    Attributes:
        wavenumbers_cm1: 1/cm.
        intensities_fs: Fourier transform of the normalised, windowed autocorrelation; its integral over the frequency
            from 0 to infinity is 1/2.
        resolution_cm1: 1 / (c T) of the correlation window T.
        nyquist_cm1: highest wavenumber that the spacing of frames resolves.
    """

    wavenumbers_cm1: Float[np.ndarray, " wavenumbers"]
    intensities_fs: Float[np.ndarray, " wavenumbers"]
    resolution_cm1: float
    nyquist_cm1: float

    def difference(self, reference: Spectrum) -> float:
        """Integral of the absolute difference of both spectra, each of area 1: 0 to 2.

        Raises:
            ValueError: if the wavenumbers differ.
        """
        x = self.wavenumbers_cm1
        if x.shape != reference.wavenumbers_cm1.shape or not np.allclose(x, reference.wavenumbers_cm1):
            raise ValueError("the spectra have different wavenumbers: compute both with the same `wavenumbers_cm1`")
        first, second = (np.maximum(s.intensities_fs, 0.0) for s in (self, reference))
        return float(np.trapezoid(np.abs(first / np.trapezoid(first, x) - second / np.trapezoid(second, x)), x))

    def peaks_cm1(self, *, relative_height: float = 0.05) -> Float[np.ndarray, " peaks"]:
        """Local maxima above a fraction of the highest, refined by a parabola through three points."""
        y, x = self.intensities_fs, self.wavenumbers_cm1
        top = np.flatnonzero((y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:]) & (y[1:-1] > relative_height * y.max())) + 1
        left, middle, right = y[top - 1], y[top], y[top + 1]
        return np.asarray(x[top] + 0.5 * (left - right) / (left - 2 * middle + right) * (x[1] - x[0]))


def unwrap(trajectory: Trajectory) -> Trajectory:
    """Undo wrapping: from frame to frame every atom takes the image nearest to where it was.

    Right as long as no atom moves farther than half the cell between frames. Cells may change in time; the jump is
    then taken with the cell of the later frame.

    Raises:
        TrajectoryError: for a frame that is not finite.
    """
    trajectory.check_finite()
    if not trajectory.is_periodic or len(trajectory) < 2:
        return trajectory
    cells, pbc = trajectory.cells(), np.asarray(trajectory.pbc)
    steps = nearest_image(np.diff(trajectory.positions, axis=0), cells[1:], pbc)
    longest = np.sqrt(np.einsum("fak,fak->fa", steps, steps).max())
    if pbc.all() and longest > 0.5 * plane_spacings(cells).min():
        steps = _shortest(steps, cells[1:])
    positions = np.concatenate([trajectory.positions[:1], steps]).cumsum(axis=0)
    return replace(trajectory, positions=positions)


def remove_center(
    positions: Float[np.ndarray, "frames atoms 3"], weights: Float[np.ndarray, " atoms"] | None = None
) -> Float[np.ndarray, "frames atoms 3"]:
    """Positions relative to their mean in each frame: unweighted, or the centre of mass with masses as weights."""
    share = np.full(positions.shape[1], 1.0) if weights is None else weights
    return np.asarray(positions - np.einsum("a,fak->fk", share / share.sum(), positions)[:, None])


def diffusion(
    trajectory: Trajectory,
    atoms: Int[np.ndarray, " chosen"],
    *,
    fit_window_ps: tuple[float, float],
    n_blocks: int = 5,
    drift_free: bool = True,
) -> Diffusion:
    """Diffusion coefficient of some atoms by a straight line through their mean squared displacement.

    Args:
        trajectory: with times; wrapped positions are unwrapped.
        atoms: indices of the atoms, for instance all oxygen atoms.
        fit_window_ps: shortest and longest lag of the fit; start where the motion has become diffusive.
        n_blocks: blocks whose own fits give the error; fewer are used if blocks were not twice as long as the window.
        drift_free: remove the unweighted mean position of the chosen atoms, as published.

    Raises:
        TrajectoryError: without times, for unequal spacing, or frames that are not finite.
        ValueError: if the window has fewer than two lags or exceeds the trajectory.
    """
    spacing_ps = trajectory.spacing_fs() / FS_PER_PS
    chosen = unwrap(trajectory).positions[:, atoms]
    positions = remove_center(chosen) if drift_free else chosen
    low, high = fit_window_ps
    first, last = round(low / spacing_ps), round(high / spacing_ps)
    if not 0 <= first < last < len(positions):
        raise ValueError(
            f"fit window {low:g} to {high:g} ps does not fit {len(positions)} frames {spacing_ps:g} ps apart: it needs "
            f"two lags or more, and less than {(len(positions) - 1) * spacing_ps:g} ps"
        )
    msd = mean_squared_displacement(positions, max_lag=last)
    lags = np.arange(last + 1) * spacing_ps
    window = slice(first, last + 1)
    blocks = min(n_blocks, len(positions) // (2 * last))
    errors = [float("nan")]
    if blocks > 1:
        parts = [
            mean_squared_displacement(positions[a:b], max_lag=last) for a, b in block_bounds(len(positions), blocks)
        ]
        errors = [_slope(lags[window], part[window]) / 6.0 for part in parts]
    moving = slice(max(first, 1), last + 1)
    return Diffusion(
        D_A2_per_ps=_slope(lags[window], msd[window]) / 6.0,
        error_A2_per_ps=block_error(np.array(errors)).error,
        fit_window_ps=(first * spacing_ps, last * spacing_ps),
        lags_ps=lags,
        msd_A2=msd,
        exponent=_log_slope(lags[moving], msd[moving]),
        n_blocks=max(blocks, 1),
    )


def mdsim_diffusion(positions_A: Float[np.ndarray, "frames atoms 3"]) -> Float[np.ndarray, " lags"]:
    """MSD / (6 lag) as the MDsim code computes it, in Å^2 per frame for lags 1, 2, ... frames - 1.

    The mean position is removed in each frame. Each lag has one origin more than it is divided by, so all values are
    too large and the last one is infinite: only for comparison with published numbers.
    """
    frames = len(positions_A)
    lags = np.arange(1, frames)
    msd = mean_squared_displacement(remove_center(positions_A))[1:]
    with np.errstate(divide="ignore"):
        return np.asarray(msd / (6.0 * lags) * (frames - lags) / (frames - lags - 1.0))


def finite_size_correction_A2_per_ps(temperature_K: float, viscosity_mPa_s: float, box_length_A: float) -> float:
    """What to add to the D of a cubic periodic box for an infinite system (Yeh and Hummer).

    Raises:
        ValueError: if a value is not positive.
    """
    if min(temperature_K, viscosity_mPa_s, box_length_A) <= 0:
        raise ValueError(
            f"temperature {temperature_K} K, viscosity {viscosity_mPa_s} mPa s and box length {box_length_A} Å must be "
            "positive"
        )
    length_m, viscosity = box_length_A * 1e-10, viscosity_mPa_s * 1e-3
    in_m2_per_s = CUBIC_MADELUNG * scipy.constants.k * temperature_K / (6.0 * np.pi * viscosity * length_m)
    return float(in_m2_per_s * 1e9 / A2_PER_PS_IN_1E9_M2_PER_S)


def green_kubo_diffusion(
    trajectory: Trajectory, atoms: Int[np.ndarray, " chosen"], *, max_lag_fs: float
) -> Float[np.ndarray, " lags"]:
    """Running integral of <v(0).v(t)> / 3 in Å^2/ps, which levels off at the diffusion coefficient.

    Raises:
        TrajectoryError: without velocities or times, or for unequal spacing.
        ValueError: if `max_lag_fs` exceeds the trajectory.
    """
    trajectory.require("velocities")
    spacing = trajectory.spacing_fs()
    velocities = np.asarray(trajectory.velocities)[:, atoms].reshape(len(trajectory), -1)
    correlation = autocorrelation(velocities, max_lag=round(max_lag_fs / spacing)) / len(atoms)
    trapezoids = 0.5 * (correlation[1:] + correlation[:-1]) * spacing
    return np.concatenate([[0.0], np.cumsum(trapezoids)]) / 3.0 * FS_PER_PS


def velocity_autocorrelation(
    trajectory: Trajectory, *, max_lag_frames: int, atoms: Int[np.ndarray, " chosen"] | None = None
) -> Float[np.ndarray, " lags"]:
    """Mass-weighted C(t) = sum_i m_i <v_i(s).v_i(s + t)> / the same at t = 0, for lags 0 ... max_lag_frames.

    Raises:
        TrajectoryError: without velocities, for frames that are not finite or unequal spacing.
        ValueError: if there are not enough frames.
    """
    trajectory.require("velocities")
    trajectory.check_finite()
    if trajectory.times_fs is not None:
        trajectory.spacing_fs()
    chosen = np.arange(trajectory.n_atoms) if atoms is None else atoms
    velocities = np.asarray(trajectory.velocities)[:, chosen].reshape(len(trajectory), -1)
    weights = np.repeat(np.asarray(trajectory.masses)[chosen], 3)
    correlation = autocorrelation(velocities, weights=weights, max_lag=max_lag_frames)
    if correlation[0] <= 0:
        raise TrajectoryError(f"{trajectory.source}: all velocities are zero")
    return np.asarray(correlation / correlation[0])


def vibrational_spectrum(
    correlation: Float[np.ndarray, " lags"],
    spacing_fs: float,
    *,
    wavenumbers_cm1: Float[np.ndarray, " wavenumbers"] | None = None,
) -> Spectrum:
    """Density of states: cosine transform of C(t) times the window cos^2(pi t / 2 T), T = lags x spacing.

    Use NVE or very weakly coupled runs: friction gamma broadens every line by about gamma (1/ps is 5.3 1/cm).

    Args:
        correlation: normalised autocorrelation at lags 0, 1, ...
        spacing_fs: time between lags.
        wavenumbers_cm1: where to evaluate; default 0 to the Nyquist limit in steps of a quarter of the resolution.

    Raises:
        ValueError: for fewer than two lags, or wavenumbers above the Nyquist limit.
    """
    lags = len(correlation)
    if lags < 2 or spacing_fs <= 0:
        raise ValueError(f"a spectrum needs two lags and a positive spacing, got {lags} and {spacing_fs} fs")
    window_fs = lags * spacing_fs
    resolution, nyquist = 1.0 / (LIGHT_CM_PER_FS * window_fs), 0.5 / (LIGHT_CM_PER_FS * spacing_fs)
    grid = np.arange(0.0, nyquist, resolution / 4) if wavenumbers_cm1 is None else wavenumbers_cm1
    if grid.max() > nyquist:
        raise ValueError(
            f"wavenumbers up to {grid.max():g} 1/cm need frames closer than {0.5 / (LIGHT_CM_PER_FS * grid.max()):.3g} "
            f"fs, but they are {spacing_fs:g} fs apart"
        )
    time = np.arange(lags) * spacing_fs
    windowed = correlation * np.cos(0.5 * np.pi * time / window_fs) ** 2
    intensities = np.empty(len(grid))
    rows = max(1, 4_000_000 // lags)
    for start in range(0, len(grid), rows):
        phase = 2.0 * np.pi * LIGHT_CM_PER_FS * np.outer(grid[start : start + rows], time)
        intensities[start : start + rows] = spacing_fs * (2.0 * np.cos(phase) @ windowed - windowed[0])
    return Spectrum(grid, intensities, resolution, nyquist)


def verlet_wavenumber_cm1(true_cm1: Float[np.ndarray, "..."], timestep_fs: float) -> Float[np.ndarray, "..."]:
    """Where velocity Verlet with this time step shows a harmonic mode: (2 / dt) asin(omega dt / 2), shifted up.

    Raises:
        ValueError: if the time step is not stable for the mode.
    """
    half = np.pi * LIGHT_CM_PER_FS * np.asarray(true_cm1, dtype=np.float64) * timestep_fs
    if (half >= 1.0).any():
        raise ValueError(f"a time step of {timestep_fs} fs is unstable for {np.max(true_cm1):g} 1/cm: shorten it")
    return np.asarray(np.arcsin(half) / (np.pi * LIGHT_CM_PER_FS * timestep_fs))


def _shortest(
    steps: Float[np.ndarray, "frames atoms 3"], cells: Float[np.ndarray, "frames 3 3"]
) -> Float[np.ndarray, "frames atoms 3"]:
    best, length = steps, np.einsum("fak,fak->fa", steps, steps)
    for shift in product((-1, 0, 1), repeat=3):
        moved = steps + (np.array(shift) @ cells)[:, None]
        squared = np.einsum("fak,fak->fa", moved, moved)
        best = np.where((squared < length)[..., None], moved, best)
        length = np.minimum(squared, length)
    return best


def _slope(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _log_slope(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> float:
    return _slope(np.log(x), np.log(y)) if len(x) > 1 and (y > 0).all() else float("nan")
