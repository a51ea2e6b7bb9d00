"""Edge embedding: kernels against the reference, with all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2former_calc.potentials.kernels.edge_embedding import edge_embedding
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions

Edges = Callable[[Sequence[int]], EdgeIndex]
SMALL = (0, 1, 5, 2, 0)


class Case:
    """Random inputs; some edges are longer than the table, whose functions are 1 and differ little between knots."""

    def __init__(
        self, sizes: tuple[int, int, int], index: EdgeIndex, generator: torch.Generator, spacing: float = 0.5
    ) -> None:
        lmax, channels, derivatives = sizes
        n_edges, device = index.n_edges, index.center.device
        self.index = index
        width = (lmax + 1) * channels
        table = torch.randn(2, 9, derivatives, width, generator=generator, dtype=torch.float64).to(device)
        table *= spacing ** torch.tensor([1.0, 0.0, -1.0], device=device)[:derivatives, None]
        table[:, :, 0] += 1.0
        self.table = SplineTable.from_derivatives(table, spacing)
        self.pair = torch.randint(2, (n_edges,), generator=generator).to(device)
        distance = 9.0 * spacing * torch.rand(n_edges, generator=generator, dtype=torch.float64)
        harmonics = torch.randn(n_edges, (lmax + 1) ** 2, generator=generator, dtype=torch.float64)
        self.distance, self.harmonics = (x.to(device).requires_grad_(True) for x in (distance, harmonics))
        shape = (index.n_atoms, (lmax + 1) ** 2, channels)
        self.upstream = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    def results(self, implementation: KernelImplementation, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        functions = TabulatedFunctions(self.table.to(dtype), self.pair, self.distance)
        features = edge_embedding(functions, self.harmonics.to(dtype), self.index, implementation=implementation)
        gradients = torch.autograd.grad(features, (self.distance, self.harmonics), self.upstream.to(dtype))
        return [features.detach(), *gradients]


def check(case: Case) -> None:
    for kernel, reference in zip(case.results("triton"), case.results("reference"), strict=True):
        torch.testing.assert_close(kernel, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(2, 5, 2), (2, 4, 3), (1, 131, 2), (3, 1, 2)], ids=str)
def test_kernels_equal_the_reference(sizes: tuple[int, int, int], edge_index: Edges, generator) -> None:
    check(Case(sizes, edge_index(SMALL), generator))


@pytest.mark.parametrize("counts", [(0,), (2,), (1, 0), (31, 33, 1)], ids=str)
def test_few_atoms(counts: tuple[int, ...], edge_index: Edges, generator) -> None:
    check(Case((1, 2, 2), edge_index(counts), generator))


@pytest.mark.parametrize("n_atoms", [63, 100, pytest.param(1023, marks=pytest.mark.slow)])
def test_odd_numbers_of_atoms(n_atoms: int, edge_index: Edges, generator) -> None:
    check(Case((1, 1, 2), edge_index([1 if atom % 16 == 7 else 0 for atom in range(n_atoms)]), generator))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.sampled_from([2, 3])),
)
def test_any_shape(counts: list[int], sizes: tuple[int, int, int], edge_index: Edges, generator) -> None:
    check(Case(sizes, edge_index(counts), generator))


@pytest.mark.parametrize("derivatives", [2, 3], ids=["cubic", "quintic"])
@pytest.mark.parametrize("spacing", [0.5, 1e-4])
def test_single_precision_errs_by_rounding_only(spacing, derivatives, edge_index: Edges, generator) -> None:
    case = Case((2, 5, derivatives), edge_index(SMALL), generator, spacing)
    for kernel, reference in zip(case.results("triton", torch.float32), case.results("reference"), strict=True):
        atol = 100 * torch.finfo(torch.float32).eps * float(reference.abs().max())
        torch.testing.assert_close(kernel.double(), reference, rtol=0, atol=atol)


def test_repeated_calls_agree_to_the_last_bit(edge_index: Edges, generator) -> None:
    case = Case((2, 5, 2), edge_index(SMALL), generator)
    for first, second in zip(case.results("triton"), case.results("triton"), strict=True):
        assert first.equal(second)
