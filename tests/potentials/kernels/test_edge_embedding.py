"""Specification of the edge embedding: the definition, derivatives, refused inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels.edge_embedding import edge_embedding
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions
from e2former_calc.potentials.neighbors import NeighborList

Graph = Callable[[Sequence[int]], NeighborList]
CHANNELS = 3


@pytest.fixture
def index(random_graph: Graph) -> EdgeIndex:
    return EdgeIndex.from_neighbors(random_graph((2, 0, 3)))


@pytest.fixture
def functions(generator: torch.Generator) -> TabulatedFunctions:
    """Functions of degrees 0 and 1 at five distances that are knots."""
    values = torch.randn(1, 6, 2, 2 * CHANNELS, generator=generator, dtype=torch.float64)
    distance = torch.arange(5, dtype=torch.float64) * 0.5
    return TabulatedFunctions(SplineTable.from_derivatives(values, 0.5), torch.zeros(5, dtype=torch.int64), distance)


@pytest.fixture
def harmonics(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


def test_embedding_is_the_sum_over_edges(index, functions, harmonics) -> None:
    expected = torch.zeros(3, 4, CHANNELS, dtype=torch.float64)
    for edge, center in enumerate(index.center.tolist()):
        scalar, vector = functions.table.values[0, edge, 0].split(CHANNELS)
        expected[center, 0] += harmonics[edge, 0] * scalar
        expected[center, 1:] += harmonics[edge, 1:, None] * vector
    features = edge_embedding(functions, harmonics, index, implementation="reference")
    torch.testing.assert_close(features, expected, rtol=1e-13, atol=1e-13)


def test_reference_is_differentiable(index, functions, harmonics) -> None:
    def features(distance: Tensor, harmonics: Tensor) -> Tensor:
        inputs = TabulatedFunctions(functions.table, functions.pair, distance)
        return edge_embedding(inputs, harmonics, index, implementation="reference")

    distance = (functions.distance + 0.2).requires_grad_(True)
    assert torch.autograd.gradcheck(features, (distance, harmonics.requires_grad_(True)))


REFUSED = {
    "rows": (lambda f, y: (f, y[:, :3]), "got 3 rows and 6 functions"),
    "edges": (lambda f, y: (f, y[:4]), "4 harmonics, 5 distances for 5 edges"),
    "dtype": (lambda f, y: (f, y.float()), r"table \(torch.float64\) and `harmonics` \(torch.float32\)"),
}


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_do_not_fit_are_refused(change, message: str, index, functions, harmonics) -> None:
    with pytest.raises(ValueError, match=message):
        edge_embedding(*change(functions, harmonics), index, implementation="reference")
