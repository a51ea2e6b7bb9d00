"""Edges sorted both ways: by receiving and by sending atom, so that sums over either need no atomic additions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from e2former_calc.potentials.neighbors import NeighborList


@dataclass(frozen=True)
class EdgeIndex:
    """Directed edges in CSR order of their centers, and the same edges in the order of their sources.

    Indices are 32 bit (half the traffic of 64). Slots at the end that `row_ptr` does not reach are
    allowed, as a list of fixed capacity has them; `by_source` must not name them.

    Attributes:
        center: receiving atom of each edge, ascending.
        source: sending atom of each edge.
        row_ptr: edges of center i are row_ptr[i] ... row_ptr[i + 1] - 1.
        by_source: edges in ascending order of their source; equal sources in ascending order of edges.
        source_ptr: edges sent by atom j are by_source[source_ptr[j] ... source_ptr[j + 1] - 1].
    """

    center: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    row_ptr: Int[Tensor, " atoms_plus_one"]
    by_source: Int[Tensor, " edges"]
    source_ptr: Int[Tensor, " atoms_plus_one"]

    @staticmethod
    def from_neighbors(neighbors: NeighborList) -> EdgeIndex:
        """Sort the edges of a list by source; periodic images of one pair stay separate edges."""
        n_atoms = neighbors.row_ptr.shape[0] - 1
        source_ptr = torch.zeros_like(neighbors.row_ptr)
        torch.cumsum(torch.bincount(neighbors.source, minlength=n_atoms), dim=0, out=source_ptr[1:])
        by_source = torch.argsort(neighbors.source, stable=True)
        columns = (neighbors.center, neighbors.source, neighbors.row_ptr, by_source, source_ptr)
        return EdgeIndex(*(column.to(torch.int32) for column in columns))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return int(self.row_ptr.shape[0]) - 1

    @property
    def n_edges(self) -> int:
        """Number of edge slots."""
        return int(self.center.shape[0])

    def to(self, device: torch.device | str) -> EdgeIndex:
        """The same edges on another device."""
        columns = (self.center, self.source, self.row_ptr, self.by_source, self.source_ptr)
        return EdgeIndex(*(column.to(device) for column in columns))
