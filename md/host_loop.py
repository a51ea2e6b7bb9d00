"""Forces and constraints on the host: any ASE calculator, and ASE's constraints, under our integrators.

Replicas are evaluated one after the other. Constraints act through `Atoms.set_positions` and
`Atoms.set_momenta`, as in ASE's own dynamics; those with an energy (`Hookean`, `ExternalForce`) add to the forces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, CalculatorError, PropertyNotImplementedError
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.forces import Evaluation
from e2former_calc.md.replicas import Replicas

_BREAKDOWNS = (CalculatorError, ValueError, ArithmeticError, np.linalg.LinAlgError)
"""What calculators raise for structures that have come apart."""

_INTERNAL = {"FixCom", "FixBondLength", "FixBondLengths", "FixLinearTriatomic", "FixInternals", "Hookean"}
"""Constraints whose forces sum to zero and have no torque."""


class CalculatorForces:
    """An ASE calculator as provider of forces.

    Args:
        calculator: used for all replicas in turn.
        images: one structure per replica; copied.
        replicas: their atoms in the batch.
    """

    def __init__(self, calculator: BaseCalculator, images: Sequence[Atoms], replicas: Replicas) -> None:
        self.calculator = calculator
        self.failures: dict[int, str] = {}
        self.rebuilds = 0
        self._images = [atoms.copy() for atoms in images]
        self._slices = replicas.slices()
        self._evaluated = False
        for image in self._images:
            # Springs and external forces are part of the potential; other constraints act on the motion.
            image.set_constraint([c for c in image.constraints if _has_energy(c)])
            image.calc = calculator

    @property
    def device(self) -> torch.device:
        """The host."""
        return torch.device("cpu")

    def evaluate(self, positions: Tensor, cell: Tensor, *, stress: bool) -> Evaluation:
        """See `ForceProvider`.

        Raises:
            Exception: what the calculator raises on the first call, or for other reasons than a broken structure.
        """
        energy, forces, stresses = (
            torch.empty(len(cell), dtype=torch.float64),
            torch.empty_like(positions),
            cell * torch.nan,
        )
        for index, (image, atoms) in enumerate(zip(self._images, self._slices, strict=True)):
            image.positions = positions[atoms].numpy()
            if image.pbc.any():
                image.cell[:] = cell[index].numpy()
            try:
                energy[index] = image.get_potential_energy()
                forces[atoms] = torch.from_numpy(np.array(image.get_forces(), dtype=np.float64))
                if stress:
                    stresses[index] = torch.from_numpy(image.get_stress(voigt=False))
            except PropertyNotImplementedError:
                raise
            except _BREAKDOWNS as error:
                if not self._evaluated:
                    raise
                self.failures[index] = str(error)
                energy[index], forces[atoms], stresses[index] = torch.nan, torch.nan, torch.nan
        self._evaluated = True
        return Evaluation(energy, forces, stresses)

    def memory(self) -> dict[str, Tensor]:
        """Nothing: what calculators keep is a cache."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Continue after a first evaluation: from now on broken structures give NaN."""
        del memory
        self._evaluated = True


class AseConstraints:
    """Any constraints of ASE that correct positions and momenta.

    Args:
        images: one structure per replica with its constraints; copied.
        replicas: their atoms in the batch.

    Raises:
        NotImplementedError: for constraints that do not correct positions and momenta, or cannot tell how many
            degrees of freedom they remove.
    """

    def __init__(self, images: Sequence[Atoms], replicas: Replicas) -> None:
        self._images = [atoms.copy() for atoms in images]
        self._slices = replicas.slices()
        self._lines = [f"replica {k}: {c.todict()}" for k, image in enumerate(images) for c in image.constraints]
        kinds = [{type(constraint).__name__ for constraint in image.constraints} for image in images]
        for image in self._images:
            # The base class of ASE lets constraints with a force act on momenta as if these were forces.
            image.set_constraint([c for c in image.constraints if not _has_energy(c)])
        removed = []
        fixed = torch.zeros(replicas.n_atoms, dtype=torch.bool)
        for index, (image, atoms) in enumerate(zip(self._images, self._slices, strict=True)):
            removed.append(sum(_removed(constraint, image, index) for constraint in image.constraints))
            fixed[atoms] = torch.from_numpy(_fixed_atoms(image))
        self.removed = torch.tensor(removed, dtype=torch.int64)
        self.fixed_com = torch.tensor(["FixCom" in names for names in kinds])
        self.keeps_momentum = torch.tensor([names <= _INTERNAL for names in kinds])
        self.fixed_atoms = fixed

    def constrain_positions(self, old: Tensor, new: Tensor, cell: Tensor) -> Tensor:
        """See `Constraints`."""
        result = new.clone()
        for image, atoms, lattice in zip(self._images, self._slices, cell, strict=True):
            if image.constraints and bool(torch.isfinite(new[atoms]).all()):
                self._place(image, old[atoms], lattice)
                image.set_positions(new[atoms].numpy())
                result[atoms] = torch.from_numpy(image.positions.copy())
        return result

    def constrain_velocities(self, velocities: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """See `Constraints`."""
        result = velocities.clone()
        for image, atoms, lattice in zip(self._images, self._slices, cell, strict=True):
            if image.constraints and bool(torch.isfinite(velocities[atoms]).all()):
                self._place(image, positions[atoms], lattice)
                mass = image.get_masses()[:, None]
                image.set_momenta(velocities[atoms].numpy() * mass / units.fs)
                result[atoms] = torch.from_numpy(image.get_momenta() / mass * units.fs)
        return result

    def describe(self) -> list[str]:
        """The constraints of each replica as dictionaries."""
        return self._lines

    @staticmethod
    def _place(image: Atoms, positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "3 3"]) -> None:
        image.positions = positions.numpy()
        if image.pbc.any():
            image.cell[:] = cell.numpy()


def _has_energy(constraint: Any) -> bool:
    return hasattr(constraint, "adjust_potential_energy")


def _removed(constraint: Any, image: Atoms, index: int) -> int:
    if not all(hasattr(constraint, name) for name in ("get_removed_dof", "adjust_positions", "adjust_momenta")):
        raise NotImplementedError(
            f"the constraint {type(constraint).__name__} of replica {index} does not act on positions and momenta, so "
            "that it cannot be used in molecular dynamics: remove it"
        )
    return int(constraint.get_removed_dof(image))


def _fixed_atoms(image: Atoms) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Atoms that no constraint lets move, found by pushing them."""
    momenta = np.ones((len(image), 3))
    for constraint in image.constraints:
        constraint.adjust_momenta(image, momenta)
    still: np.ndarray[Any, np.dtype[np.bool_]] = (momenta == 0.0).all(axis=1)
    return still if image.constraints else np.zeros(len(image), dtype=bool)
