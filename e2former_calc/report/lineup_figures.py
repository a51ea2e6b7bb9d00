"""Figures of several runs beside one reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2former_calc.analysis.survival import SurvivalCurve
from e2former_calc.report.figures import survival_steps
from e2former_calc.report.lineup import Metric
from e2former_calc.report.section import NOISE_LIMIT
from e2former_calc.report.style import BAND, BLACK, canvas, color_of, legend_above, shortened

Values = Float[np.ndarray, " points"]
LINE_STYLES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), "-")
"""Beside the colours, so that runs are told apart in grey, too."""

MARKERS = ("o", "s", "^", "D", "v", "P")
COLUMNS = 3
MAX_DOTS = 30
"""Metrics in the figure of ratios; the page has all."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """One curve of every run and of the reference.

    Attributes:
        label: which.
        x: centres of bins.
        reference: of the reference.
        runs: of each run by its name; runs without it are left out.
        noise: half width of the 95 % band of run minus reference for the shortest run, if only sampling differed.
    """

    label: str
    x: Values
    reference: Values
    runs: Mapping[str, Values]
    noise: Values


def draw_overlays(overlays: Sequence[Overlay], names: Sequence[str], *, labels: tuple[str, str, str]) -> Figure:
    """Curves of all runs above their differences to the reference.

    Args:
        overlays: one for each pair of panels.
        names: of all runs, which fixes their colours.
        labels: of x, y and difference, with units.
    """
    columns = min(len(overlays), COLUMNS)
    blocks = -(-len(overlays) // columns)
    ratios = [2, 1] * blocks
    figure, axes = canvas(2 * blocks, columns, height_in=0.5 + 3.7 * blocks, ratios=ratios)
    for one in axes.flat:
        one.set_visible(False)
    for position, overlay in enumerate(overlays):
        row, column = 2 * (position // columns), position % columns
        top, bottom = axes[row, column], axes[row + 1, column]
        _draw_pair(top, bottom, overlay, names)
        if len(overlays) > 1:
            top.set_title(overlay.label, fontsize="medium", loc="right")
        top.set(ylabel=labels[1] if column == 0 else "")
        bottom.set(xlabel=labels[0], ylabel=labels[2] if column == 0 else "")
    legend_above(figure, axes[0, 0], axes[1, 0])
    return figure


def draw_survivals(curves: Mapping[str, SurvivalCurve]) -> Figure:
    """Probability of being stable of each run, with its band where several rollouts tell of it."""
    figure, ((axes,),) = canvas()
    longest = max(curve.last_ps for curve in curves.values())
    for position, (name, curve) in enumerate(curves.items()):
        times, *steps = survival_steps(curve)
        color = color_of(position)
        if curve.n_replicas > 1:
            axes.fill_between(times, steps[1], steps[2], step="post", color=color, alpha=0.15, linewidth=0)
        count = f"{curve.n_replicas} rollout{'s' if curve.n_replicas > 1 else ''}"
        axes.step(
            times, steps[0], where="post", color=color, linestyle=LINE_STYLES[position % len(LINE_STYLES)],
            linewidth=1.4, label=f"{shortened(name)}, {count}",
        )  # fmt: skip
    axes.set(xlabel="time [ps]", ylabel="probability of being stable", ylim=(0.0, 1.05), xlim=(0.0, longest or 1.0))
    legend_above(figure, axes)
    return figure


def draw_ratios(metrics: Sequence[Metric], names: Sequence[str]) -> Figure:
    """Every metric that has a noise level, in units of it; one row for each, one mark for each run."""
    shown = metrics[:MAX_DOTS]
    figure, ((axes,),) = canvas(height_in=1.1 + 0.22 * len(shown))
    axes.axvspan(0.0, 1.0, color=BAND, linewidth=0, zorder=0, label="a perfect model on average")
    for position, name in enumerate(names):
        points = [
            (ratio, row)
            for row, metric in enumerate(shown)
            if (quantity := metric.values[position]) is not None and (ratio := quantity.in_units_of_noise) is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x, np.array(y) + 0.12 * (position - 0.5 * (len(names) - 1)), MARKERS[position % len(MARKERS)],
                color=color_of(position), markersize=5, linestyle="none", label=shortened(name),
            )  # fmt: skip
    axes.set_xscale("symlog", linthresh=NOISE_LIMIT, linscale=1.0)
    axes.set(xlabel="difference to the reference [units of the noise]", ylabel="")
    axes.set_yticks(range(len(shown)), [shortened(metric.name, 44) for metric in shown], fontsize="small")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0.0, max(1.2 * NOISE_LIMIT, axes.get_xlim()[1]))
    ends = axes.get_xlim()
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 1000, 10000) if tick <= ends[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    legend_above(figure, axes)
    return figure


def _draw_pair(top: Axes, bottom: Axes, overlay: Overlay, names: Sequence[str]) -> None:
    top.set_visible(True)
    bottom.set_visible(True)
    top.plot(overlay.x, overlay.reference, color=BLACK, linewidth=1.6, alpha=0.8, label="reference")
    bottom.fill_between(overlay.x, -overlay.noise, overlay.noise, color=BAND, linewidth=0, label="95 % noise band")
    bottom.axhline(0.0, color=BLACK, linewidth=0.6)
    for position, name in enumerate(names):
        if name in overlay.runs:
            style: dict[str, Any] = {
                "color": color_of(position), "linestyle": LINE_STYLES[position % len(LINE_STYLES)],
            }  # fmt: skip
            top.plot(overlay.x, overlay.runs[name], linewidth=1.1, label=shortened(name), **style)
            bottom.plot(overlay.x, overlay.runs[name] - overlay.reference, linewidth=0.9, **style)
    top.set_ylim(bottom=0.0)
    top.tick_params(labelbottom=False)
    limits = _extent(overlay)
    top.set_xlim(limits)
    bottom.set_xlim(limits)


def _extent(overlay: Overlay) -> tuple[float, float]:
    """All of a range of angles; of distances as far as there is anything to see."""
    end = float(overlay.x[-1])
    if overlay.x[0] < 0:
        return float(overlay.x[0]), end
    seen = np.flatnonzero(overlay.reference + sum(overlay.runs.values(), start=np.zeros_like(overlay.reference)))
    return 0.0, min(1.05 * float(overlay.x[seen[-1]]), end) if len(seen) else end
