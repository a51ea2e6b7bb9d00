"""Edge vectors: kernels against the reference, with gradients to positions and strain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import Structures, edge_vectors
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.neighbors import NeighborList

Edges = Callable[[Sequence[int]], EdgeIndex]


class Case:
    """Random inputs; strains are not small, so that their effect on forces shows."""

    def __init__(self, index: EdgeIndex, structures: Structures, generator: torch.Generator) -> None:
        self.index, self.structures = index, structures
        shapes = [(index.n_atoms, 3), (structures.n_structures, 3, 3), (index.n_edges, 3), (index.n_edges, 3)]
        random = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        positions, strain, self.image, self.upstream = (x.to(index.center.device) for x in random)
        self.leaves = positions.requires_grad_(True), strain.requires_grad_(True)

    def results(self, implementation: KernelImplementation, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        inputs = (*(x.to(dtype) for x in (*self.leaves, self.image)), self.structures, self.index)
        vector = edge_vectors(*inputs, implementation=implementation)
        return [vector.detach(), *torch.autograd.grad(vector, self.leaves, self.upstream.to(dtype))]


def one_structure(index: EdgeIndex) -> Structures:
    return Structures.from_batch(torch.zeros(index.n_atoms, dtype=torch.int64, device=index.center.device), 1)


def check(case: Case) -> None:
    for kernel, reference in zip(case.results("triton"), case.results("reference"), strict=True):
        torch.testing.assert_close(kernel, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", [(0,), (2,), (1, 0), (0, 1, 31, 33, 0, 120)], ids=str)
def test_kernels_equal_the_reference(counts: tuple[int, ...], edge_index: Edges, generator) -> None:
    index = edge_index(counts)
    check(Case(index, one_structure(index), generator))


@pytest.mark.parametrize("n_atoms", [63, 100, pytest.param(1023, marks=pytest.mark.slow)])
def test_odd_numbers_of_atoms(n_atoms: int, edge_index: Edges, generator) -> None:
    index = edge_index([atom % 4 for atom in range(n_atoms)])
    check(Case(index, one_structure(index), generator))


def test_structures_of_a_batch_have_strains_of_their_own(device: torch.device, generator) -> None:
    center, source = torch.tensor([0, 0, 1, 3, 3, 4]), torch.tensor([1, 1, 0, 4, 3, 3])
    pairs = NeighborList.from_pairs(center, source, torch.zeros(6, 3, dtype=torch.int64), n_atoms=5, cutoff=1.0)
    index = EdgeIndex.from_neighbors(pairs).to(device)
    structures = Structures.from_batch(torch.tensor([0, 0, 1, 3, 3], device=device), 4)
    check(Case(index, structures, generator))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_any_number_of_neighbors(counts: list[int], edge_index: Edges, generator) -> None:
    index = edge_index(counts)
    check(Case(index, one_structure(index), generator))


def test_single_precision_is_summed_in_double(edge_index: Edges, generator) -> None:
    index = edge_index((31, 33, 120))
    case = Case(index, one_structure(index), generator)
    for kernel, reference in zip(case.results("triton", torch.float32), case.results("reference"), strict=True):
        atol = 4 * torch.finfo(torch.float32).eps * float(reference.abs().max())
        torch.testing.assert_close(kernel.double(), reference, rtol=0, atol=atol)


def test_repeated_calls_agree_to_the_last_bit(edge_index: Edges, generator) -> None:
    index = edge_index((5, 0, 40))
    case = Case(index, one_structure(index), generator)
    for first, second in zip(case.results("triton"), case.results("triton"), strict=True):
        assert first.equal(second)
