"""Time per atom against the number of atoms, by implementation, with the arithmetic floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from e2former_calc.benchmark.comparison import ComparisonResult
from e2former_calc.benchmark.implementations import BASELINE

COLORS = {
    BASELINE: "#999999", "reference": "#E69F00", "blocked": "#56B4E9", "fused": "#0072B2", "auto": "#0072B2",
    "gfn2": "#CC79A7", "mace": "#D55E00", "nequip": "#009E73", "torchani": "#B5A300",
}  # fmt: skip
"""Okabe-Ito palette, its yellow darker: told apart with any colour vision."""
PANEL_WIDTH_IN, PANEL_HEIGHT_IN, SMALLEST_WIDTH_IN = 3.4, 3.7, 4.2
LEGEND_COLUMN_IN, LEGEND_ROW_IN = 1.65, 0.19
X_MARGIN = 1.5


def draw_time_per_atom(results: Sequence[ComparisonResult], path: Path) -> None:
    """One panel for each network and number of threads; lines for medians, bars for quartiles; peers have squares.

    Args:
        results: comparisons, at least one.
        path: PNG file.

    Raises:
        ValueError: without results.
    """
    if not results:
        raise ValueError("nothing was measured, so there is nothing to draw")
    panels = sorted({(result.model, result.threads) for result in results})
    width = max(PANEL_WIDTH_IN * len(panels), SMALLEST_WIDTH_IN)
    figure = Figure(figsize=(width, PANEL_HEIGHT_IN), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (model, threads) in zip(grid, panels, strict=True):
        own = [result for result in results if (result.model, result.threads) == (model, threads)]
        _panel(axes, sorted(own, key=lambda result: result.atoms))
        axes.set_title(f"{model}, {threads} thread{'s' * (threads > 1)}", fontsize="medium")
    grid[0].set_ylabel("energy and forces [µs per atom]")
    entries: dict[str, Artist] = {}
    for axes in grid:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = min(len(entries), int(width / LEGEND_COLUMN_IN))
    figure.set_figheight(PANEL_HEIGHT_IN + LEGEND_ROW_IN * math.ceil(len(entries) / columns))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
    )
    figure.savefig(path, dpi=160)


def _panel(axes: Axes, results: Sequence[ComparisonResult]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="atoms")
    names = dict.fromkeys(one.implementation for result in results for one in result.contenders)
    for name in names:
        found = [(result.atoms, one) for result in results if (one := result.of(name)) is not None]
        atoms = np.array([count for count, _ in found])
        quantiles = [one.energy_forces for _, one in found]
        times = np.array([[q.lower_quartile, q.median, q.upper_quartile] for q in quantiles]).T * 1e3 / atoms
        bars = np.stack([times[1] - times[0], times[2] - times[1]])
        label, marker = found[0][1].label, "o" if found[0][1].version is None else "s"
        axes.errorbar(atoms, times[1], bars, color=COLORS[name], marker=marker, markersize=4, capsize=2, label=label)
    floors = [(result.atoms, result.floor) for result in results if result.floor is not None]
    if floors:
        atoms = np.array([count for count, _ in floors])
        for label, style, values in (
            ("floor, as coded", ":", [floor.as_coded for _, floor in floors]),
            ("floor", "--", [floor.energy_forces for _, floor in floors]),
        ):
            heights = 1e3 * np.array(values) / atoms
            if len(floors) == 1:
                axes.axhline(heights[0], linestyle=style, color="#000000", label=label)
            else:
                axes.plot(atoms, heights, style, color="#000000", label=label)
    counts = [result.atoms for result in results]
    axes.set_xlim(min(counts) / X_MARGIN, max(counts) * X_MARGIN)
    axes.set_xticks(counts)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.25, linewidth=0.5)
