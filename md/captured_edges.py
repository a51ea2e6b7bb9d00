"""Edge lists in arrays of fixed capacity: candidates with a skin, and the choice among them.

Two ways lead from the list with its skin to the edges of the network, both to exactly the edges of a fresh list, in
the same order:

* `SelectedEdges` chooses by operations of fixed shape (distance windows, the nearest so many), without a look at
  any value on the host, so that the choice can be recorded together with the network. Chosen edges are moved to
  the front (prefix sum and scatter): the network pays for the capacity of the cutoff, not for that of the skin.
* `HostEdges` asks the model, and fills its lists up. It serves every model with edges of finite length.

Free slots hold edges that join one atom of padding with itself; nothing of them reaches other atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.neighbors import NeighborList, squared_length
from e2former_calc.potentials.padding import PaddedGraph, pad_graph
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

HEADROOM = 1.2
"""Capacity over what is needed when arrays are made or have become too small."""
SHARE = 32
"""Each replica's share of a capacity is a multiple of this."""

_DISTANCE_STEPS = 1e9
"""Distances are ranked in steps of 1e-9 Å, as in `NeighborList.nearest`."""


def capacity_for(edges: int, replicas: int) -> int:
    """Room for so many edges and some more, in equal shares of all replicas."""
    share = math.ceil(HEADROOM * max(edges, 1) / replicas / SHARE) * SHARE
    return share * replicas


def enlarged(capacity: Sequence[int], counts: Sequence[int], replicas: int) -> tuple[list[int], bool]:
    """Capacities that hold so many edges, and whether they differ from those before; none becomes smaller."""
    found = [
        have if need <= have else capacity_for(need, replicas) for need, have in zip(counts, capacity, strict=True)
    ]
    return found, found != list(capacity)


@dataclass(frozen=True)
class EdgeRule:
    """Which pairs a graph of the network has.

    Attributes:
        upper: largest distance in Å, inclusive.
        lower: smallest distance in Å, inclusive.
        heavy_sources: only sources other than hydrogen.
        nearest: only so many shortest edges of each center; None for all.
    """

    upper: float
    lower: float = 0.0
    heavy_sources: bool = False
    nearest: int | None = None


def edge_rules(potential: EnergyPotential, system: System) -> tuple[EdgeRule, ...] | None:
    """The rules by which a network chooses its edges; None if they are not of this simple kind.

    The official selection in periodic systems depends on the cell that each atom lies in, which only the model knows.
    """
    model: object = potential.model
    official = potential.neighbor_cap == "official"
    if not isinstance(model, E2FormerV2) or model.config.variant == "legacy":
        return None
    if official and bool(system.pbc.any()):
        return None
    config = model.config
    short = EdgeRule(config.max_radius, nearest=config.max_neighbors if official else None)
    if config.long_range == "none":
        return (short,)
    most = config.long_max_neighbors if official else None
    return short, EdgeRule(config.long_upper, lower=config.long_lower, heavy_sources=True, nearest=most)


class EdgeSource(Protocol):
    """Edges of the network in arrays of fixed shape.

    Attributes:
        every_time: whether `load` is needed before every evaluation, and not only for a new list.
        capacity: sizes of the arrays.
        inputs: the arrays, of which `graphs` is a function; others after the capacity has changed.
    """

    every_time: bool
    capacity: list[int]
    inputs: list[Tensor]

    def load(self, system: System, neighbors: NeighborList) -> bool:
        """Fill the arrays from a list that holds all pairs within the cutoff; True if they had to be made anew.

        Raises:
            ValueError: if the network has edges of any length.
        """
        ...

    def grow(self, counts: Sequence[int]) -> bool:
        """Make room for what `graphs` has counted; True if there was too little, and `graphs` has other shapes now."""
        ...

    def graphs(
        self,
        inputs: Sequence[Tensor],
        positions: Float[Tensor, "padded_atoms 3"],
        cell: Float[Tensor, "padded_structures 3 3"],
    ) -> tuple[list[PaddedGraph], list[Int[Tensor, ""]]]:
        """The graphs, and how many edges they need where this depends on positions: a function of fixed shapes."""
        ...


