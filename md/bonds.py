"""Bonds by distance, and the molecules that they make.

i and j are bonded if they are closer than the sum of their covalent radii plus 0.6 Å, which finds just the
chemical bonds of organic molecules (rule of the MDsim benchmark, arXiv:2210.07237).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase.data import covalent_radii
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from e2former_calc.potentials.neighbors import neighbor_list, squared_length
from e2former_calc.potentials.system import System

TOLERANCE_A = 0.6


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of atoms, each once, that are closer than the bond distance.

    Attributes:
        first, second, shift: the pair r_first - (r_second + shift . cell).
        length: Å.
        radii: sum of the covalent radii in Å.
    """

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    shift: Int[Tensor, "pairs 3"]
    length: Float[Tensor, " pairs"]
    radii: Float[Tensor, " pairs"]

    def keys(self) -> set[tuple[int, ...]]:
        """(first, second, shift) of every pair."""
        rows = torch.cat([self.first[:, None], self.second[:, None], self.shift], 1)
        return {tuple(row) for row in rows.tolist()}


def bonded_pairs(system: System) -> Pairs:
    """All bonds of all structures, found on the host.

    Raises:
        ValueError: for structures that a neighbour list refuses.
    """
    system = system.to("cpu")
    radius = torch.from_numpy(covalent_radii)[system.numbers]
    edges = neighbor_list(system, 2.0 * float(radius.max()) + TOLERANCE_A)
    once = (edges.center < edges.source) | ((edges.center == edges.source) & _positive(edges.shift))
    edges = edges.select(once)
    length = squared_length(edges.vectors(system.positions, system.cell, system.batch)).sqrt()
    radii = radius[edges.center] + radius[edges.source]
    near = length < radii + TOLERANCE_A
    return Pairs(edges.center[near], edges.source[near], edges.shift[near], length[near], radii[near])


def molecules(pairs: Pairs, n_atoms: int) -> Int[Tensor, " atoms"]:
    """Index of the molecule of each atom, in the order of their first atoms."""
    first, second = pairs.first.numpy(), pairs.second.numpy()
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(n_atoms, n_atoms))
    _, label = connected_components(graph, directed=False)
    return torch.from_numpy(label.astype(np.int64))


def _positive(shift: Int[Tensor, "pairs 3"]) -> Tensor:
    """True for one of each two opposite shifts."""
    x, y, z = shift.unbind(-1)
    return (x > 0) | ((x == 0) & (y > 0)) | ((x == 0) & (y == 0) & (z > 0))
