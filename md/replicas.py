"""Which atom belongs to which replica, and sums over the atoms of a replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Replicas:
    """Replicas that are stepped as one batch; the atoms of a replica stand together.

    Attributes:
        batch: replica of each atom, ascending from 0.
        sizes: number of atoms of each replica.
        local_index: index of each atom within its replica.
        first_atom: index of the first atom of each replica.
        ids: number by which a replica is known to the random generator; it keeps its id in whatever batch it runs.
    """

    batch: Int[Tensor, " atoms"]
    sizes: Int[Tensor, " replicas"]
    local_index: Int[Tensor, " atoms"]
    first_atom: Int[Tensor, " replicas"]
    ids: tuple[int, ...]

    @staticmethod
    def of_sizes(
        sizes: Sequence[int], *, ids: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Replicas:
        """Replicas with these numbers of atoms; `ids` are 0, 1, 2, ... unless given.

        Raises:
            ValueError: without replicas, for an empty one, or for ids that are not distinct numbers from 0 to 2^32 - 1.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every replica needs at least one atom, got the sizes {list(sizes)}")
        chosen = tuple(range(len(sizes))) if ids is None else tuple(int(i) for i in ids)
        if len(chosen) != len(sizes) or len(set(chosen)) != len(chosen) or min(chosen) < 0 or max(chosen) >= 2**32:
            raise ValueError(f"replica ids must be {len(sizes)} different numbers from 0 to 2^32 - 1, got {chosen}")
        count = torch.tensor(list(sizes), dtype=torch.int64)
        batch = torch.repeat_interleave(torch.arange(len(sizes)), count)
        local = torch.cat([torch.arange(n) for n in sizes])
        first = torch.cumsum(count, 0) - count
        return Replicas(batch.to(device), count.to(device), local.to(device), first.to(device), chosen)

    @property
    def n_replicas(self) -> int:
        """Number of replicas."""
        return int(self.sizes.shape[0])

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all replicas."""
        return int(self.batch.shape[0])

    def slices(self) -> list[slice]:
        """Where the atoms of each replica stand."""
        ends = torch.cumsum(self.sizes, 0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes.tolist(), strict=True)]

    def sum(self, values: Float[Tensor, "atoms *shape"]) -> Float[Tensor, "replicas *shape"]:
        """Sum over the atoms of each replica, one after the other: the same bits in whatever batch it runs."""
        return torch.segment_reduce(values, "sum", lengths=self.sizes, unsafe=True)

    def maximum(self, values: Float[Tensor, "atoms *shape"]) -> Float[Tensor, "replicas *shape"]:
        """Largest value among the atoms of each replica."""
        return torch.segment_reduce(values, "max", lengths=self.sizes, unsafe=True)

    def spread(self, values: Tensor) -> Tensor:
        """The value of its replica for each atom; of one replica a single row, for broadcasting."""
        return values if self.n_replicas == 1 else values.index_select(0, self.batch)
