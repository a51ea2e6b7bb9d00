"""Figures of curves, traces and maps; every axis has its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2former_calc.analysis.dynamics import Spectrum
from e2former_calc.analysis.free_energy import RamachandranMap
from e2former_calc.analysis.statistics import DistributionDistance
from e2former_calc.analysis.survival import SurvivalCurve
from e2former_calc.report.style import (
    BAND,
    BLACK,
    BLUE,
    COLORS,
    GREY,
    ORANGE,
    canvas,
    color_of,
    decades,
    label_of,
    legend_above,
    legend_inside,
    running_mean,
    thinned,
)

Values = Float[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class Trace:
    """A series of one rollout over time."""

    name: str
    times_ps: Values
    values: Values


@dataclass(frozen=True, eq=False)
class Curve:
    """A distribution of the rollouts and of the reference.

    Attributes:
        label: which.
        x: centres of bins.
        rollout: of the rollouts.
        reference: of the reference.
        noise: half width of the 95 % band of rollout minus reference, if nothing but sampling differed.
        limits: ends of the x axis; None: from 0 as far as there is anything to see.
    """

    label: str
    x: Values
    rollout: Values
    reference: Values
    noise: Values
    limits: tuple[float, float] | None = None


def draw_bond_deviations(
    traces: Sequence[Trace], failures: Sequence[int | None], *, threshold_A: float, reference_max_A: float
) -> Figure:
    """Worst deviation of any bond, with the threshold and what the reference reaches.

    Args:
        traces: one for each rollout, in Å.
        failures: frame in which it fails, for whatever reason, or None.
        threshold_A: of the bond criterion.
        reference_max_A: largest deviation in the reference.
    """
    figure, ((axes,),) = canvas()
    axes.axhspan(0.0, reference_max_A, color=BAND, zorder=0, label="range of the reference")
    axes.axhline(threshold_A, color=BLACK, linestyle="--", linewidth=1.0, label=f"threshold {threshold_A:g} Å")
    top = 1.25 * max(threshold_A, reference_max_A)
    highest = max((float(np.nanmax(t.values, initial=0.0)) for t in traces), default=0.0)
    _traces(axes, traces)
    limit = min(max(1.1 * highest, top), 3 * top)
    _failures(axes, traces, failures, limit)
    axes.set(xlabel="time [ps]", ylabel="largest bond deviation [Å]", ylim=(0.0, limit))
    legend_above(figure, axes)
    return figure


def draw_survival(curve: SurvivalCurve) -> Figure:
    """Kaplan-Meier estimate with its band."""
    figure, ((axes,),) = canvas()
    times, *steps = survival_steps(curve)
    axes.fill_between(
        times, steps[1], steps[2], step="post", color=BAND, label=f"{100 * curve.confidence:g} % confidence"
    )
    axes.step(times, steps[0], where="post", color=BLUE, label=f"Kaplan-Meier, {curve.n_replicas} rollouts")
    axes.set(xlabel="time [ps]", ylabel="probability of being stable", ylim=(0.0, 1.05), xlim=(0.0, curve.last_ps or 1))
    legend_above(figure, axes)
    return figure


def draw_windows(times_ps: Mapping[str, Values], errors_A: Mapping[str, Values], *, threshold_A: float) -> Figure:
    """Deviation of g(r) of short windows along each rollout, worst pair."""
    figure, ((axes,),) = canvas()
    axes.axhline(threshold_A, color=BLACK, linestyle="--", linewidth=1.0, label=f"threshold {threshold_A:g} Å")
    _traces(axes, [Trace(name, times_ps[name], errors_A[name]) for name in errors_A])
    axes.set(xlabel="start of the window [ps]", ylabel="deviation of g(r) [Å]")
    axes.set_ylim(bottom=0.0)
    legend_above(figure, axes)
    return figure


def draw_curve(curve: Curve, *, x_label: str, y_label: str, difference_label: str) -> Figure:
    """A distribution above its difference to the reference, both with the noise band."""
    figure, axes = canvas(2, 1, height_in=4.4, sharex=True, ratios=[2, 1])
    top, bottom = axes[:, 0]
    top.plot(curve.x, curve.reference, color=BLACK, linewidth=1.2, label="reference")
    top.plot(curve.x, curve.rollout, color=ORANGE, linewidth=1.2, linestyle="--", label="rollout")
    top.set(ylabel=y_label)
    top.set_ylim(bottom=0.0)
    bottom.fill_between(curve.x, -curve.noise, curve.noise, color=BAND, linewidth=0, label="95 % noise band")
    bottom.plot(curve.x, curve.rollout - curve.reference, color=ORANGE, linewidth=0.9, label="rollout − reference")
    bottom.axhline(0.0, color=BLACK, linewidth=0.6)
    bottom.set(xlabel=x_label, ylabel=difference_label, xlim=_extent([curve]))
    legend_above(figure, top)
    low, high = bottom.get_ylim()
    bottom.set_ylim(low, high + 0.45 * (high - low))
    legend_inside(bottom, loc="upper right", ncols=2)
    return figure


def draw_pairs(curves: Sequence[Curve], *, x_label: str, y_label: str) -> Figure:
    """Small multiples, one for each pair of elements."""
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure, axes = canvas(rows, columns, height_in=0.6 + 1.75 * rows, sharex=True)
    extent = _extent(curves)
    for one, curve in zip(axes.flat, curves, strict=False):
        center = 0.5 * (curve.rollout + curve.reference)
        one.fill_between(curve.x, center - 0.5 * curve.noise, center + 0.5 * curve.noise, color=BAND, linewidth=0)
        one.plot(curve.x, curve.reference, color=BLACK, linewidth=1.0, label="reference")
        one.plot(curve.x, curve.rollout, color=ORANGE, linewidth=1.0, linestyle="--", label="rollout")
        one.set_title(curve.label, fontsize="medium", loc="right")
        one.set(
            xlim=extent,
            ylim=(0.0, 1.1 * float(max(curve.reference.max(), curve.rollout.max(), 1e-9))),
        )
        if curve.limits is not None:
            one.set_xticks(np.linspace(*curve.limits, 3))
    for one in axes.flat[len(curves) :]:
        one.set_visible(False)
    for one in axes.flat[max(0, len(curves) - columns) : len(curves)]:
        one.tick_params(labelbottom=True)
    figure.supxlabel(x_label, fontsize="medium")
    figure.supylabel(y_label, fontsize="medium")
    legend_above(figure, axes.flat[0])
    return figure


def draw_energy_and_temperature(
    energies: Sequence[Trace],
    temperatures: Sequence[Trace],
    *,
    energy_band: tuple[float, float] | None,
    temperature_band: tuple[float, float] | None,
    energy_label: str,
) -> Figure:
    """Potential energy and temperature over time, with mean and spread of the reference."""
    panels = [
        (traces, band, label)
        for traces, band, label in (
            (energies, energy_band, energy_label),
            (temperatures, temperature_band, "temperature [K]"),
        )
        if traces
    ]
    figure, axes = canvas(len(panels), 1, height_in=0.6 + 2.1 * len(panels), sharex=True)
    for one, (traces, band, label) in zip(axes[:, 0], panels, strict=True):
        if band is not None:
            one.axhspan(
                band[0] - 2 * band[1], band[0] + 2 * band[1], color=BAND, zorder=0, label="reference, mean ± 2 σ"
            )
        _smoothed(one, traces)
        one.set(ylabel=label)
    axes[-1, 0].set(xlabel="time [ps]")
    legend_above(figure, axes[0, 0])
    return figure


def draw_total_energy(traces: Sequence[Trace], slopes: Sequence[float]) -> Figure:
    """Total energy of NVE runs relative to its start, with the fitted drift; slopes in meV/atom/ps."""
    figure, ((axes,),) = canvas()
    _traces(axes, traces)
    for position, (trace, slope) in enumerate(zip(traces, slopes, strict=True)):
        line = slope * (trace.times_ps - trace.times_ps.mean()) + trace.values.mean()
        label = "linear fit" if position == 0 else None
        axes.plot(trace.times_ps[[0, -1]], line[[0, -1]], color=BLACK, linewidth=1.2, linestyle="--", label=label)
    axes.set(xlabel="time [ps]", ylabel="total energy − start [meV/atom]")
    legend_above(figure, axes)
    return figure


def draw_spectra(rollout: Spectrum, reference: Spectrum) -> Figure:
    """Vibrational densities of states, each of area 1."""
    figure, ((axes,),) = canvas()
    for spectrum, color, style, label in ((reference, BLACK, "-", "reference"), (rollout, ORANGE, "--", "rollout")):
        positive = np.maximum(spectrum.intensities_fs, 0.0)
        area = np.trapezoid(positive, spectrum.wavenumbers_cm1)
        axes.plot(
            spectrum.wavenumbers_cm1, 1e3 * positive / area, color=color, linestyle=style, linewidth=1.1, label=label
        )
    axes.set(xlabel="wavenumber [cm$^{-1}$]", ylabel="density of states [10$^{-3}$ cm]")
    axes.set(xlim=(0.0, float(reference.wavenumbers_cm1[-1])))
    axes.set_ylim(bottom=0.0)
    legend_above(figure, axes)
    return figure


def draw_ramachandran(reference: Sequence[RamachandranMap], rollout: Sequence[RamachandranMap]) -> Figure:
    """Maps of each residue: the reference above the rollouts, one scale of colours."""
    count = len(reference)
    figure, axes = canvas(2, count, height_in=1.0 + 2 * 6.2 / max(count, 2))
    peak = max(float(part.probability.max()) for part in (*reference, *rollout))
    for row, (maps, name) in enumerate(((reference, "reference"), (rollout, "rollout"))):
        for column, part in enumerate(maps):
            one, edges = axes[row, column], part.edges_degrees
            share = np.ma.masked_equal(100.0 * part.probability, 0.0)
            mesh = one.pcolormesh(edges, edges, share, cmap="cividis_r", vmin=0.0, vmax=100.0 * peak, rasterized=True)
            one.set(aspect="equal", xticks=(-180, 0, 180), yticks=(-180, 0, 180))
            one.set_title(f"residue {column + 1}, {name}", fontsize="small")
            one.tick_params(labelsize="small")
            one.set(xlabel="φ [°]" if row else "", ylabel="" if column else "ψ [°]")
    figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.6, aspect=40, label="share of frames per bin [%]")
    return figure


def draw_sizes(traces: Sequence[Trace], reference: Values) -> Figure:
    """Radius of gyration: traces, and its distribution beside that of the reference."""
    figure, axes = canvas(1, 2, height_in=3.2)
    left, right = axes[0]
    mean, spread = float(reference.mean()), float(reference.std())
    left.axhspan(mean - 2 * spread, mean + 2 * spread, color=BAND, zorder=0, label="reference, mean ± 2 σ")
    _traces(left, traces)
    left.set(xlabel="time [ps]", ylabel="radius of gyration [Å]")
    pooled = np.concatenate([trace.values for trace in traces])
    edges = np.histogram_bin_edges(np.concatenate([reference, pooled]), bins=40)
    for values, color, style, label in ((reference, BLACK, "-", "reference"), (pooled, ORANGE, "--", "rollout")):
        density, _ = np.histogram(values, edges, density=True)
        right.stairs(density, edges, color=color, linestyle=style, linewidth=1.2, label=label)
    right.set(xlabel="radius of gyration [Å]", ylabel="density [1/Å]")
    legend_above(figure, left, right)
    return figure


def draw_coordinates(groups: Mapping[str, tuple[Sequence[DistributionDistance], str]]) -> Figure:
    """Distance of every bond, angle and dihedral to the reference, against the one that sampling alone makes."""
    figure, axes = canvas(1, len(groups), height_in=2.4)
    for one, (color, (name, (distances, unit))) in zip(axes[0], zip(COLORS, groups.items(), strict=False), strict=True):
        noise = np.array([distance.noise_wasserstein for distance in distances])
        found = np.array([distance.wasserstein for distance in distances])
        limits = decades(one, np.concatenate([noise, found]))
        one.fill_between(limits, [limits[0]] * 2, limits, color=BAND, linewidth=0)
        one.plot(limits, limits, color=GREY, linewidth=0.8)
        one.plot(noise, found, "o", color=color, markersize=3.5, alpha=0.8, clip_on=False)
        one.set(xlabel=f"noise floor [{unit}]", ylabel=f"rollout [{unit}]")
        one.set_title(f"{len(distances)} {name}", fontsize="medium")
    return figure


def draw_truth(rollouts: Sequence[Trace], reference: Trace | None) -> Figure:
    """Force error along the rollouts against the ground truth."""
    figure, ((axes,),) = canvas()
    for position, trace in enumerate(rollouts):
        label = label_of(trace.name, position, len(rollouts))
        axes.plot(
            trace.times_ps, trace.values, "o-", color=color_of(position), markersize=3, linewidth=0.8, label=label
        )
    if reference is not None:
        axes.axhline(float(reference.values.mean()), color=BLACK, linestyle="--", linewidth=1.0, label=reference.name)
    axes.set(xlabel="time [ps]", ylabel="force MAE [meV/Å]")
    axes.set_ylim(bottom=0.0)
    legend_above(figure, axes)
    return figure


def _extent(curves: Sequence[Curve]) -> tuple[float, float]:
    """The range in which there is anything to see."""
    if curves[0].limits is not None:
        return curves[0].limits
    last = max(int(np.flatnonzero(curve.reference + curve.rollout).max(initial=0)) for curve in curves)
    end = float(curves[0].x[-1])
    return 0.0, min(1.05 * float(curves[0].x[last]), end) or end


def survival_steps(curve: SurvivalCurve) -> tuple[Values, Values, Values, Values]:
    """Times, estimate, and both ends of its band, from 0 to the end of the observation.

    Before the first failure, where Greenwood's formula has no width, the lower end is the probability of surviving
    with which all rollouts survive in one of 20 cases.
    """
    unseen = (1.0 - curve.confidence) ** (1.0 / curve.n_replicas)
    times = np.concatenate([[0.0], curve.times_ps, [curve.last_ps]])
    parts = ((1.0, curve.survival), (unseen, curve.lower), (1.0, curve.upper))
    estimate, lower, upper = (
        np.concatenate([[first], part, part[-1:] if len(part) else [first]]) for first, part in parts
    )
    return times, estimate, lower, upper


def _traces(axes: Axes, traces: Sequence[Trace]) -> None:
    for position, trace in enumerate(traces):
        x, y = thinned(trace.times_ps, trace.values)
        label = label_of(trace.name, position, len(traces))
        axes.plot(x, y, color=color_of(position), linewidth=0.8, label=label)
    _from_zero(axes, traces)


def _failures(axes: Axes, traces: Sequence[Trace], failures: Sequence[int | None], limit: float) -> None:
    """A cross where each rollout fails; at the upper edge where the value is out of range or not finite."""
    label: str | None = "failure"
    for position, (trace, frame) in enumerate(zip(traces, failures, strict=True)):
        if frame is None:
            continue
        at = min(frame, len(trace.values) - 1)
        value = float(np.nan_to_num(trace.values[at], nan=limit))
        x, y = trace.times_ps[at], min(value, 0.98 * limit)
        axes.plot(x, y, "X", color=color_of(position), markeredgecolor=BLACK, markersize=8, label=label, zorder=5)
        label = None


def _smoothed(axes: Axes, traces: Sequence[Trace]) -> None:
    """Faint series with its running mean over a fiftieth of the length on top."""
    for position, trace in enumerate(traces):
        x, y = thinned(trace.times_ps, trace.values)
        axes.plot(x, y, color=color_of(position), linewidth=0.5, alpha=0.35)
        mean = running_mean(trace.values, max(1, len(trace.values) // 50))
        x, y = thinned(trace.times_ps, mean)
        label = label_of(trace.name, position, len(traces))
        axes.plot(x, y, color=color_of(position), linewidth=1.3, label=label)
    _from_zero(axes, traces)


def _from_zero(axes: Axes, traces: Sequence[Trace]) -> None:
    last = max((float(trace.times_ps[-1]) for trace in traces if len(trace.times_ps)), default=0.0)
    if last > 0:
        axes.set_xlim(0.0, last)
