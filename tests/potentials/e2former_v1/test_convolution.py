"""The convolution with relative vectors against the Wigner-6j form with absolute positions."""

from __future__ import annotations

from itertools import product
from math import comb, pi, sqrt

import pytest
import torch
from sympy.physics.wigner import wigner_6j
from torch import Tensor

from e2former_calc.potentials.e2former_v1.convolution import TensorConvolution, convolution_paths
from e2former_calc.potentials.e2former_v1.edges import SOLID_CONSTANTS
from e2former_calc.potentials.so3 import SphericalHarmonics, triple_coupling

LMAX, CHANNELS, N_OUT, ATOMS = 2, 3, 4, 5
EXACT_CONSTANTS = (1.0, sqrt(4 * pi / 3), sqrt(8 * pi / 15))
OFFICIAL_PRECISION = 3e-7
"""Rounding of the official constants of second order."""


def solid(vectors: Tensor, degree: int, constants: tuple[float, ...]) -> Tensor:
    """T_L of each vector; T_0 is one."""
    if degree == 0:
        return torch.ones(len(vectors), 1, dtype=torch.float64)
    rows = SphericalHarmonics(degree)(vectors)[:, degree**2 :]
    return constants[degree] / sqrt(4 * pi) * rows


def coupled(left: Tensor, right: Tensor, degrees: tuple[int, int, int]) -> Tensor:
    """sqrt(2 l + 1) [left x right]_l; left has channels in its last dimension."""
    return sqrt(2 * degrees[2] + 1) * torch.einsum("abm,...ac,...b->...mc", triple_coupling(*degrees), left, right)


@pytest.fixture
def numbers(generator: torch.Generator) -> dict[str, Tensor]:
    """Positions, weights of all pairs, and features."""
    shapes = {"positions": (ATOMS, 3), "weight": (ATOMS, ATOMS, CHANNELS), "h": (ATOMS, (LMAX + 1) ** 2, CHANNELS)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


@pytest.fixture(params=[1, 2])
def order(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def convolution(order: int) -> TensorConvolution:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return TensorConvolution(LMAX, order, CHANNELS, N_OUT).double().requires_grad_(False)


def edge_form(convolution: TensorConvolution, order: int, numbers: dict[str, Tensor], constants: tuple) -> Tensor:
    """Through moments of relative vectors, as the network does it."""
    positions = numbers["positions"]
    vectors = (positions[:, None] - positions[None]).flatten(0, 1)
    factor = solid(vectors, order, constants).unflatten(0, (ATOMS, ATOMS))
    moment = torch.einsum("ijc,ijk,jrc->ikrc", numbers["weight"], factor, numbers["h"])
    return convolution(moment)


def node_form(convolution: TensorConvolution, order: int, numbers: dict[str, Tensor], constants: tuple) -> Tensor:
    """Through functions of single positions, recoupled with 6j symbols (arXiv:2501.19216)."""
    paths = convolution_paths(LMAX, order)
    out = torch.zeros(ATOMS, (LMAX + 1) ** 2, N_OUT, dtype=torch.float64)
    for l_in, l_out in paths:
        sources = [l for l, other in paths if other == l_out]  # noqa: E741
        start = sources.index(l_in) * CHANNELS
        mixing = convolution.mixing[l_out][:, start : start + CHANNELS] / sqrt(len(sources))
        rows = slice(l_out**2, (l_out + 1) ** 2)
        out[:, rows] += recoupled(order, numbers, (l_in, l_out), constants) @ mixing.T
    return out


def recoupled(order: int, numbers: dict[str, Tensor], path: tuple[int, int], constants: tuple) -> Tensor:
    l_in, l_out = path
    h, positions = numbers["h"][:, l_in**2 : (l_in + 1) ** 2], numbers["positions"]
    total = torch.zeros(ATOMS, 2 * l_out + 1, CHANNELS, dtype=torch.float64)
    for b, d in product(range(order + 1), range(l_in + order + 1)):
        g = order - b
        if not abs(l_in - b) <= d <= l_in + b or not abs(d - g) <= l_out <= d + g:
            continue
        symbol = float(wigner_6j(l_in, b, d, g, l_out, order))
        sign = (-1) ** (b + l_in + b + g + l_out)
        kappa = sign * comb(order, b) * sqrt((2 * d + 1) * (2 * order + 1)) * symbol
        per_atom = coupled(h, solid(positions, b, constants), (l_in, b, d))
        collected = torch.einsum("ijc,jmc->imc", numbers["weight"], per_atom)
        total += kappa * coupled(collected, solid(positions, g, constants), (d, g, l_out))
    return total


def test_addition_theorem_recouples_relative_vectors_exactly(convolution, order, numbers):
    edge = edge_form(convolution, order, numbers, EXACT_CONSTANTS)
    node = node_form(convolution, order, numbers, EXACT_CONSTANTS)
    torch.testing.assert_close(node, edge, rtol=0, atol=1e-12 * edge.abs().max().item())


def test_addition_theorem_holds_to_the_precision_of_the_official_constants(convolution, order, numbers):
    edge = edge_form(convolution, order, numbers, SOLID_CONSTANTS)
    node = node_form(convolution, order, numbers, SOLID_CONSTANTS)
    limit = 1e-12 if order == 1 else OFFICIAL_PRECISION
    torch.testing.assert_close(node, edge, rtol=0, atol=limit * edge.abs().max().item())


def test_official_constants_are_rounded(order):
    relative = SOLID_CONSTANTS[order] / EXACT_CONSTANTS[order] - 1
    assert 1e-9 < abs(relative) < 1e-7


def test_edge_form_does_not_change_under_translation(convolution, order, numbers):
    moved = numbers | {"positions": numbers["positions"] + 4096.0}
    before, after = (edge_form(convolution, order, n, SOLID_CONSTANTS) for n in (numbers, moved))
    rounding = 4096.0 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(after, before, rtol=0, atol=100 * rounding * before.abs().max().item())


def test_paths_obey_the_triangle_rule():
    assert convolution_paths(2, 1) == [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2)]
    assert convolution_paths(2, 2) == [(2, 0), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
