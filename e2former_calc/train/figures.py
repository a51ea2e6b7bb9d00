"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from e2former_calc.potentials.training.errors import Comparison

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe-Ito palette: told apart with any colour vision."""

MAX_POINTS = 20_000
"""Points drawn per panel; more only make the file larger."""


def draw_learning_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training loss, and validation errors of energies and forces, against the step.

    Args:
        rows: lines of the training log.
        path: PNG file.
    """
    figure = _figure()
    left, right = figure.subplots(1, 2)
    left.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], color=BLUE, linewidth=1.0)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    judged = [row for row in rows if row["force_mae_meV_per_A"] != ""]
    steps = [int(row["step"]) for row in judged]
    forces = [float(row["force_mae_meV_per_A"]) for row in judged]
    energies = [float(row["energy_mae_meV_per_atom"]) for row in judged]
    right.plot(steps, forces, color=BLUE, marker="o", markersize=3, label="forces [meV/Å]")
    right.plot(steps, energies, color=ORANGE, marker="s", markersize=3, label="energy [meV/atom]")
    right.set(xlabel="step", ylabel="validation MAE", yscale="log")
    if judged:
        right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(visible=True, which="both", alpha=0.25, linewidth=0.5)
    figure.savefig(path, dpi=160)


def draw_parity(comparison: Comparison, path: Path, *, title: str) -> None:
    """Predictions against labels: energies around their mean, and force components by element.

    Args:
        comparison: predictions and labels.
        path: PNG file.
        title: which model, which frames.
    """
    errors = comparison.errors()
    figure = _figure()
    figure.suptitle(title, fontsize="medium")
    left, right = figure.subplots(1, 2)
    energies = 1e3 * comparison.energies.numpy()
    energies = energies - energies[1].mean()
    _parity(left, energies, {"": np.ones(energies.shape[1], dtype=bool)})
    left.set(xlabel="energy, label [meV/atom]", ylabel="energy, predicted [meV/atom]")
    _note(left, f"MAE {errors.energy_mae:.2f} meV/atom")
    numbers = comparison.numbers.numpy().repeat(3)
    groups = {chemical_symbols[z]: numbers == z for z in errors.by_element}
    _parity(right, comparison.forces.numpy().reshape(2, -1), groups)
    right.set(xlabel="force component, label [eV/Å]", ylabel="force component, predicted [eV/Å]")
    _note(right, f"MAE {errors.forces.mae:.1f} meV/Å")
    right.legend(frameon=False, loc="lower right", markerscale=4)
    figure.savefig(path, dpi=160)


def _figure() -> Figure:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _parity(axes: Axes, values: NDArray[np.float64], groups: Mapping[str, NDArray[np.bool_]]) -> None:
    limits = (float(values.min()), float(values.max()))
    margin = 0.03 * (limits[1] - limits[0]) + 1e-6
    limits = (limits[0] - margin, limits[1] + margin)
    axes.plot(limits, limits, color=GREY, linewidth=0.8)
    for k, (label, chosen) in enumerate(groups.items()):
        predicted, true = values[:, chosen]
        step = -(-len(true) // MAX_POINTS) if len(true) else 1
        color = COLORS[k % len(COLORS)]
        axes.plot(true[::step], predicted[::step], ".", color=color, markersize=2, label=label, rasterized=True)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def _note(axes: Axes, text: str) -> None:
    axes.text(0.04, 0.95, text, transform=axes.transAxes, va="top", fontsize="small")
