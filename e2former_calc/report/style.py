"""How the figures of a report look: size, colours, legends; nothing here touches the global state of matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#000000"
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe-Ito palette: told apart with any colour vision. The reference is black or grey."""

BAND = "#D9D9D9"
WIDTH_IN = 6.6
MAX_POINTS = 2000
"""Points drawn per line; more only make the file larger."""

LEGEND_COLUMNS = 3
LEGEND_LINES = 6
"""With more replicas than this they share one line of the legend."""


def canvas(
    rows: int = 1, columns: int = 1, *, height_in: float = 3.2, sharex: bool = False, ratios: list[int] | None = None
) -> tuple[Figure, NDArray[Any]]:
    """A figure with a grid of axes."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, height_ratios=ratios)
    for one in axes.flat:
        one.grid(visible=True, alpha=0.25, linewidth=0.5)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def color_of(position: int) -> str:
    """Colour of a replica."""
    return COLORS[position % len(COLORS)]


def label_of(name: str, position: int, count: int) -> str | None:
    """Entry of a replica in the legend; one for all of them where there are many."""
    if count <= LEGEND_LINES:
        return shortened(name)
    return f"{count} rollouts" if position == 0 else None


def shortened(name: str, length: int = 28) -> str:
    """A name that fits a legend."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length // 2) :]}"


def legend_inside(axes: Axes, **options: Any) -> None:
    """A legend without frame within the axes, if there is anything to explain."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**({"frameon": False, "fontsize": "small"} | options))


def legend_above(figure: Figure, *chosen: Axes) -> None:
    """One legend above all axes, where it hides nothing; each label once."""
    entries: dict[str, Any] = {}
    for axes in chosen:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        columns = LEGEND_COLUMNS if len(entries) > LEGEND_COLUMNS else len(entries)
        figure.legend(
            entries.values(), entries, loc="outside upper left", ncols=columns, frameon=False, fontsize="small"
        )


def decades(axes: Axes, values: Float[np.ndarray, " points"]) -> tuple[float, float]:
    """Logarithmic axes over the same whole decades around the positive values; returns their ends."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    ends = 10.0 ** np.floor(np.log10(low)), 10.0 ** (np.floor(np.log10(high)) + 1.0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    return float(ends[0]), float(ends[1])


def thinned(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """A long series as the lowest and highest point of each piece, so that no spike is lost."""
    if len(x) <= MAX_POINTS:
        return x, y
    size = -(-2 * len(x) // MAX_POINTS)
    kept: list[int] = []
    for start in range(0, len(x), size):
        piece = np.where(np.isfinite(y[start : start + size]), y[start : start + size], 0.0)
        kept += sorted({start + int(np.argmin(piece)), start + int(np.argmax(piece))})
    return x[kept], y[kept]


def running_mean(values: Float[np.ndarray, " points"], width: int) -> Float[np.ndarray, " points"]:
    """Mean over `width` points around each; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))
