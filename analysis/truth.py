# ruff: noqa: N802, N815 (units in names)
"""Truth along the rollout: errors of a model on the frames it visited itself, against a ground-truth calculator.

A model that is accurate on the reference may be wrong where its own rollout goes; this measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.trajectory import FrameSource, Trajectory


@dataclass(frozen=True, eq=False)
class TruthErrors:
    """Errors of the stored energies and forces on some frames.

    Attributes:
        frames: numbers of the frames.
        times_ps: their times; None if the trajectory has none.
        energy_errors_meV_per_atom: stored minus true, less the mean over the frames (levels of theory differ in zero).
        force_mae_meV_per_A: mean absolute error of the force components in each frame.
        force_max_meV_per_A: largest error of a component in each frame.
        energy_offset_eV: the mean difference that was removed.
    """

    frames: Int[np.ndarray, " samples"]
    times_ps: Float[np.ndarray, " samples"] | None
    energy_errors_meV_per_atom: Float[np.ndarray, " samples"]
    force_mae_meV_per_A: Float[np.ndarray, " samples"]
    force_max_meV_per_A: Float[np.ndarray, " samples"]
    energy_offset_eV: float

    @property
    def energy_mae_meV_per_atom(self) -> float:
        """Mean absolute error of the energies about their mean difference."""
        return float(np.abs(self.energy_errors_meV_per_atom).mean())


def truth_errors(
    source: FrameSource,
    calculator: Any | None,
    *,
    model: Any | None = None,
    n_samples: int = 50,
    energy_offset_eV: float | None = None,
) -> TruthErrors:
    """Errors of energies and forces on equally spaced frames.

    Args:
        source: trajectory, with the energies and forces that are not calculated here.
        calculator: ground truth, a calculator of ASE such as tblite; None: what the trajectory stores is the truth.
        model: calculator that is judged; None: what the trajectory stores is judged.
        n_samples: number of frames.
        energy_offset_eV: difference in zero to remove; default: the mean over the samples. Give that of the
            reference's frames to see a shift along the rollout.

    Raises:
        TrajectoryError: without energies and forces, or for a frame that is not finite.
        ValueError: if `n_samples` is not positive, or if there is neither a calculator nor a model.
    """
    if n_samples < 1:
        raise ValueError(f"`n_samples` must be positive, got {n_samples}")
    if calculator is None and model is None:
        raise ValueError("nothing to compare: give `calculator` for the truth, `model` for what is judged, or both")
    frames = np.unique(np.linspace(0, len(source) - 1, min(n_samples, len(source))).round().astype(int))
    energies, maes, largest, times = [], [], [], []
    for frame in frames.tolist():
        single = source.read(frame, frame + 1)
        single.check_finite()
        (energy, forces), (true_energy, true_forces) = _values(single, model), _values(single, calculator)
        error = np.abs(forces - true_forces)
        energies.append(energy - true_energy)
        maes.append(float(error.mean()))
        largest.append(float(error.max()))
        times.append(None if single.times_fs is None else float(single.times_fs[0]) * 1e-3)
    difference = np.array(energies)
    offset = float(difference.mean()) if energy_offset_eV is None else energy_offset_eV
    known = None if any(time is None for time in times) else np.array(times, dtype=np.float64)
    per_atom = (difference - offset) * (1e3 / len(source.numbers))
    return TruthErrors(frames, known, per_atom, np.array(maes) * 1e3, np.array(largest) * 1e3, offset)


def _values(single: Trajectory, calculator: Any | None) -> tuple[float, Float[np.ndarray, "atoms 3"]]:
    """Energy (eV) and forces (eV/Å) of one frame, calculated or as stored."""
    if calculator is None:
        single.require("energies", "forces")
        return float(np.asarray(single.energies)[0]), np.asarray(single.forces)[0]
    atoms = single.to_atoms(0)
    atoms.calc = calculator
    forces = np.asarray(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    return float(atoms.get_potential_energy()), forces
