"""Which atoms belong to which structure of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Structures:
    """Structures of a batch, whose atoms follow one another.

    Attributes:
        batch: structure of every atom, ascending.
        atom_ptr: atoms of structure s are atom_ptr[s] ... atom_ptr[s + 1] - 1.
    """

    batch: Int[Tensor, " atoms"]
    atom_ptr: Int[Tensor, " structures_plus_one"]

    @staticmethod
    def from_batch(batch: Int[Tensor, " atoms"], n_structures: int) -> Structures:
        """From the structure of every atom.

        Raises:
            ValueError: if the atoms of a structure do not follow one another.
        """
        if bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("`batch` must be ascending: atoms of one structure follow one another")
        atom_ptr = torch.zeros(n_structures + 1, dtype=torch.int64, device=batch.device)
        torch.cumsum(torch.bincount(batch, minlength=n_structures), dim=0, out=atom_ptr[1:])
        return Structures(batch.to(torch.int32), atom_ptr.to(torch.int32))

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return int(self.atom_ptr.shape[0]) - 1