class SelectedEdges:
    """Chooses by rules from a list with skin; see `EdgeSource`.

    Args:
        rules: one for each graph of the network.
        padded: the system with its atom of padding.

    The capacities are those of the candidates and of each graph.
    """

    every_time = False

    def __init__(self, rules: Sequence[EdgeRule], padded: System) -> None:
        self.rules, self._padded = tuple(rules), padded
        self.capacity = [0] * (1 + len(self.rules))
        self.inputs: list[Tensor] = []
        # A free slot is as long as the cutoff, where envelopes end.
        self._fillings = [padded.positions.new_tensor([rule.upper, 0.0, 0.0]) for rule in self.rules]

    def load(self, system: System, neighbors: NeighborList) -> bool:
        """See `EdgeSource`."""
        positions, cell = pad(system.positions, (0, 0, 0, 1)), pad(system.cell, (0, 0, 0, 0, 0, 1))
        found = (neighbors.center, neighbors.source, neighbors.shift, neighbors.row_ptr)
        vector = positions[found[0]] - positions[found[1]] - self._image(found[0], found[2], cell)
        wanted = [int(self._chosen(rule, found, squared_length(vector)).sum()) for rule in self.rules]
        grown = self._make_room([neighbors.n_edges + 1, *wanted])
        if grown or not self.inputs:
            self.inputs = self._empty()
        atom = self._padded.n_atoms - 1
        for buffer, values, filling in zip(self.inputs[:3], found[:3], (atom, atom, 0), strict=True):
            buffer[: neighbors.n_edges] = values
            buffer[neighbors.n_edges :] = filling
        self.inputs[3].copy_(neighbors.row_ptr)
        return grown

    def grow(self, counts: Sequence[int]) -> bool:
        """See `EdgeSource`."""
        return self._make_room([0, *counts])

    def graphs(
        self, inputs: Sequence[Tensor], positions: Tensor, cell: Tensor
    ) -> tuple[list[PaddedGraph], list[Tensor]]:
        """See `EdgeSource`."""
        center, source, shift, row_ptr = inputs
        image = self._image(center, shift, cell)
        squared = squared_length(positions[center] - positions[source] - image)
        graphs, counts = [], []
        for rule, size, filling in zip(self.rules, self.capacity[1:], self._fillings, strict=True):
            keep = self._chosen(rule, (center, source, shift, row_ptr), squared)
            before = pad(torch.cumsum(keep, 0), (1, 0))
            # One slot too many takes what is left out; free slots show the last candidate, which is padding.
            target = torch.where(keep, before[:-1], size).clamp(max=size)
            last = torch.full((size + 1,), len(center) - 1, device=center.device)
            slot = last.scatter(0, target, torch.arange(len(center), device=center.device))[:size]
            free = (center[slot] == self._padded.n_atoms - 1)[:, None]
            row_ends = pad(before[row_ptr].clamp(max=size), (0, 1), value=size)
            graphs.append(PaddedGraph(center[slot], source[slot], torch.where(free, filling, image[slot]), row_ends))
            counts.append(before[-1])
        return graphs, counts

    def _make_room(self, counts: Sequence[int]) -> bool:
        self.capacity, grown = enlarged(self.capacity, counts, self._padded.n_structures - 1)
        return grown

    def _empty(self) -> list[Tensor]:
        device, candidates, atoms = self._padded.batch.device, self.capacity[0], self._padded.n_atoms
        shapes = ((candidates,), (candidates,), (candidates, 3), (atoms,))
        return [torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes]

    def _image(self, center: Tensor, shift: Tensor, cell: Tensor) -> Float[Tensor, "edges 3"]:
        """What is subtracted from r_center - r_source, in the arithmetic of `NeighborList.vectors`."""
        lattice, n = cell[self._padded.batch[center]], shift.to(cell.dtype)
        return n[:, :1] * lattice[:, 0] + n[:, 1:2] * lattice[:, 1] + n[:, 2:] * lattice[:, 2]

    def _chosen(
        self, rule: EdgeRule, candidates: tuple[Tensor, ...], squared: Float[Tensor, " edges"]
    ) -> Bool[Tensor, " edges"]:
        center, source, _, row_ptr = candidates
        keep = (squared <= rule.upper**2) & (center < self._padded.n_atoms - 1)
        if rule.lower > 0.0:
            keep = keep & (squared >= rule.lower**2)
        if rule.heavy_sources:
            keep = keep & (self._padded.numbers[source] > 1)
        if rule.nearest is None:
            return keep
        step = torch.round(squared.sqrt() * _DISTANCE_STEPS).to(torch.int64)
        by_distance = torch.argsort(torch.where(keep, step, torch.iinfo(torch.int64).max), stable=True)
        order = by_distance[torch.argsort(center[by_distance], stable=True)]
        first = pad(row_ptr, (0, 1), value=0)[center[order]]
        rank = torch.arange(len(order), device=order.device) - first
        near = torch.zeros_like(keep).scatter(0, order, rank < rule.nearest)
        return keep & near


class HostEdges:
    """The model chooses, before every evaluation; see `EdgeSource`.

    Args:
        potential: asked for its graphs.
        padded: the system with its atom of padding.
    """

    every_time = True

    def __init__(self, potential: EnergyPotential, padded: System) -> None:
        self._potential, self._padded = potential, padded
        self.capacity: list[int] = []
        self.inputs: list[Tensor] = []

    def load(self, system: System, neighbors: NeighborList) -> bool:
        """See `EdgeSource`."""
        graphs = self._potential.graphs(system, neighbors)
        if any(math.isinf(graph.cutoff) for graph in graphs):
            raise ValueError(
                "this network has edges of any length (clusters), whose number cannot be fixed: use execution='eager'"
            )
        counts, replicas = [graph.n_edges for graph in graphs], self._padded.n_structures - 1
        self.capacity, grown = enlarged(self.capacity or [0] * len(counts), counts, replicas)
        filled = [
            pad_graph(graph, system, atoms=self._padded.n_atoms, edges=size)
            for graph, size in zip(graphs, self.capacity, strict=True)
        ]
        tensors = [tensor for graph in filled for tensor in (graph.center, graph.source, graph.image, graph.row_ptr)]
        if grown or not self.inputs:
            self.inputs = [tensor.clone() for tensor in tensors]
        else:
            for buffer, tensor in zip(self.inputs, tensors, strict=True):
                buffer.copy_(tensor)
        return grown

    def grow(self, counts: Sequence[int]) -> bool:
        """See `EdgeSource`; `load` has seen to it."""
        del counts
        return False

    def graphs(
        self, inputs: Sequence[Tensor], positions: Tensor, cell: Tensor
    ) -> tuple[list[PaddedGraph], list[Tensor]]:
        """See `EdgeSource`; the numbers are known on the host."""
        del positions, cell
        return [PaddedGraph(*inputs[k : k + 4]) for k in range(0, len(inputs), 4)], []
