"""Batches of labelled structures with their neighbour lists, which are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.loss import Labels


class Batches:
    """A data set ready to be trained on.

    Args:
        dataset: labelled structures.
        cutoff: of the potential, in Å.

    Raises:
        ValueError: for an empty set, or a structure that has no neighbour list, with its number.
    """

    def __init__(self, dataset: Dataset, cutoff: float) -> None:
        if len(dataset) == 0:
            raise ValueError(f"there are no structures in {dataset.source}")
        self.dataset = dataset
        self._lists: list[NeighborList] = []
        for index, system in enumerate(dataset.systems):
            try:
                self._lists.append(neighbor_list(system, cutoff))
            except ValueError as error:
                raise ValueError(f"frame {index} of {dataset.source}: {error}") from None

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> tuple[System, NeighborList, Labels]:
        """Chosen structures as one system."""
        system, labels = self.labelled(indices)
        sizes = [self.dataset.systems[i].n_atoms for i in indices]
        return system, NeighborList.join([self._lists[i] for i in indices], sizes), labels

    def labelled(self, indices: Sequence[int]) -> tuple[System, Labels]:
        """Chosen structures as one system, without neighbours."""
        stresses = [self.dataset.stress[i] for i in indices]
        unknown = torch.full((3, 3), torch.nan, dtype=torch.float64)
        stress = torch.stack([unknown if s is None else s for s in stresses])
        labels = Labels(
            energy=self.dataset.energy[list(indices)],
            forces=torch.cat([self.dataset.forces[i] for i in indices]),
            stress=stress if bool(torch.isfinite(stress).any()) else None,
        )
        return System.stack([self.dataset.systems[i] for i in indices]), labels

    def mirrored(self, step: int, batch_size: int, seed: int) -> list[bool]:
        """Which structures of one training step are shown as mirror images, half of them in the mean."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return (torch.rand(batch_size, generator=generator) < 0.5).tolist()

    def in_order(self, batch_size: int) -> Iterator[tuple[System, NeighborList, Labels]]:
        """All structures, once."""
        for indices in self.chunks(batch_size):
            yield self.batch(indices)

    def chunks(self, batch_size: int) -> list[range]:
        """Numbers of all structures, in order, at most `batch_size` at once."""
        return [range(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size)]

    def indices(self, step: int, batch_size: int, seed: int) -> list[int]:
        """Structures of one training step: every epoch is a permutation that depends on seed and epoch only."""
        first = step * batch_size
        epochs = range(first // len(self), (first + batch_size - 1) // len(self) + 1)
        generator = torch.Generator()
        order: list[int] = []
        for epoch in epochs:
            generator.manual_seed(seed * 1_000_003 + epoch)
            order += torch.randperm(len(self), generator=generator).tolist()
        offset = first - epochs[0] * len(self)
        return order[offset : offset + batch_size]


def reflect(system: System, labels: Labels, chosen: Sequence[bool]) -> tuple[System, Labels]:
    """Mirror images (x becomes -x) of the chosen structures, with their labels; neighbour lists stay the same."""
    sign = torch.ones(system.n_structures, 3, dtype=torch.float64)
    sign[torch.tensor(chosen, dtype=torch.bool), 0] = -1.0
    by_atom = sign[system.batch]
    stress = None if labels.stress is None else labels.stress * sign[:, :, None] * sign[:, None, :]
    mirrored = replace(system, positions=system.positions * by_atom, cell=system.cell * sign[:, None, :])
    return mirrored, Labels(labels.energy, labels.forces * by_atom, stress)
