# ruff: noqa: N815 (units in names)
"""Figures of motion: displacements, kinetic energies, temperatures of the elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2former_calc.analysis.constants import BOLTZMANN_EV_PER_K
from e2former_calc.analysis.statistics import Estimate
from e2former_calc.report.style import BAND, BLACK, BLUE, GREEN, ORANGE, canvas, legend_above

Values = Float[np.ndarray, " points"]
PANELS_PER_ROW = 3


@dataclass(frozen=True, eq=False)
class Line:
    """A curve without a name."""

    x: Values
    y: Values


@dataclass(frozen=True, eq=False)
class KineticSample:
    """Kinetic energies of independent frames and the temperatures of the elements.

    Attributes:
        energies_eV: kinetic energies.
        degrees: degrees of freedom behind them.
        by_element: mean temperature of each element, in K.
    """

    energies_eV: Values
    degrees: int
    by_element: Mapping[str, Estimate]


def draw_displacements(
    elements: Mapping[str, tuple[Sequence[Line], Line]], *, window_ps: tuple[float, float]
) -> Figure:
    """Mean squared displacement of each element, rollouts and reference, with the window of the fit."""
    columns = min(len(elements), PANELS_PER_ROW)
    rows = -(-len(elements) // columns)
    figure, axes = canvas(rows, columns, height_in=0.6 + 2.6 * rows)
    for one, (symbol, (rollouts, reference)) in zip(axes.flat, elements.items(), strict=False):
        one.axvspan(*window_ps, color=BAND, linewidth=0, zorder=0, label="window of the fit")
        one.plot(reference.x, reference.y, color=BLACK, linewidth=1.3, label="reference")
        for position, line in enumerate(rollouts):
            label = None if position else "rollouts" if len(rollouts) > 1 else "rollout"
            one.plot(line.x, line.y, color=ORANGE, linewidth=1.1, linestyle="--", label=label)
        one.set(xlabel="lag [ps]", ylabel="MSD [Å²]", xlim=(0.0, window_ps[1]))
        one.set_ylim(bottom=0.0)
        one.set_title(symbol, fontsize="medium", loc="right")
    for one in axes.flat[len(elements) :]:
        one.set_visible(False)
    legend_above(figure, axes.flat[0])
    return figure


def draw_kinetics(rollout: KineticSample, reference: KineticSample | None, *, temperature_K: float | None) -> Figure:
    """Distribution of the kinetic energy beside that of the canonical ensemble, and the warmth of each element."""
    figure, axes = canvas(1, 2, height_in=3.2)
    left, right = axes[0]
    samples = [(rollout, ORANGE, "--", "rollout")]
    samples += [] if reference is None else [(reference, BLACK, "-", "reference")]
    everything = np.concatenate([sample.energies_eV for sample, *_ in samples])
    bins = int(np.clip(1.5 * np.sqrt(min(len(sample.energies_eV) for sample, *_ in samples)), 6, 30))
    edges = np.histogram_bin_edges(everything, bins=bins)
    for sample, color, style, label in samples:
        density, _ = np.histogram(sample.energies_eV, edges, density=True)
        left.stairs(density, edges, color=color, linestyle=style, linewidth=1.2, label=label)
    if temperature_K is not None:
        energies = np.linspace(edges[0], edges[-1], 200)
        canonical = scipy.stats.gamma(0.5 * rollout.degrees, scale=BOLTZMANN_EV_PER_K * temperature_K)
        left.plot(energies, canonical.pdf(energies), color=BLUE, linewidth=1.2, label="canonical distribution")
    left.set(xlabel="kinetic energy [eV]", ylabel="density [1/eV]")
    for (sample, color, _, label), shift in zip(samples, (-0.08, 0.08), strict=False):
        _temperatures(right, sample.by_element, color, shift, label)
    if temperature_K is not None:
        label = f"target, {temperature_K:g} K"
        right.axhline(temperature_K, color=GREEN, linestyle=":", linewidth=1.5, zorder=1, label=label)
    right.set(xlabel="element [symbol]", ylabel="temperature [K]", xlim=(-0.6, len(rollout.by_element) - 0.4))
    right.set_xticks(range(len(rollout.by_element)), list(rollout.by_element))
    legend_above(figure, left, right)
    return figure


def _temperatures(axes: Axes, found: Mapping[str, Estimate], color: str, shift: float, label: str) -> None:
    means = [estimate.value for estimate in found.values()]
    errors = [estimate.error for estimate in found.values()]
    positions = np.arange(len(means)) + shift
    marker = "o" if color == ORANGE else "s"
    axes.errorbar(
        positions, means, errors, fmt=marker, color=color, markersize=4, capsize=3, linewidth=1.0, label=label
    )
