"""Predictions against labels, and the errors that follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.loss import Labels


@dataclass(frozen=True)
class ForceErrors:
    """Errors of force vectors in meV/Å: over components, and the mean cosine between predicted and true vector."""

    mae: float
    rmse: float
    cosine: float


@dataclass(frozen=True)
class Errors:
    """Errors over a set of structures.

    Attributes:
        energy_mae, energy_rmse: meV per atom.
        forces: of all atoms.
        by_element: forces by atomic number.
    """

    energy_mae: float
    energy_rmse: float
    forces: ForceErrors
    by_element: dict[int, ForceErrors]


class Comparison:
    """Predictions and labels side by side, collected batch by batch; what has no label is left out."""

    def __init__(self) -> None:
        self._energies: list[Tensor] = []
        self._forces: list[Tensor] = []
        self._numbers: list[Tensor] = []

    def add(self, prediction: Prediction, labels: Labels, system: System) -> None:
        """Add one batch.

        Raises:
            ValueError: without predicted forces.
        """
        if prediction.forces is None:
            raise ValueError("errors need predicted forces")
        energies = torch.stack([prediction.energy, labels.energy]) / system.sizes
        self._energies.append(energies[:, torch.isfinite(labels.energy)])
        known = torch.isfinite(labels.forces).all(1)
        self._forces.append(torch.stack([prediction.forces, labels.forces])[:, known])
        self._numbers.append(system.numbers[known])

    @property
    def energies(self) -> Float[Tensor, "two structures"]:
        """Predicted and true energies in eV per atom."""
        return torch.cat(self._energies, dim=1)

    @property
    def forces(self) -> Float[Tensor, "two atoms 3"]:
        """Predicted and true forces in eV/Å."""
        return torch.cat(self._forces, dim=1)

    @property
    def numbers(self) -> Int[Tensor, " atoms"]:
        """Elements of the atoms of `forces`."""
        return torch.cat(self._numbers)

    def errors(self) -> Errors:
        """Errors over everything added.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._energies:
            raise ValueError("there are no structures to take errors of")
        energies, forces, numbers = self.energies, self.forces, self.numbers
        difference = 1e3 * (energies[0] - energies[1])
        return Errors(
            energy_mae=float(difference.abs().mean()),
            energy_rmse=float(difference.square().mean().sqrt()),
            forces=_force_errors(forces),
            by_element={int(z): _force_errors(forces[:, numbers == z]) for z in numbers.unique()},
        )


def _force_errors(forces: Float[Tensor, "two atoms 3"]) -> ForceErrors:
    difference = 1e3 * (forces[0] - forces[1])
    return ForceErrors(
        mae=float(difference.abs().mean()),
        rmse=float(difference.square().mean().sqrt()),
        cosine=float(cosine_similarity(forces[0], forces[1], dim=1).mean()),
    )
