"""Which atoms form a cluster: `KMeansClusters` decides by position, `FixedClusters` says what the user said.

The energy is a smooth function of positions as long as the assignment stays the same, and jumps when it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.neighbors import squared_length
from e2former_calc.potentials.system import System


@runtime_checkable
class ClusterRule(Protocol):
    """Assigns every atom to a cluster."""

    def __call__(self, system: System) -> Int[Tensor, " atoms"]:
        """Cluster of each atom, counted within its structure from zero."""
        ...

    def centres(self, system: System) -> Float[Tensor, "clusters 3"] | None:
        """Centre of each cluster in Å, structure by structure; None for the means of the members."""
        ...


@dataclass(frozen=True)
class FixedClusters:
    """The same assignment for every structure.

    Attributes:
        ids: cluster of each atom of one structure; integers from zero.
        positions: centre of each cluster in Å, for the structure at hand; None for the means of the members. Given
            centres follow the members in derivatives, but they are not moved: they belong to one set of coordinates.
    """

    ids: tuple[int, ...]
    positions: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        known = sorted(set(self.ids))
        if known != list(range(len(known))):
            raise ValueError(f"cluster numbers must be 0 ... n - 1 without gaps, got {known}")
        if self.positions is not None and len(self.positions) != len(known):
            raise ValueError(f"{len(self.positions)} centres were given for {len(known)} clusters")

    def __call__(self, system: System) -> Int[Tensor, " atoms"]:
        """See `ClusterRule`.

        Raises:
            ValueError: for a structure with another number of atoms.
        """
        wrong = [n for n in system.sizes.tolist() if n != len(self.ids)]
        if wrong:
            raise ValueError(f"clusters were given for {len(self.ids)} atoms, but a structure has {wrong[0]}")
        return torch.tensor(self.ids, device=system.numbers.device).repeat(system.n_structures)

    def centres(self, system: System) -> Float[Tensor, "clusters 3"] | None:
        """See `ClusterRule`."""
        if self.positions is None:
            return None
        return torch.tensor(self.positions, dtype=torch.float64, device=system.numbers.device).repeat(
            system.n_structures, 1
        )


@dataclass(frozen=True)
class UnknownClusters:
    """Placeholder of models whose clusters the user must supply."""

    def __call__(self, system: System) -> Int[Tensor, " atoms"]:
        """Always refuses.

        Raises:
            ValueError: says how to supply clusters.
        """
        raise ValueError(
            f"this model needs an assignment of the {system.n_atoms} atoms to fragments: give the fragment of each "
            "atom as clusters=[0, 0, 1, ...]"
        )

    def centres(self, system: System) -> None:
        """See `ClusterRule`."""


def cluster_count(n_atoms: int) -> int:
    """Number of clusters of a structure in the official code: 1 up to 29 atoms, 2 up to 44, ..."""
    return max(1, n_atoms // min(15, n_atoms // 2 + 1))


@dataclass(frozen=True)
class KMeansClusters:
    """k-means on positions, independent of the order of atoms, of orientation, and of other structures.

    As many clusters as in the official code, which seeds with random numbers and therefore depends on the order of
    atoms. Here the first seed is the atom farthest from the
    centroid and each further one the atom farthest from all seeds.
    """

    iterations: int = 300

    def __call__(self, system: System) -> Int[Tensor, " atoms"]:
        """See `ClusterRule`."""
        parts = [self._structure(x.detach()) for x in system.positions.split(system.sizes.tolist())]
        return torch.cat(parts)

    def centres(self, system: System) -> None:
        """See `ClusterRule`."""

    def _structure(self, positions: Float[Tensor, "atoms 3"]) -> Int[Tensor, " atoms"]:
        n = len(positions)
        count = cluster_count(n) if n else 0
        centres = self._seeds(positions, count)
        assigned = torch.full((n,), -1, device=positions.device)
        for _ in range(self.iterations):
            distance = squared_length(positions[:, None] - centres[None])
            nearest = distance.argmin(1)
            if bool((nearest == assigned).all()):
                break
            assigned = nearest
            members = torch.nn.functional.one_hot(assigned, count).to(positions.dtype)
            filled = members.sum(0)[:, None]
            means = (members.T @ positions) / filled.clamp_min(1.0)
            centres = torch.where(filled > 0, means, centres)
        return assigned

    @staticmethod
    def _seeds(positions: Float[Tensor, "atoms 3"], count: int) -> Float[Tensor, "clusters 3"]:
        reference = positions.mean(0, keepdim=True)
        seeds: list[Tensor] = []
        for _ in range(count):
            away = squared_length(positions[:, None] - reference[None]).amin(1)
            # In steps of 1e-9 Å^2, so that rounding does not decide between symmetry-equivalent atoms.
            seeds.append(positions[torch.round(away * 1e9).argmax()])
            reference = torch.stack(seeds)
        return torch.stack(seeds) if seeds else positions
