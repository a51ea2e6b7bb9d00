"""Fused attention: kernels against the reference, with all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention import AttentionEdges, fused_attention
from e2former_calc.potentials.kernels.fused_attention.inputs import Normalization
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions

Edges = Callable[[Sequence[int]], EdgeIndex]
SMALL = (0, 1, 5, 2, 0)


@dataclass(frozen=True)
class Variant:
    """What the kernels are compiled for; `derivatives` 0 stands for radial values given per edge."""

    heads: int = 3
    width: int = 5
    rows: int = 4
    channels: int = 6
    first_order: bool = True
    derivatives: int = 2
    spacing: float = 0.5
    normalization: Normalization = "softmax"
    absent_outside: bool = False


@dataclass(frozen=True)
class Case:
    """Inputs of one call."""

    variant: Variant
    index: EdgeIndex
    tensors: dict[str, Tensor]

    def run(self, implementation: KernelImplementation) -> Tensor:
        t, v = self.tensors, self.variant
        radial = t["radial"]
        if v.derivatives:
            table = SplineTable(t["table"], v.spacing)
            radial = TabulatedFunctions(
                table, (t["distance"] * 1000).to(torch.int64) % len(table.values), t["distance"]
            )
        edges = AttentionEdges(radial, t["envelope"], t.get("direction"), v.absent_outside)
        features = (t["query"], t["key"], t["value"])
        options = {"normalization": v.normalization, "implementation": implementation}
        return fused_attention(*features, edges, self.index, **options)

    def with_gradients(self, implementation: KernelImplementation, upstream: Tensor) -> list[Tensor]:
        names = ["query", "key", "value", "envelope", *(["direction"] if self.variant.first_order else [])]
        leaves = [self.tensors[name] for name in (*names, "distance" if self.variant.derivatives else "radial")]
        moment = self.run(implementation)
        return [moment.detach(), *torch.autograd.grad(moment, leaves, upstream.to(moment))]

    def to(self, dtype: torch.dtype) -> Case:
        """The same inputs in another arithmetic."""
        tensors = {name: x.detach().to(dtype).requires_grad_(x.requires_grad) for name, x in self.tensors.items()}
        return replace(self, tensors=tensors)


def make_case(variant: Variant, index: EdgeIndex, generator: torch.Generator) -> Case:
    """Random inputs; every fourth edge lies outside the envelope, and tables end before the longest edge.

    Tabulated functions are 1 and differ little between knots, as those of a fine table do.
    """
    n_atoms, n_edges, heads = index.n_atoms, index.n_edges, variant.heads
    shapes = {
        "query": (n_atoms, heads, variant.width),
        "key": (n_atoms, heads, variant.width),
        "value": (n_atoms, variant.rows, variant.channels),
        "radial": (n_edges, 2 * heads),
    }
    shapes |= {"direction": (n_edges, 3)} if variant.first_order else {}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["envelope"] = torch.rand(n_edges, generator=generator, dtype=torch.float64)
    tensors["envelope"][::4] = 0.0
    tensors["distance"] = 9.0 * variant.spacing * torch.rand(n_edges, generator=generator, dtype=torch.float64)
    tensors = {name: x.to(index.center.device).requires_grad_(True) for name, x in tensors.items()}
    table = torch.randn(3, 9, max(2, variant.derivatives), 2 * heads, generator=generator, dtype=torch.float64)
    table *= variant.spacing ** torch.tensor([1.0, 0.0, -1.0])[: table.shape[2], None]
    table[:, :, 0] += 1.0
    with_chords = SplineTable.from_derivatives(table, variant.spacing).values
    return Case(variant, index, tensors | {"table": with_chords.to(index.center.device)})


def upstream_of(variant: Variant, index: EdgeIndex, generator: torch.Generator) -> Tensor:
    shape = (index.n_atoms, 3 if variant.first_order else 1, variant.rows, variant.channels)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check(variant: Variant, index: EdgeIndex, generator: torch.Generator) -> None:
    case, upstream = make_case(variant, index, generator), upstream_of(variant, index, generator)
    pairs = zip(case.with_gradients("triton", upstream), case.with_gradients("reference", upstream), strict=True)
    for kernel, reference in pairs:
        torch.testing.assert_close(kernel, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("absent_outside", [False, True], ids=["outside counts", "outside absent"])
@pytest.mark.parametrize("first_order", [True, False], ids=["first order", "zero order"])
@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
def test_kernels_equal_the_reference(normalization, first_order, absent_outside, edge_index: Edges, generator) -> None:
    variant = Variant(normalization=normalization, first_order=first_order, absent_outside=absent_outside)
    check(variant, edge_index(SMALL), generator)


@pytest.mark.parametrize("derivatives", [0, 3], ids=["values per edge", "quintic table"])
def test_radial_functions_come_from_edges_or_tables(derivatives: int, edge_index: Edges, generator) -> None:
    check(Variant(derivatives=derivatives), edge_index(SMALL), generator)


@pytest.mark.parametrize("counts", [(0,), (2,), (1, 0), (3, 1)], ids=str)
def test_one_and_two_atoms(counts: tuple[int, ...], edge_index: Edges, generator) -> None:
    check(Variant(), edge_index(counts), generator)


def test_rows_around_powers_of_two(edge_index: Edges, generator) -> None:
    variant = Variant(heads=1, channels=1, width=1, derivatives=0, first_order=False)
    check(variant, edge_index((0, 31, 1, 33, 0)), generator)


def test_a_crowded_center(edge_index: Edges, generator) -> None:
    check(Variant(heads=1, channels=1, width=1, derivatives=0, first_order=False), edge_index((120, 0)), generator)


@pytest.mark.parametrize("n_atoms", [63, 100, pytest.param(1023, marks=pytest.mark.slow)])
def test_odd_numbers_of_atoms(n_atoms: int, edge_index: Edges, generator) -> None:
    counts = [1 if atom % 16 == 7 else 0 for atom in range(n_atoms)]
    check(Variant(heads=1, channels=1, width=1, first_order=False, derivatives=0), edge_index(counts), generator)


def test_more_heads_than_one_block(edge_index: Edges, generator) -> None:
    check(Variant(heads=37, channels=74, rows=1, width=2), edge_index((2, 3, 1)), generator)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    variant=st.builds(
        Variant,
        heads=st.just(2),
        width=st.integers(1, 9),
        rows=st.sampled_from([1, 4, 9, 16]),
        channels=st.sampled_from([2, 6, 8]),
        first_order=st.booleans(),
        derivatives=st.sampled_from([0, 2, 3]),
        spacing=st.sampled_from([0.5, 0.01]),
        normalization=st.sampled_from(["softmax", "softplus", "sigmoid"]),
        absent_outside=st.booleans(),
    ),
)
def test_any_shape_and_variant(counts: list[int], variant: Variant, edge_index: Edges, generator) -> None:
    check(variant, edge_index(counts), generator)


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-3], ids=["tied", "tied to rounding", "apart"])
def test_equal_scores_share_the_gradient_of_the_maximum(gap: float, edge_index: Edges, generator) -> None:
    """All neighbours have the same key; without the shared gradient the derivatives differ by 1e-3."""
    index = edge_index((4, 0, 3))
    case = make_case(Variant(derivatives=0, width=2), index, generator)
    with torch.no_grad():
        case.tensors["key"].fill_(0.3)
        case.tensors["radial"][:, :3] = 1.0
        case.tensors["radial"][::2, :3] += gap
    upstream = upstream_of(case.variant, index, generator)
    pairs = zip(case.with_gradients("triton", upstream), case.with_gradients("reference", upstream), strict=True)
    for kernel, reference in pairs:
        torch.testing.assert_close(kernel, reference, rtol=1e-12, atol=1e-12)


def test_the_maximum_is_the_mean_of_scores_that_equal_it_to_rounding(edge_index: Edges, generator) -> None:
    """Visible in single precision where the offset is most of the denominator."""
    variant = Variant(heads=1, width=1, rows=1, channels=1, first_order=False, derivatives=0)
    case = make_case(variant, edge_index((4,)), generator).to(torch.float32)
    with torch.no_grad():
        for tensor in case.tensors.values():
            tensor.fill_(1.0)
        case.tensors["radial"][::2, 0] += 6e-5
        case.tensors["envelope"].fill_(1e-5)
    torch.testing.assert_close(case.run("triton"), case.run("reference"), rtol=2e-6, atol=0)


@pytest.mark.parametrize("derivatives", [2, 3], ids=["cubic", "quintic"])
@pytest.mark.parametrize("spacing", [0.5, 1e-4])
@pytest.mark.parametrize("normalization", ["softmax", "softplus"])
def test_single_precision_errs_by_rounding_only(
    normalization: Normalization, spacing: float, derivatives: int, edge_index: Edges, generator
) -> None:
    index, variant = edge_index(SMALL), Variant(normalization=normalization, spacing=spacing, derivatives=derivatives)
    case, upstream = make_case(variant, index, generator), upstream_of(variant, index, generator)
    single = case.to(torch.float32)
    # Distances stay in double precision: that is how the kernels are used.
    single.tensors["distance"] = case.tensors["distance"]
    exact = case.with_gradients("reference", upstream)
    for kernel, reference in zip(single.with_gradients("triton", upstream), exact, strict=True):
        largest = float(reference.abs().max())
        atol = 200 * torch.finfo(torch.float32).eps * largest
        torch.testing.assert_close(kernel.double(), reference, rtol=0, atol=atol)


@pytest.mark.parametrize("score", [-40.0, 19.5, 20.5], ids=["far below zero", "below the threshold", "above"])
def test_softplus_is_that_of_torch_far_from_zero(score: float, edge_index: Edges, generator) -> None:
    case = make_case(Variant(normalization="softplus", derivatives=0, width=1), edge_index((2,)), generator)
    with torch.no_grad():
        case.tensors["query"].fill_(1.0)
        case.tensors["key"].fill_(score)
        case.tensors["radial"].fill_(1.0)
        case.tensors["envelope"].fill_(1.0)
    upstream = upstream_of(case.variant, case.index, generator)
    pairs = zip(case.with_gradients("triton", upstream), case.with_gradients("reference", upstream), strict=True)
    for kernel, reference in pairs:
        torch.testing.assert_close(kernel, reference, rtol=1e-12, atol=1e-28)


def test_large_scores_neither_overflow_nor_vanish(edge_index: Edges, generator) -> None:
    index = edge_index((3, 2))
    case = make_case(Variant(derivatives=0), index, generator)
    with torch.no_grad():
        case.tensors["query"] *= 300.0
    upstream = upstream_of(case.variant, index, generator)
    pairs = zip(case.with_gradients("triton", upstream), case.with_gradients("reference", upstream), strict=True)
    for kernel, reference in pairs:
        assert kernel.isfinite().all()
        torch.testing.assert_close(kernel, reference, rtol=1e-11, atol=1e-11)


def test_slots_beyond_the_last_row_are_never_read(edge_index: Edges, generator) -> None:
    index = edge_index((2, 3))
    shorter = replace(
        index,
        row_ptr=torch.tensor([0, 2, 4], dtype=torch.int32, device=index.center.device),
        by_source=index.by_source[index.by_source < 4],
        source_ptr=torch.bincount(index.source[:4], minlength=2).cumsum(0).to(torch.int32),
    )
    shorter = replace(shorter, source_ptr=torch.cat([shorter.source_ptr.new_zeros(1), shorter.source_ptr]))
    case = make_case(Variant(), shorter, generator)
    with torch.no_grad():
        case.tensors["envelope"][4] = torch.nan
    results = case.with_gradients("triton", upstream_of(case.variant, shorter, generator))
    assert all(x.isfinite().all() for x in results)
    assert results[4][4] == 0.0


def test_repeated_calls_agree_to_the_last_bit(edge_index: Edges, generator) -> None:
    index = edge_index(SMALL)
    case, upstream = make_case(Variant(), index, generator), upstream_of(Variant(), index, generator)
    for first, second in zip(*(case.with_gradients("triton", upstream) for _ in range(2)), strict=True):
        assert first.equal(second)


def test_second_derivatives_are_refused(edge_index: Edges, generator) -> None:
    case = make_case(Variant(derivatives=0), edge_index((1,)), generator)
    query = case.tensors["query"]
    (first,) = torch.autograd.grad(case.run("triton").square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
