"""Radial basis and envelopes against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.radial import GaussianBasis, bell_envelope, polynomial_envelope

CUTOFF = 4.5
DISTANCE = torch.linspace(0.05, CUTOFF - 0.05, 60, dtype=torch.float64)
ROUNDING = 100 * torch.finfo(torch.float64).eps


def _derivatives(function, at: float, count: int) -> list[float]:  # type: ignore[no-untyped-def]
    x = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    value, values = function(x), []
    for _ in range(count):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        values.append(value.item())
    return values


@pytest.mark.parametrize("count", [2, 7, 32])
def test_gaussian_basis_is_the_formula(count: int) -> None:
    basis = GaussianBasis(CUTOFF, count)
    centers = basis.centers.double().numpy()
    width = 2 * CUTOFF / (count - 1)
    expected = np.exp(-0.5 * (DISTANCE.numpy()[:, None] - centers) ** 2 / width**2)
    np.testing.assert_allclose(basis(DISTANCE).numpy(), expected, rtol=0, atol=ROUNDING)


def test_gaussian_centers_run_from_zero_to_the_cutoff_in_float32() -> None:
    centers = GaussianBasis(CUTOFF, 10).centers
    assert centers.dtype == torch.float32
    assert (centers[0].item(), centers[-1].item()) == (0.0, CUTOFF)
    np.testing.assert_allclose(centers.numpy(), np.linspace(0, CUTOFF, 10), rtol=1e-6)


@pytest.mark.parametrize(
    ("exponent", "formula"),
    [
        (5, lambda x: 1 - 21 * x**5 + 35 * x**6 - 15 * x**7),
        (3, lambda x: 1 - 10 * x**3 + 15 * x**4 - 6 * x**5),
    ],
)
def test_polynomial_envelope_is_the_formula(exponent: int, formula) -> None:  # type: ignore[no-untyped-def]
    value = polynomial_envelope(DISTANCE, CUTOFF, exponent)
    np.testing.assert_allclose(value.numpy(), formula(DISTANCE.numpy() / CUTOFF), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("exponent", [3, 5])
def test_polynomial_envelope_is_one_at_contact_and_zero_from_the_cutoff_on(exponent: int) -> None:
    x = torch.tensor([0.0, CUTOFF, CUTOFF + 1e-12, 3 * CUTOFF, 1004.5], dtype=torch.float64)
    assert polynomial_envelope(x, CUTOFF, exponent).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("exponent", [3, 5])
def test_polynomial_envelope_has_two_vanishing_derivatives_at_the_cutoff(exponent: int) -> None:
    def envelope(x: Tensor) -> Tensor:
        return polynomial_envelope(x, CUTOFF, exponent)

    first, second, third = _derivatives(envelope, CUTOFF * (1 - 1e-9), 3)
    assert abs(first) < 1e-12
    assert abs(second) < 1e-6
    assert abs(third) > 0.1


def test_polynomial_envelope_falls_monotonically() -> None:
    value = polynomial_envelope(DISTANCE, CUTOFF, 5)
    assert bool((value[1:] < value[:-1]).all())


def test_bell_envelope_is_the_formula() -> None:
    t = (2 * DISTANCE.numpy() - 0.1 - 9.0) / (9.0 - 0.1)
    np.testing.assert_allclose(bell_envelope(DISTANCE, 0.1, 9.0).numpy(), (1 - t**2) ** 2, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("end", [0.1, 9.0])
def test_bell_envelope_has_zero_value_and_slope_at_both_ends(end: float) -> None:
    assert bell_envelope(torch.tensor([end], dtype=torch.float64), 0.1, 9.0).abs().item() < ROUNDING
    assert abs(_derivatives(lambda x: bell_envelope(x, 0.1, 9.0), end, 1)[0]) < ROUNDING
