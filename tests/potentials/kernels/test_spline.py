"""Radial splines: exact for polynomials, order of convergence, slopes, ends of the table, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions, evaluate_spline

CUTOFF = 3.0


def table_of(derivatives: list[Tensor], n_rows: int) -> SplineTable:
    """One function for one pair of elements from its value and derivatives at the knots."""
    knots = len(derivatives[0])
    return SplineTable(torch.stack(derivatives[:n_rows], dim=1)[None, :, :, None], CUTOFF / (knots - 1))


def evaluate(table: SplineTable, distance: Tensor) -> Tensor:
    pair = torch.zeros(len(distance), dtype=torch.int64)
    return evaluate_spline(TabulatedFunctions(table, pair, distance))[:, 0]


@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_polynomials_of_the_order_of_the_spline_are_exact(n_rows: int) -> None:
    power = 2 * n_rows - 1
    r = torch.linspace(0, CUTOFF, 4, dtype=torch.float64)
    table = table_of([r**power, power * r ** (power - 1), power * (power - 1) * r ** (power - 2)], n_rows)
    distance = torch.linspace(0, CUTOFF, 50, dtype=torch.float64)
    torch.testing.assert_close(evaluate(table, distance), distance**power, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_error_falls_with_the_order_of_the_spline(n_rows: int) -> None:
    distance = torch.linspace(0, CUTOFF, 1001, dtype=torch.float64)
    errors = []
    for knots in (17, 33):
        r = torch.linspace(0, CUTOFF, knots, dtype=torch.float64)
        table = table_of([torch.sin(3 * r), 3 * torch.cos(3 * r), -9 * torch.sin(3 * r)], n_rows)
        errors.append(float((evaluate(table, distance) - torch.sin(3 * distance)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2 * n_rows, abs=0.2)


@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_slope_is_that_of_the_interpolant(n_rows: int, generator: torch.Generator) -> None:
    table = SplineTable(torch.randn(2, 7, n_rows, 3, generator=generator, dtype=torch.float64), 0.5)
    distance = (3.5 * torch.rand(20, generator=generator, dtype=torch.float64)).requires_grad_(True)
    pair = torch.randint(2, (20,), generator=generator)
    assert torch.autograd.gradcheck(lambda r: evaluate_spline(TabulatedFunctions(table, pair, r)), distance)


@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_derivatives_are_continuous_across_knots(n_rows: int, generator: torch.Generator) -> None:
    table = SplineTable(torch.randn(1, 7, n_rows, 1, generator=generator, dtype=torch.float64), 0.5)
    sides = torch.tensor([1.0 - 1e-12, 1.0 + 1e-12], dtype=torch.float64, requires_grad=True)
    derivative = evaluate(table, sides)
    for _ in range(n_rows):
        torch.testing.assert_close(derivative[0], derivative[1], rtol=0, atol=1e-8)
        (derivative,) = torch.autograd.grad(derivative.sum(), sides, create_graph=True)


def test_beyond_the_last_knot_the_last_value_stays(generator: torch.Generator) -> None:
    table = SplineTable(torch.randn(1, 5, 2, 1, generator=generator, dtype=torch.float64), 0.5)
    distance = torch.tensor([2.0, 2.5, 100.0], dtype=torch.float64, requires_grad=True)
    values = evaluate(table, distance)
    assert values.detach().equal(table.values[0, -1, 0].expand(3))
    assert torch.autograd.grad(values.sum(), distance)[0][1:].abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (1, 5, 4, 3), (1, 5, 1, 3)], ids=str)
def test_other_tables_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"got {shape[1]} knots and {shape[2]} numbers"):
        SplineTable(torch.zeros(shape), 0.5)


def test_the_spacing_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"`spacing` must be positive, got 0\.0"):
        SplineTable(torch.zeros(1, 5, 2, 3), 0.0)
