"""Specification of edge vectors: agreement with neighbour lists, forces and virial, refused inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import Structures, edge_vectors
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System


@pytest.fixture
def crystal() -> System:
    cell = [[3.1, 0.0, 0.0], [0.4, 3.3, 0.0], [0.0, 0.2, 2.9]]
    return System.single([[0.1, 0.0, 0.3], [1.4, 1.7, 1.2]], [6, 8], cell=cell, pbc=[True, True, True])


@pytest.fixture
def neighbors(crystal: System) -> NeighborList:
    return neighbor_list(crystal, 3.5)


def vectors(crystal: System, neighbors: NeighborList, positions: Tensor, strain: Tensor) -> Tensor:
    image = neighbors.shift.to(torch.float64) @ crystal.cell[0]
    structures, index = Structures.from_batch(crystal.batch, 1), EdgeIndex.from_neighbors(neighbors)
    return edge_vectors(positions, strain, image, structures, index, implementation="reference")


def test_vectors_are_those_of_the_neighbor_list(crystal, neighbors) -> None:
    found = vectors(crystal, neighbors, crystal.positions, torch.zeros(1, 3, 3, dtype=torch.float64))
    expected = neighbors.vectors(crystal.positions, crystal.cell, crystal.batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_strain_deforms_positions_and_cell_alike(crystal, neighbors, generator) -> None:
    strain = 0.1 * torch.randn(1, 3, 3, generator=generator, dtype=torch.float64)
    deformed = torch.eye(3, dtype=torch.float64) + strain[0]
    expected = neighbors.vectors(crystal.positions @ deformed, crystal.cell @ deformed, crystal.batch)
    torch.testing.assert_close(vectors(crystal, neighbors, crystal.positions, strain), expected, rtol=0, atol=1e-13)


def test_reference_is_twice_differentiable(crystal, neighbors, generator) -> None:
    strain = 0.1 * torch.randn(1, 3, 3, generator=generator, dtype=torch.float64)
    few = neighbors.within(crystal, 2.4)
    leaves = (crystal.positions.clone().requires_grad_(True), strain.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda x, e: vectors(crystal, few, x, e), leaves)
    assert torch.autograd.gradgradcheck(lambda x, e: vectors(crystal, few, x, e), leaves)


def test_sizes_that_do_not_fit_are_refused(crystal, neighbors) -> None:
    with pytest.raises(ValueError, match=r"2 positions, .* 2 strains for 2 atoms, .* 1 structures"):
        vectors(crystal, neighbors, crystal.positions, torch.zeros(2, 3, 3, dtype=torch.float64))


def test_mixed_precision_is_refused(crystal, neighbors) -> None:
    with pytest.raises(ValueError, match=r"of one dtype, .*got \['torch.float32', 'torch.float64'\]"):
        vectors(crystal, neighbors, crystal.positions.float(), torch.zeros(1, 3, 3, dtype=torch.float64))


def test_atoms_of_a_structure_follow_one_another() -> None:
    with pytest.raises(ValueError, match="`batch` must be ascending"):
        Structures.from_batch(torch.tensor([0, 1, 0]), 2)
