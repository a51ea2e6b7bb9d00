"""Loss and error measures of energies, forces and stresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.settings import TrainingSettings


@dataclass(frozen=True)
class Labels:
    """What a batch should have come out as.

    Attributes:
        energy: eV.
        forces: eV/Å.
        stress: eV/Å^3, NaN where there is none; None if no structure has one.
    """

    energy: Float[Tensor, " structures"]
    forces: Float[Tensor, "atoms 3"]
    stress: Float[Tensor, "structures 3 3"] | None = None

    def to(self, device: torch.device) -> Labels:
        """The same labels on another device."""
        stress = None if self.stress is None else self.stress.to(device)
        return Labels(self.energy.to(device), self.forces.to(device), stress)


def loss(prediction: Prediction, labels: Labels, system: System, settings: TrainingSettings) -> Float[Tensor, ""]:
    """Weighted sum of energy, force and stress losses.

    Raises:
        ValueError: if a weighted quantity was not predicted.
    """
    total = labels.energy.new_zeros(())
    if settings.energy_weight:
        error = (prediction.energy - labels.energy).abs() / system.sizes
        total = total + settings.energy_weight * error.mean()
    if settings.force_weight:
        if prediction.forces is None:
            raise ValueError("force_weight is not zero, but no forces were predicted")
        total = total + settings.force_weight * force_loss(prediction.forces - labels.forces, settings)
    if settings.stress_weight and labels.stress is not None:
        if prediction.stress is None:
            raise ValueError("stress_weight is not zero, but no stress was predicted")
        known = torch.isfinite(labels.stress)
        error = torch.where(known, prediction.stress - labels.stress, torch.zeros_like(labels.stress)).abs()
        total = total + settings.stress_weight * error.sum() / known.sum().clamp_min(1)
    return total


def force_loss(error: Float[Tensor, "atoms 3"], settings: TrainingSettings) -> Float[Tensor, ""]:
    """Mean over atoms; see `TrainingSettings.force_loss`."""
    squared = error.square().sum(1)
    if settings.force_loss == "squared":
        return squared.mean()
    # The length of a vanishing error has no gradient; 1e-6 eV/Å keeps it finite.
    length = (squared + 1e-12).sqrt()
    if settings.force_loss == "norm":
        return length.mean()
    delta = settings.huber_delta
    return torch.where(length < delta, 0.5 * squared / delta, length - 0.5 * delta).mean()


@dataclass(frozen=True)
class Errors:
    """Errors over a set of structures; energies in meV per atom, forces in meV/Å.

    Attributes:
        energy_mae, energy_rmse: per atom.
        force_mae, force_rmse: over components.
        force_cosine: mean cosine between predicted and true force vectors.
        force_mae_by_element: by atomic number.
    """

    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float
    force_cosine: float
    force_mae_by_element: dict[int, float]


class ErrorAccumulator:
    """Collects `Errors` batch by batch."""

    def __init__(self) -> None:
        self._energy: list[Tensor] = []
        self._force: list[Tensor] = []
        self._cosine: list[Tensor] = []
        self._numbers: list[Tensor] = []

    def add(self, prediction: Prediction, labels: Labels, system: System) -> None:
        """Add one batch with predicted forces."""
        if prediction.forces is None:
            raise ValueError("errors need predicted forces")
        self._energy.append((prediction.energy - labels.energy) / system.sizes)
        self._force.append(prediction.forces - labels.forces)
        self._cosine.append(torch.nn.functional.cosine_similarity(prediction.forces, labels.forces, dim=1))
        self._numbers.append(system.numbers)

    def errors(self) -> Errors:
        """Errors over everything added.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._energy:
            raise ValueError("no structures to take errors of")
        energy, force = 1e3 * torch.cat(self._energy), 1e3 * torch.cat(self._force)
        numbers = torch.cat(self._numbers)
        return Errors(
            energy_mae=float(energy.abs().mean()),
            energy_rmse=float(energy.square().mean().sqrt()),
            force_mae=float(force.abs().mean()),
            force_rmse=float(force.square().mean().sqrt()),
            force_cosine=float(torch.cat(self._cosine).mean()),
            force_mae_by_element={int(z): float(force[numbers == z].abs().mean()) for z in numbers.unique()},
        )
