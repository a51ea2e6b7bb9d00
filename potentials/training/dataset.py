"""Structures with energies and forces to train on, and their split into training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from ase.symbols import Symbols
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.system import System

MAX_ATOMIC_NUMBER = 118
"""Tables by atomic number have one row more: row 0 stands for no element."""


class DatasetError(ValueError):
    """A data set that cannot be read or used; the message names the file, the frame and the remedy."""


@dataclass(frozen=True)
class Dataset:
    """Labelled structures.

    Attributes:
        systems: one structure each, on the host, float64.
        energy: total energy of each structure in eV, float64.
        forces: in eV/Å, float64, one tensor per structure.
        stress: (1/V) dE/dstrain in eV/Å^3, float64, positive under tension; None where there is no label.
        source: names of the files, for the model card.

    Raises:
        DatasetError: if the numbers of structures, labels or atoms disagree.
    """

    systems: tuple[System, ...]
    energy: Float[Tensor, " frames"]
    forces: tuple[Float[Tensor, "_ 3"], ...]
    stress: tuple[Float[Tensor, "3 3"] | None, ...]
    source: str

    def __post_init__(self) -> None:
        lengths = (len(self.systems), len(self.energy), len(self.forces), len(self.stress))
        if len(set(lengths)) != 1:
            raise DatasetError(
                "`systems`, `energy`, `forces` and `stress` must have one entry per frame, "
                f"got {lengths[0]}, {lengths[1]}, {lengths[2]} and {lengths[3]}"
            )
        for frame, (system, forces) in enumerate(zip(self.systems, self.forces, strict=True)):
            if system.n_structures != 1:
                raise DatasetError(f"frame {frame} holds {system.n_structures} structures: give one System per frame")
            if forces.shape != (system.n_atoms, 3):
                raise DatasetError(
                    f"forces of frame {frame} have shape {tuple(forces.shape)} but the structure has "
                    f"{system.n_atoms} atoms: expected ({system.n_atoms}, 3)"
                )

    def __len__(self) -> int:
        return len(self.systems)

    @cached_property
    def elements(self) -> frozenset[int]:
        """Atomic numbers that occur."""
        return frozenset(self.compositions[0].tolist())

    @cached_property
    def compositions(self) -> tuple[Int[Tensor, " elements"], Int[Tensor, "frames elements"]]:
        """The atomic numbers that occur, ascending, and how many atoms of each a structure has."""
        if not self.systems:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64)
        present = torch.cat([system.numbers.unique() for system in self.systems]).unique()
        if len(present) and not 1 <= int(present[0]) <= int(present[-1]) <= MAX_ATOMIC_NUMBER:
            wrong = [number for number in present.tolist() if not 1 <= number <= MAX_ATOMIC_NUMBER]
            raise DatasetError(f"atomic numbers must be 1 ... {MAX_ATOMIC_NUMBER}, {self.source} has {wrong}")
        columns = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.int64)
        columns[present] = torch.arange(len(present))
        counts = [torch.bincount(columns[system.numbers], minlength=len(present)) for system in self.systems]
        return present, torch.stack(counts)

    @cached_property
    def formulas(self) -> frozenset[str]:
        """Chemical formulas that occur, in Hill order."""
        present, counts = self.compositions
        rows = torch.unique(counts, dim=0) if len(present) else ()
        return frozenset(Symbols(present.repeat_interleave(row).numpy()).get_chemical_formula("hill") for row in rows)

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The structures `indices`, in that order.

        Raises:
            DatasetError: for an index that is out of range.
        """
        wrong = [index for index in indices if not -len(self) <= index < len(self)]
        if wrong:
            raise DatasetError(f"frame {wrong[0]} does not exist: {self.source} has {len(self)} frames")
        return Dataset(
            systems=tuple(self.systems[i] for i in indices),
            energy=self.energy[torch.tensor(list(indices), dtype=torch.int64)],
            forces=tuple(self.forces[i] for i in indices),
            stress=tuple(self.stress[i] for i in indices),
            source=self.source,
        )

    @staticmethod
    def join(datasets: Sequence[Dataset]) -> Dataset:
        """All structures of several data sets, in order.

        Raises:
            DatasetError: if `datasets` is empty.
        """
        if not datasets:
            raise DatasetError("`datasets` is empty: give at least one data set")
        return Dataset(
            systems=tuple(system for part in datasets for system in part.systems),
            energy=torch.cat([part.energy for part in datasets]),
            forces=tuple(forces for part in datasets for forces in part.forces),
            stress=tuple(stress for part in datasets for stress in part.stress),
            source="; ".join(dict.fromkeys(part.source for part in datasets)),
        )


def split(dataset: Dataset, validation: int, seed: int) -> tuple[list[int], list[int]]:
    """Random split into training and validation frames.

    Neighbouring frames of a trajectory are nearly the same structure: a random split of one
    flatters the validation error. Give separate files there.

    Args:
        dataset: what to split.
        validation: number of validation frames.
        seed: of the random choice; the same seed gives the same split.

    Returns:
        Indices of the training and of the validation frames, each ascending.

    Raises:
        DatasetError: if `validation` is negative or leaves no training frame.
    """
    if validation < 0:
        raise DatasetError(f"`validation` is a number of frames and must not be negative, got {validation}")
    if validation >= len(dataset):
        raise DatasetError(
            f"`validation` = {validation} leaves no training frame of the {len(dataset)} in {dataset.source}: "
            "choose a smaller number or add data"
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[validation:]), sorted(order[:validation])
