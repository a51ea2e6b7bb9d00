"""Systems of fixed shape, for compiled graphs: padding atoms and edges that change nothing.

A compiled graph is made for one number of structures, atoms and edges. A smaller system is filled up with
one structure of padding atoms; the padding edges join its last atom with itself at the cutoff, where the
envelope of every model and its derivative are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from e2former_calc.potentials.interface import Edges
from e2former_calc.potentials.neighbors import NeighborList, squared_length
from e2former_calc.potentials.system import System

ROUND_EDGES = 64
"""Numbers of edges are rounded up to a multiple of this."""


@dataclass(frozen=True)
class Capacity:
    """Sizes of a padded system.

    Attributes:
        structures: including the one of padding atoms.
        atoms: including at least one of padding.
        edges: of each graph.
    """

    structures: int
    atoms: int
    edges: tuple[int, ...]

    @staticmethod
    def around(structures: int, atoms: int, edges: Sequence[int]) -> Capacity:
        """The smallest capacity for systems up to these sizes."""
        rounded = tuple(-(-max(n, 1) // ROUND_EDGES) * ROUND_EDGES for n in edges)
        return Capacity(structures + 1, atoms + 1, rounded)

    def holds(self, system: System, graphs: Sequence[NeighborList]) -> bool:
        """True if the system fits."""
        fits = [graph.n_edges <= n for graph, n in zip(graphs, self.edges, strict=True)]
        return system.n_structures < self.structures and system.n_atoms < self.atoms and all(fits)


@dataclass(frozen=True)
class PaddedGraph:
    """Edges of fixed number.

    Attributes:
        center, source: atoms of each edge; not sorted by center behind the true edges.
        image: what is subtracted from r_center - r_source, in Å (lattice translation of the source).
        row_ptr: as in `NeighborList`, of the padded edges.
    """

    center: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    image: Float[Tensor, "edges 3"]
    row_ptr: Int[Tensor, " atoms_plus_one"]

    def edges(
        self,
        positions: Float[Tensor, "atoms 3"],
        batch: Int[Tensor, " atoms"],
        strain: Float[Tensor, "structures 3 3"] | None,
        cutoff: float,
    ) -> Edges:
        """Geometry as a differentiable function of positions and strain."""
        vector = positions[self.center] - positions[self.source] - self.image
        if strain is not None:
            vector = vector + (vector[:, None] @ strain[batch[self.center]])[:, 0]
        shift = torch.zeros_like(self.image, dtype=torch.int64)
        neighbors = NeighborList(self.center, self.source, shift, self.row_ptr, cutoff)
        return Edges(neighbors=neighbors, vector=vector, distance=squared_length(vector).sqrt())


def pad_system(system: System, capacity: Capacity) -> System:
    """The system with a last structure of padding atoms.

    Raises:
        ValueError: if it does not fit.
    """
    atoms = capacity.atoms - system.n_atoms
    structures = capacity.structures - system.n_structures
    if atoms < 1 or structures < 1:
        raise ValueError(f"a system of {system.n_structures} structures, {system.n_atoms} atoms exceeds {capacity}")
    return System(
        numbers=torch.cat([system.numbers, system.numbers[:1].expand(atoms)]),
        positions=pad(system.positions, (0, 0, 0, atoms)),
        batch=pad(system.batch, (0, atoms), value=capacity.structures - 1),
        cell=pad(system.cell, (0, 0, 0, 0, 0, structures)),
        pbc=pad(system.pbc, (0, 0, 0, structures)),
        charge=pad(system.charge, (0, structures)),
        spin=pad(system.spin, (0, structures), value=1),
    )


def pad_graph(graph: NeighborList, system: System, *, atoms: int, edges: int) -> PaddedGraph:
    """The edges of `system`, filled up to `edges` edges among `atoms` atoms.

    Raises:
        ValueError: if they do not fit.
    """
    more = edges - graph.n_edges
    if more < 0 or atoms <= system.n_atoms:
        raise ValueError(f"{graph.n_edges} edges of {system.n_atoms} atoms do not fit into {edges} and {atoms}")
    shift = graph.shift.to(torch.float64)
    image = (shift[:, None] @ system.cell[system.batch[graph.center]])[:, 0]
    filling = image.new_tensor([graph.cutoff, 0.0, 0.0]).expand(more, 3)
    row_ptr = pad(graph.row_ptr, (0, atoms - system.n_atoms), value=graph.n_edges)
    row_ptr[-1] = edges
    return PaddedGraph(
        center=pad(graph.center, (0, more), value=atoms - 1),
        source=pad(graph.source, (0, more), value=atoms - 1),
        image=torch.cat([image, filling]),
        row_ptr=row_ptr,
    )
