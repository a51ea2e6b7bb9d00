"""What goes into a potential (`System`) and what comes out (`Prediction`).

Both are frozen dataclasses of tensors. Several structures of different sizes travel as one
`System`: atoms of structure 0 first, then structure 1, and so on; there is no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True)
class System:
    """One or several structures.

    Attributes:
        positions: Cartesian coordinates in Å, float64, never wrapped.
        numbers: atomic numbers.
        cell: lattice vectors in Å as rows, float64; zero rows for absent vectors.
        pbc: periodicity along each lattice vector.
        batch: index of the structure that each atom belongs to, ascending from 0.
        charge: total charge of each structure in units of e.
        spin: spin multiplicity 2S + 1 of each structure.
    """

    positions: Float[Tensor, "atoms 3"]
    numbers: Int[Tensor, " atoms"]
    cell: Float[Tensor, "structures 3 3"]
    pbc: Bool[Tensor, "structures 3"]
    batch: Int[Tensor, " atoms"]
    charge: Int[Tensor, " structures"]
    spin: Int[Tensor, " structures"]

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures together."""
        return int(self.positions.shape[0])

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return int(self.cell.shape[0])

    @property
    def sizes(self) -> Int[Tensor, " structures"]:
        """Number of atoms of each structure."""
        counts = torch.zeros(self.n_structures, dtype=torch.int64, device=self.batch.device)
        return counts.index_add(0, self.batch, torch.ones_like(self.batch))

    def to(self, device: torch.device | str) -> System:
        """The same system on another device."""
        fields = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__}
        return replace(self, **fields)

    def clone(self) -> System:
        """A copy that shares no memory and no computational graph with this one."""
        fields = {name: getattr(self, name).detach().clone() for name in self.__dataclass_fields__}
        return replace(self, **fields)

    def with_positions(self, positions: Float[Tensor, "atoms 3"]) -> System:
        """The same system with other coordinates (Å)."""
        return replace(self, positions=positions)

    @staticmethod
    def single(
        positions: ArrayLike,
        numbers: ArrayLike,
        *,
        cell: ArrayLike | None = None,
        pbc: bool | Sequence[bool] | NDArray[Any] = False,
        charge: int = 0,
        spin: int = 1,
        device: torch.device | str = "cpu",
    ) -> System:
        """One structure from arrays.

        Args:
            positions: shape (atoms, 3), Å.
            numbers: shape (atoms,), atomic numbers.
            cell: shape (3, 3), rows are lattice vectors in Å; None means no cell.
            pbc: one flag or three.
            charge: total charge in e.
            spin: multiplicity 2S + 1.
            device: where the tensors live.

        Raises:
            ValueError: if shapes disagree.
        """
        pos = np.array(np.asarray(positions), dtype=np.float64)
        num = np.array(np.asarray(numbers), dtype=np.int64)
        box = np.zeros((3, 3)) if cell is None else np.array(np.asarray(cell), dtype=np.float64)
        periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
        if pos.ndim != 2 or pos.shape[1] != 3 or num.shape != pos.shape[:1] or box.shape != (3, 3):
            raise ValueError(
                "`positions`, `numbers` and `cell` must have shapes (atoms, 3), (atoms,) and (3, 3), "
                f"got {pos.shape}, {num.shape} and {box.shape}"
            )
        system = System(
            positions=torch.from_numpy(pos),
            numbers=torch.from_numpy(num),
            cell=torch.from_numpy(box)[None],
            pbc=torch.from_numpy(periodic)[None],
            batch=torch.zeros(len(num), dtype=torch.int64),
            charge=torch.tensor([charge], dtype=torch.int64),
            spin=torch.tensor([spin], dtype=torch.int64),
        )
        return system.to(device)

    @staticmethod
    def stack(systems: Sequence[System]) -> System:
        """Join systems into one; structures keep their order.

        Raises:
            ValueError: if `systems` is empty.
        """
        if not systems:
            raise ValueError("`systems` is empty: give at least one structure")
        offsets = np.cumsum([0] + [s.n_structures for s in systems[:-1]])
        batch = [s.batch + int(offset) for s, offset in zip(systems, offsets, strict=True)]
        joined = {
            name: torch.cat([getattr(s, name) for s in systems])
            for name in ("positions", "numbers", "cell", "pbc", "charge", "spin")
        }
        return System(batch=torch.cat(batch), **joined)


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a `System`; quantities that were not asked for are None.

    Attributes:
        energy: potential energy of each structure in eV, float64.
        energies: contribution of each atom in eV, float64; they sum to `energy`.
        forces: in eV/Å, float64.
        stress: (1/V) dE/dstrain in eV/Å^3, float64, symmetric, positive under tension;
            NaN for structures without a periodic direction or without a volume.
        force_source: "gradient" (forces are -dE/dpositions), "head" (a separate network output,
            not the gradient of any energy) or None.
        extrapolation: distance of each atom from the training data (`TrainingDomain.distance`), or None if
            the model does not know its training data.
    """

    energy: Float[Tensor, " structures"]
    energies: Float[Tensor, " atoms"]
    forces: Float[Tensor, "atoms 3"] | None = None
    stress: Float[Tensor, "structures 3 3"] | None = None
    force_source: str | None = None
    extrapolation: Float[Tensor, " atoms"] | None = None

    def detach(self) -> Prediction:
        """The same numbers without their computational graph."""
        forces = None if self.forces is None else self.forces.detach()
        stress = None if self.stress is None else self.stress.detach()
        return replace(self, energy=self.energy.detach(), energies=self.energies.detach(), forces=forces, stress=stress)
