"""Radial splines: exact for polynomials, order of convergence, slopes, rounding, ends of the table, errors."""

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
    values = torch.stack(derivatives[:n_rows], dim=1)[None, :, :, None]
    return SplineTable.from_derivatives(values, CUTOFF / (knots - 1))


def random_table(shape: tuple[int, ...], spacing: float, generator: torch.Generator) -> SplineTable:
    """Functions that are the same for every spacing if distances are counted in knots."""
    units = spacing ** -torch.arange(shape[2], dtype=torch.float64)[:, None]
    return SplineTable.from_derivatives(units * torch.randn(shape, generator=generator, dtype=torch.float64), spacing)


def wave_table(spacing: float, n_rows: int, *, offset: float = 0.0) -> SplineTable:
    """sin(3 r) + offset."""
    r = torch.linspace(0, CUTOFF, round(CUTOFF / spacing) + 1, dtype=torch.float64)
    return table_of([offset + torch.sin(3 * r), 3 * torch.cos(3 * r), -9 * torch.sin(3 * r)], n_rows)


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
    for intervals in (16, 32):
        table = wave_table(CUTOFF / intervals, n_rows)
        errors.append(float((evaluate(table, distance) - torch.sin(3 * distance)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2 * n_rows, abs=0.2)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("spacing", [0.5, 0.01])
@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_slope_is_that_of_the_interpolant(n_rows: int, spacing: float, check, generator: torch.Generator) -> None:
    table = random_table((2, 7, n_rows, 3), spacing, generator)
    position = (7.0 * torch.rand(20, generator=generator, dtype=torch.float64)).requires_grad_(True)
    pair = torch.randint(2, (20,), generator=generator)
    assert check(lambda x: evaluate_spline(TabulatedFunctions(table, pair, spacing * x)), position)


@pytest.mark.parametrize("spacing", [0.5, 0.01])
@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_derivatives_are_continuous_across_knots(n_rows: int, spacing: float, generator: torch.Generator) -> None:
    table = random_table((1, 7, n_rows, 1), spacing, generator)
    sides = torch.tensor([2.0 - 1e-12, 2.0 + 1e-12], dtype=torch.float64, requires_grad=True)
    derivative = evaluate(table, spacing * sides)
    for _ in range(n_rows):
        torch.testing.assert_close(derivative[0], derivative[1], rtol=0, atol=1e-8)
        (derivative,) = torch.autograd.grad(derivative.sum(), sides, create_graph=True)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("spacing", [0.5, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("n_rows", [2, 3], ids=["cubic", "quintic"])
def test_derivatives_of_rounded_tables_err_by_their_own_rounding(
    n_rows: int, spacing: float, offset: float, generator: torch.Generator
) -> None:
    """Neither a fine spacing nor large values make them worse; differences of values would err by offset / spacing."""
    table = wave_table(spacing, n_rows, offset=offset)
    distance = (CUTOFF * torch.rand(200, generator=generator, dtype=torch.float64)).requires_grad_(True)
    exact, rounded = (
        torch.autograd.grad(evaluate(t, distance).sum(), distance)[0] for t in (table, table.to(torch.float32))
    )
    # At most five rows, whose rounded weights (below 2) and products are added up.
    bound = 5 * 2 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    torch.testing.assert_close(rounded, exact, rtol=0, atol=bound)


def test_values_of_rounded_tables_err_by_rounding(generator: torch.Generator) -> None:
    table = wave_table(0.01, 3, offset=100.0)
    distance = CUTOFF * torch.rand(200, generator=generator, dtype=torch.float64)
    rounded = evaluate(table.to(torch.float32), distance)
    rtol = 2 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(rounded.double(), evaluate(table, distance), rtol=rtol, atol=0)


def test_beyond_the_last_knot_the_last_value_stays(generator: torch.Generator) -> None:
    table = random_table((1, 5, 2, 1), 0.5, generator)
    distance = torch.tensor([2.0, 2.5, 100.0], dtype=torch.float64, requires_grad=True)
    values = evaluate(table, distance)
    torch.testing.assert_close(values, table.values[0, -1, 0].expand(3), rtol=1e-14, atol=1e-14)
    assert torch.autograd.grad(values.sum(), distance)[0][1:].abs().max() == 0


def test_chords_are_made_before_rounding() -> None:
    rows = torch.tensor([[100.0, 1.0], [100.01, 1.0], [100.03, 1.0]], dtype=torch.float64)[None, :, :, None]
    chord = SplineTable.from_derivatives(rows, 0.01).to(torch.float32).values[0, :2, 2, 0]
    torch.testing.assert_close(chord, torch.tensor([1.0, 2.0]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 5, 5, 3), (1, 5, 2, 3)], ids=str)
def test_other_tables_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"got {shape[1]} knots and {shape[2]} rows"):
        SplineTable(torch.zeros(shape), 0.5)


def test_the_spacing_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"`spacing` must be positive, got 0\.0"):
        SplineTable(torch.zeros(1, 5, 3, 3), 0.0)
