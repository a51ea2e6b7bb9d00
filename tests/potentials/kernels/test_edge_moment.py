"""Attention-weighted moments: the definition, blocked against reference with all gradients, second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels import blocks
from e2former_calc.potentials.kernels.edge_moment import edge_moment
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]
IMPLEMENTATIONS = ("reference", "blocked")
SIZES = {"first order": (3, 4, 4, 8), "zero order": (1, 9, 5, 15), "one of all": (1, 1, 1, 1), "odd": (3, 16, 3, 9)}
"""Order, rows, heads, channels."""


@pytest.fixture(params=[1, 300, 10**7], ids=["one center a block", "several blocks", "one block"])
def _budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", request.param)


def _inputs(
    graph: NeighborList, sizes: tuple[int, int, int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    order, rows, heads, channels = sizes
    shapes = [(graph.n_edges, heads), (graph.n_edges, order), (len(graph.row_ptr) - 1, rows, channels)]
    weight, basis, value = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True) for shape in shapes
    )
    return weight, basis, value


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_moment_is_the_sum_over_edges(implementation: str, random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((2, 0, 3))
    weight, basis, value = _inputs(graph, (3, 4, 2, 6), generator)
    expected = torch.zeros(3, 3, 4, 6, dtype=torch.float64)
    for edge, (i, j) in enumerate(zip(graph.center.tolist(), graph.source.tolist(), strict=True)):
        for k in range(3):
            for channel in range(6):
                expected[i, k, :, channel] += weight[edge, channel % 2] * basis[edge, k] * value[j, :, channel]
    moment = edge_moment(weight, basis, value, graph, implementation=implementation)  # type: ignore[arg-type]
    torch.testing.assert_close(moment, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_blocked_equals_reference_with_all_gradients(
    counts: tuple[int, ...], sizes: tuple[int, int, int, int], random_graph: Graph, generator: torch.Generator
) -> None:
    graph = random_graph(counts)
    inputs = _inputs(graph, sizes, generator)
    upstream = torch.randn(len(counts), sizes[0], sizes[1], sizes[3], generator=generator, dtype=torch.float64)
    results = []
    for implementation in IMPLEMENTATIONS:
        moment = edge_moment(*inputs, graph, implementation=implementation)
        results.append((moment, *torch.autograd.grad(moment, inputs, upstream)))
    for reference, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_blocked_is_twice_differentiable(
    check: Callable[..., bool], random_graph: Graph, generator: torch.Generator
) -> None:
    graph = random_graph((2, 0, 3))
    inputs = _inputs(graph, (2, 3, 2, 4), generator)
    assert check(lambda w, b, v: edge_moment(w, b, v, graph, implementation="blocked"), inputs)


@pytest.mark.usefixtures("_budget")
def test_second_derivatives_of_a_gradient_loss_agree(
    counts: tuple[int, ...], random_graph: Graph, generator: torch.Generator
) -> None:
    graph = random_graph(counts)
    inputs, seconds = _inputs(graph, (3, 4, 2, 4), generator), []
    for implementation in IMPLEMENTATIONS:
        moment = edge_moment(*inputs, graph, implementation=implementation)
        first = torch.autograd.grad(moment.square().sum(), inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for reference, blocked in zip(*seconds, strict=True):
        torch.testing.assert_close(blocked, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_isolated_centers_get_zero(implementation: str, random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((0, 4, 0))
    moment = edge_moment(*_inputs(graph, (3, 4, 2, 4), generator), graph, implementation=implementation)  # type: ignore[arg-type]
    assert moment[[0, 2]].abs().max() == 0
    assert moment[1].abs().min() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_edges_everything_is_zero(implementation: str, random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((0, 0))
    inputs = _inputs(graph, (3, 4, 2, 4), generator)
    moment = edge_moment(*inputs, graph, implementation=implementation)  # type: ignore[arg-type]
    assert moment.abs().max() == 0
    assert torch.autograd.grad(moment.sum(), inputs[2])[0].abs().max() == 0


def test_single_precision_stays_single_precision(random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((3, 4))
    inputs = _inputs(graph, (3, 4, 2, 4), generator)
    single = edge_moment(*(x.float() for x in inputs), graph, implementation="blocked")
    assert single.dtype == torch.float32
    expected = edge_moment(*inputs, graph, implementation="reference")
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=100 * torch.finfo(torch.float32).eps)


def test_blocked_stores_no_edge_rows(random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((40, 40))
    inputs, saved = _inputs(graph, (3, 9, 2, 8), generator), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        edge_moment(*inputs, graph, implementation="blocked")
    assert max(saved) <= max(x.numel() for x in inputs)
