"""Padding changes shapes and nothing else."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.padding import Capacity, pad_graph, pad_system
from e2former_calc.potentials.system import System

CUTOFF = 4.0


@pytest.fixture
def system() -> System:
    molecule = System.single([[0.0, 0, 0], [0, 0, 1.0], [0, 1.1, 0]], [8, 1, 1])
    crystal = System.single([[0.0, 0, 0], [1.5, 1.6, 1.4]], [8, 1], cell=torch.eye(3) * 3.2, pbc=[True] * 3)
    return System.stack([molecule, crystal])


def test_padded_edges_keep_their_vectors(system):
    graph = neighbor_list(system, CUTOFF)
    padded_system = pad_system(system, Capacity(3, 9, (512,)))
    padded = pad_graph(graph, system, atoms=9, edges=512)
    edges = padded.edges(padded_system.positions, padded_system.batch, None, CUTOFF)
    expected = graph.vectors(system.positions, system.cell, system.batch)
    assert torch.allclose(edges.vector[: graph.n_edges], expected, rtol=0.0, atol=1e-12)


def test_padding_edges_join_a_padding_atom_at_the_cutoff(system):
    padded_system = pad_system(system, Capacity(3, 9, (512,)))
    graph = neighbor_list(system, CUTOFF)
    padded = pad_graph(graph, system, atoms=9, edges=512)
    edges = padded.edges(padded_system.positions, padded_system.batch, None, CUTOFF)
    assert set(padded.center[graph.n_edges :].tolist()) == set(padded.source[graph.n_edges :].tolist()) == {8}
    assert torch.equal(edges.distance[graph.n_edges :], torch.full((512 - graph.n_edges,), CUTOFF, dtype=torch.float64))


def test_padding_atoms_are_a_structure_of_their_own(system):
    padded = pad_system(system, Capacity(4, 9, (512,)))
    assert padded.sizes.tolist() == [3, 2, 0, 4]
    assert torch.equal(padded.positions[:5], system.positions)


def test_capacity_leaves_room_for_padding(system):
    graph = neighbor_list(system, CUTOFF)
    capacity = Capacity.around(2, 5, [graph.n_edges])
    assert capacity.holds(system, [graph])
    assert not Capacity(2, 6, capacity.edges).holds(system, [graph])
    assert not Capacity(3, 5, capacity.edges).holds(system, [graph])
    assert not Capacity(3, 6, (graph.n_edges - 1,)).holds(system, [graph])


def test_what_does_not_fit_is_refused(system):
    with pytest.raises(ValueError, match="2 structures, 5 atoms exceeds"):
        pad_system(system, Capacity(3, 5, (512,)))
    with pytest.raises(ValueError, match="do not fit"):
        pad_graph(neighbor_list(system, CUTOFF), system, atoms=9, edges=3)
