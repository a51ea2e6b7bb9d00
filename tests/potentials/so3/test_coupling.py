"""Clebsch-Gordan coefficients: values along y, normalisation, equivariance."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation
from torch import Tensor

from e2former_calc.potentials.so3 import coupling_paths, vector_coupling

ROUNDING = 1000 * torch.finfo(torch.float64).eps
LMAX = 11


def _along_y(l_in: int, l_out: int) -> Tensor:
    """Non-zero coefficients for a vector along y, from the closed formulas."""
    expected = torch.zeros(2 * l_in + 1, 2 * l_out + 1, dtype=torch.float64)
    for m in range(-min(l_in, l_out), min(l_in, l_out) + 1):
        if l_out == l_in + 1:
            value, m_out = sqrt((l_in + 1 - m) * (l_in + 1 + m) / ((2 * l_in + 1) * (l_in + 1))), m
        elif l_out == l_in - 1:
            value, m_out = sqrt((l_in - m) * (l_in + m) / (l_in * (2 * l_in + 1))), m
        else:
            value, m_out = -m / sqrt(l_in * (l_in + 1)), -m
        expected[l_in + m, l_out + m_out] = value
    return expected


@pytest.mark.parametrize(("l_in", "l_out"), coupling_paths(LMAX))
def test_values_for_a_vector_along_y(l_in: int, l_out: int) -> None:
    torch.testing.assert_close(vector_coupling(l_in, l_out)[:, 1], _along_y(l_in, l_out), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("l_in", "l_out"), coupling_paths(LMAX))
def test_squares_add_up_to_the_dimension_of_the_result(l_in: int, l_out: int) -> None:
    assert vector_coupling(l_in, l_out).square().sum().item() == pytest.approx(2 * l_out + 1, rel=ROUNDING)


def _rotation_of_degree(degree: int, rotation: Tensor) -> Tensor:
    """D with Y(R u) = D Y(u), from harmonics at many points."""
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 3)))
    before, after = (
        o3.spherical_harmonics(degree, p, normalize=True, normalization="component")
        for p in (points, points @ rotation.T)
    )
    return torch.linalg.lstsq(before, after).solution.T


@pytest.mark.parametrize(("l_in", "l_out"), coupling_paths(5))
def test_product_of_rotated_inputs_is_the_rotated_product(l_in: int, l_out: int) -> None:
    rotation = torch.from_numpy(Rotation.random(rng=np.random.default_rng(2)).as_matrix())
    d_in, d_out = _rotation_of_degree(l_in, rotation), _rotation_of_degree(l_out, rotation)
    rotated = torch.einsum("mkn,ma,kb->abn", vector_coupling(l_in, l_out), d_in, rotation)
    expected = torch.einsum("abm,nm->abn", vector_coupling(l_in, l_out), d_out)
    torch.testing.assert_close(rotated, expected, rtol=0, atol=ROUNDING)


def test_scalar_times_vector_is_the_vector() -> None:
    assert vector_coupling(0, 1)[0].allclose(torch.eye(3, dtype=torch.float64), rtol=0, atol=ROUNDING)


def test_vector_times_vector_to_scalar_is_the_dot_product() -> None:
    expected = torch.eye(3, dtype=torch.float64) / sqrt(3)
    torch.testing.assert_close(vector_coupling(1, 0)[:, :, 0], expected, rtol=0, atol=ROUNDING)


def test_vector_times_vector_to_vector_is_a_cross_product() -> None:
    a, b = np.array([0.3, -1.2, 0.7]), np.array([-0.4, 0.9, 2.0])
    product = np.einsum("mkn,m,k->n", vector_coupling(1, 1).numpy(), a, b)
    np.testing.assert_allclose(product, np.cross(a, b) / sqrt(2), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("l_in", "l_out"), [(0, 0), (0, 2), (3, 1), (2, 5), (-1, 0)])
def test_forbidden_products_are_refused(l_in: int, l_out: int) -> None:
    with pytest.raises(ValueError, match=f"degrees {l_in} x 1 -> {l_out} violate the triangle rule"):
        vector_coupling(l_in, l_out)


def test_paths_of_lmax_two() -> None:
    assert coupling_paths(2) == [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize("lmax", [1, 3, 6])
def test_every_degree_has_one_two_or_three_paths(lmax: int) -> None:
    counts = [sum(l_out == degree for _, l_out in coupling_paths(lmax)) for degree in range(lmax + 1)]
    assert counts == [1] + [3] * (lmax - 1) + [2]
