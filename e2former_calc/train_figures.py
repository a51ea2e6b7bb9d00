"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_learning_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training loss, and validation errors of energies and forces, against the step.

    Args:
        rows: lines of the training log.
        path: PNG file.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], color=BLUE)
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
    figure.savefig(path, dpi=160)
