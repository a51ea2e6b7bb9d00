"""Query-key products: the definition, blocked against reference with all gradients, second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels import edge_dot as package
from e2former_calc.potentials.kernels.edge_dot import edge_dot
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]
SIZES = [(1, 1), (3, 5), (16, 4), (7, 13)]
IMPLEMENTATIONS = ("reference", "blocked")


@pytest.fixture(params=[1, 40, 10**6], ids=["one edge a block", "several blocks", "one block"])
def _budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.blocked, "BLOCK_NUMBERS", request.param)


def _inputs(atoms: int, heads: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    query, key = torch.randn(2, atoms, heads, width, generator=generator, dtype=torch.float64).unbind(0)
    return query.requires_grad_(True), key.requires_grad_(True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_are_scalar_products(implementation: str, random_graph: Graph, generator: torch.Generator) -> None:
    graph = random_graph((2, 0, 3))
    query, key = _inputs(3, 2, 4, generator)
    scores = edge_dot(query, key, graph, implementation=implementation)  # type: ignore[arg-type]
    for edge, (i, j) in enumerate(zip(graph.center.tolist(), graph.source.tolist(), strict=True)):
        for head in range(2):
            assert scores[edge, head].item() == pytest.approx(torch.dot(query[i, head], key[j, head]).item())


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_blocked_equals_reference_with_all_gradients(
    counts: tuple[int, ...], heads: int, width: int, random_graph: Graph, generator: torch.Generator
) -> None:
    graph, inputs = random_graph(counts), _inputs(len(counts), heads, width, generator)
    upstream = torch.randn(sum(counts), heads, generator=generator, dtype=torch.float64)
    results = []
    for implementation in IMPLEMENTATIONS:
        scores = edge_dot(*inputs, graph, implementation=implementation)
        results.append((scores, *torch.autograd.grad(scores, inputs, upstream)))
    for reference, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_blocked_is_twice_differentiable(
    check: Callable[..., bool], random_graph: Graph, generator: torch.Generator
) -> None:
    graph, inputs = random_graph((2, 0, 3, 1)), _inputs(4, 3, 2, generator)
    assert check(lambda q, k: edge_dot(q, k, graph, implementation="blocked"), inputs)


def test_query_and_key_may_be_the_same_tensor(random_graph: Graph, generator: torch.Generator) -> None:
    graph, (query, _) = random_graph((2, 1, 3)), _inputs(3, 2, 2, generator)
    gradients = [
        torch.autograd.grad(edge_dot(query, query, graph, implementation=i).square().sum(), query)[0]
        for i in IMPLEMENTATIONS
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_edges_there_are_no_scores_and_zero_gradients(
    implementation: str, random_graph: Graph, generator: torch.Generator
) -> None:
    query, key = _inputs(2, 3, 4, generator)
    scores = edge_dot(query, key, random_graph((0, 0)), implementation=implementation)  # type: ignore[arg-type]
    assert scores.shape == (0, 3)
    gradients = torch.autograd.grad(scores.sum(), (query, key))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_single_precision_stays_single_precision(random_graph: Graph, generator: torch.Generator) -> None:
    graph, inputs = random_graph((3, 4)), _inputs(2, 5, 3, generator)
    single = edge_dot(*(x.float() for x in inputs), graph, implementation="blocked")
    assert single.dtype == torch.float32
    expected = edge_dot(*inputs, graph, implementation="reference")
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=50 * torch.finfo(torch.float32).eps)


def test_blocked_stores_no_edge_rows(random_graph: Graph, generator: torch.Generator) -> None:
    graph, inputs = random_graph((40, 40)), _inputs(2, 4, 8, generator)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        edge_dot(*inputs, graph, implementation="blocked")
    assert max(saved) <= max(graph.n_edges, inputs[0].numel())
