"""Loss of energies, forces and stresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.settings import LossWeights, TrainingSettings


@dataclass(frozen=True)
class Labels:
    """What a batch should have come out as.

    NaN stands for what is not known; it adds nothing to losses and errors.

    Attributes:
        energy: eV.
        forces: eV/Å.
        stress: eV/Å^3; None if no structure has one.
    """

    energy: Float[Tensor, " structures"]
    forces: Float[Tensor, "atoms 3"]
    stress: Float[Tensor, "structures 3 3"] | None = None

    def to(self, device: torch.device) -> Labels:
        """The same labels on another device."""
        stress = None if self.stress is None else self.stress.to(device)
        return Labels(self.energy.to(device), self.forces.to(device), stress)


@dataclass(frozen=True)
class LossCounts:
    """What the sums of a loss are divided by.

    Attributes:
        structures: number of known energies.
        atoms: number of known force vectors.
        stresses: number of known stress components.
    """

    structures: int | Tensor
    atoms: int | Tensor
    stresses: int | Tensor

    @classmethod
    def of(cls, labels: Labels) -> LossCounts:
        """The counts of one batch."""
        stresses = 0 if labels.stress is None else int(torch.isfinite(labels.stress).sum())
        atoms = int(torch.isfinite(labels.forces).all(1).sum())
        return cls(int(torch.isfinite(labels.energy).sum()), atoms, stresses)


def loss(
    prediction: Prediction,
    labels: Labels,
    system: System,
    settings: TrainingSettings,
    *,
    weights: LossWeights | None = None,
    counts: LossCounts | None = None,
) -> Float[Tensor, ""]:
    """Weighted sum of energy, force and stress losses, each a mean over the batch.

    Args:
        prediction, labels, system: the batch, or a part of it.
        settings: which losses there are, and the kind of the force loss.
        weights: of this step; default: those of the first.
        counts: of the whole batch if this is a part of it: the losses of the parts then add up to that of the whole.

    Raises:
        ValueError: if a weighted quantity was not predicted.
    """
    weights, counts = weights or settings.weights(0), counts or LossCounts.of(labels)
    total = labels.energy.new_zeros(())
    if settings.uses("energy"):
        error = _known_error(prediction.energy, labels.energy).abs() / system.sizes.clamp_min(1)
        total = total + weights.energy * error.sum() / _at_least_one(counts.structures)
    if settings.uses("force"):
        if prediction.forces is None:
            raise ValueError("force_weight is not zero, but no forces were predicted")
        total = total + weights.forces * force_loss(prediction.forces, labels.forces, settings, counts.atoms)
    if settings.uses("stress") and labels.stress is not None:
        if prediction.stress is None:
            raise ValueError("stress_weight is not zero, but no stress was predicted")
        error = _known_error(prediction.stress, labels.stress).abs()
        total = total + weights.stress * error.sum() / _at_least_one(counts.stresses)
    return total


def force_loss(
    predicted: Float[Tensor, "atoms 3"],
    labels: Float[Tensor, "atoms 3"],
    settings: TrainingSettings,
    atoms: int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """Sum over atoms divided by `atoms` (default: those with a label); see `TrainingSettings.force_loss`."""
    known = torch.isfinite(labels).all(1)
    atoms = _at_least_one(known.sum() if atoms is None else atoms)
    squared = _known_error(predicted, labels).square().sum(1)
    if settings.force_loss == "squared":
        return squared.sum() / atoms
    # The length of a vanishing error has no gradient; 1e-6 eV/Å keeps it finite.
    length = (squared + 1e-12).sqrt() * known
    if settings.force_loss == "norm":
        return length.sum() / atoms
    delta = torch.full_like(length, settings.huber_delta)
    if settings.force_loss == "conditional_huber":
        delta = delta * _huber_factor(torch.where(known[:, None], labels, 0.0).norm(dim=1))
    return torch.where(length < delta, 0.5 * squared / delta, length - 0.5 * delta).sum() / atoms


def _huber_factor(magnitude: Float[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
    """1, 0.7, 0.4, 0.1 for true forces below 100, 200, 300 eV/Å and above.

    Source: I. Batatia et al., A foundation model for atomistic materials chemistry, arXiv:2401.00096.
    """
    limits = magnitude.new_tensor([100.0, 200.0, 300.0])
    return 1.0 - 0.3 * (magnitude[:, None] >= limits).sum(1)


def _known_error(predicted: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Predicted minus label, zero where there is no label."""
    known = torch.isfinite(labels)
    return torch.where(known, predicted - torch.where(known, labels, 0.0), 0.0)


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
