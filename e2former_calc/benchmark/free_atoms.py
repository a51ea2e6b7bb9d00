"""Atoms on which no forces act, for both engines: what remains of a step is the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.system import Prediction, System

SPACING_A = 4.0
"""Distance between free atoms at the start."""


@dataclass(frozen=True)
class FreeAtoms:
    """A `Potential` that gives zeros."""

    cutoff: float = 0.0
    elements: frozenset[int] = frozenset(range(1, 119))
    conservative: bool = True
    uses_charge: bool = False
    uses_spin: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        """Zero energy, forces and stress."""
        del properties, neighbors
        forces = torch.zeros_like(system.positions)
        return Prediction(
            system.cell.new_zeros(system.n_structures), forces[:, 0], forces, torch.zeros_like(system.cell)
        )


class NoForces(Calculator):
    """An ASE calculator that gives zeros."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Zero energy, forces and stress."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        forces = np.zeros_like(self.atoms.positions)  # type: ignore[union-attr]
        self.results: dict[str, Any] = {"energy": 0.0, "forces": forces, "stress": np.zeros(6)}


def gas(n_atoms: int) -> Atoms:
    """Argon atoms on a cubic grid in a periodic cube."""
    side = int(np.ceil(n_atoms ** (1.0 / 3.0)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:n_atoms]
    return Atoms(f"Ar{n_atoms}", positions=SPACING_A * grid, cell=[SPACING_A * side] * 3, pbc=True)
