"""Real spherical harmonics: against e3nn, explicit formulas, homogeneity, equivariance."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from e3nn import o3
from scipy.special import eval_legendre
from torch import Tensor

from e2former_calc.potentials.so3 import SphericalHarmonics

LMAX = 11
EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(40, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def directions(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _degree(values: Tensor, degree: int) -> Tensor:
    return values[:, degree**2 : (degree + 1) ** 2]


@pytest.mark.parametrize("degree", range(LMAX + 1))
def test_unit_vectors_give_e3nn_component_harmonics(degree: int, directions: Tensor) -> None:
    expected = o3.spherical_harmonics(degree, directions, normalize=False, normalization="component")
    values = _degree(SphericalHarmonics(LMAX)(directions), degree)
    torch.testing.assert_close(values, expected, rtol=0, atol=2000 * EPS)


@pytest.mark.parametrize("degree", range(LMAX + 1))
def test_other_vectors_give_solid_harmonics(degree: int, vectors: Tensor) -> None:
    harmonics = SphericalHarmonics(LMAX)
    length = vectors.norm(dim=1, keepdim=True)
    expected = length**degree * _degree(harmonics(vectors / length), degree)
    torch.testing.assert_close(_degree(harmonics(vectors), degree), expected, rtol=1e-10, atol=1e-10)


def test_degree_one_is_the_vector_times_root_three(vectors: Tensor) -> None:
    torch.testing.assert_close(SphericalHarmonics(1)(vectors)[:, 1:], sqrt(3) * vectors, rtol=8 * EPS, atol=0)


def test_degree_two_is_the_explicit_formula(vectors: Tensor) -> None:
    x, y, z = vectors.unbind(1)
    rows = [x * z, x * y, (y * y - (x * x + z * z) / 2) / sqrt(3), y * z, (z * z - x * x) / 2]
    expected = sqrt(15) * torch.stack(rows, dim=1)
    torch.testing.assert_close(_degree(SphericalHarmonics(2)(vectors), 2), expected, rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("degree", range(LMAX + 1))
def test_along_y_only_m_zero_is_left_and_positive(degree: int) -> None:
    pole = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.zeros(1, 2 * degree + 1, dtype=torch.float64)
    expected[0, degree] = sqrt(2 * degree + 1)
    torch.testing.assert_close(_degree(SphericalHarmonics(LMAX)(pole), degree), expected, rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("degree", range(LMAX + 1))
def test_squares_add_up_to_the_dimension_on_the_unit_sphere(degree: int, directions: Tensor) -> None:
    norm = _degree(SphericalHarmonics(LMAX)(directions), degree).square().sum(1)
    torch.testing.assert_close(norm, torch.full_like(norm, 2 * degree + 1), rtol=2000 * EPS, atol=0)


@pytest.mark.parametrize("degree", range(LMAX + 1))
def test_products_follow_the_addition_theorem(degree: int, directions: Tensor) -> None:
    values = _degree(SphericalHarmonics(LMAX)(directions), degree)
    cosines = (directions @ directions.T).numpy()
    expected = torch.from_numpy((2 * degree + 1) * eval_legendre(degree, cosines))
    torch.testing.assert_close(values @ values.T, expected, rtol=0, atol=1e5 * EPS)


def test_gradient_exists_at_the_origin_and_on_the_axis() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SphericalHarmonics(4), points)


def test_single_precision_stays_single_precision(directions: Tensor) -> None:
    harmonics = SphericalHarmonics(4)
    values = harmonics(directions.float())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), harmonics(directions), rtol=0, atol=50 * torch.finfo(torch.float32).eps)
