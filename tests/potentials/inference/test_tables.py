"""Splines of radial networks: exact at knots, sixth order between them, made once per pair of elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from e2former_calc.potentials.inference.geometry import Edges, Grid, Structure, describe_edges
from e2former_calc.potentials.inference.tables import RadialTables, radial_table, with_chords
from e2former_calc.potentials.potential import EnergyPotential

CUTOFF = 4.0


def wave(distance: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.sin(3.0 * distance), torch.exp(-((distance - 2.0) ** 2))], dim=1)


def wave_table(n_knots: int, dtype: type = np.float64) -> np.ndarray:
    table = radial_table(wave, cutoff=CUTOFF, n_knots=n_knots).numpy()
    return with_chords(table, n_knots=n_knots, step=CUTOFF / (n_knots - 1)).astype(dtype)


def interpolate(table: np.ndarray, distance: np.ndarray, n_knots: int, offset: int) -> np.ndarray:
    """Value (offset 0) or derivative (offset 6) with the weights that edges carry."""
    count = len(distance)
    edges = Edges(
        row_ptr=np.array([0, count]), center=np.zeros(count, int), source=np.zeros(count, int),
        column_ptr=np.array([0, count]), by_source=np.arange(count), vector=np.outer(distance, [1.0, 0.0, 0.0]),
        distance=distance, unit=np.empty((count, 3)), slot=np.empty(count, int), spline=np.empty((count, 11)),
        envelope=np.empty((count, 2)),
    )  # fmt: skip
    structure = Structure(np.zeros((1, 3)), np.zeros((1, 3, 3)), np.zeros(1, int), np.zeros(1, int))
    describe_edges(structure, Grid(CUTOFF, n_knots, 1, 5), edges, count)
    low, high = table[edges.slot], table[edges.slot + 1]
    rows = np.concatenate([low[:, :3], high[:, :3]] if offset == 0 else [low[:, [3, 1, 2]], high[:, 1:3]], axis=1)
    return np.einsum("ek,ekw->ew", edges.spline[:, offset : offset + rows.shape[1]], rows)


def error(n_knots: int, offset: int) -> float:
    distance = np.random.default_rng(0).uniform(0.0, CUTOFF, 400)
    r = torch.from_numpy(distance)
    slope = torch.stack([3.0 * torch.cos(3.0 * r), -2.0 * (r - 2.0) * torch.exp(-((r - 2.0) ** 2))], dim=1)
    exact = (wave(r) if offset == 0 else slope).numpy()
    return float(abs(interpolate(wave_table(n_knots), distance, n_knots, offset) - exact).max())


@pytest.mark.parametrize(("offset", "order"), [(0, 6), (6, 5)])
def test_error_falls_with_the_order_of_the_spline(offset: int, order: int) -> None:
    assert error(17, offset) / error(33, offset) > 0.6 * 2**order


def test_values_at_knots_are_exact() -> None:
    table = radial_table(wave, cutoff=CUTOFF, n_knots=9)
    torch.testing.assert_close(table[:, 0], wave(torch.linspace(0.0, CUTOFF, 9, dtype=torch.float64)))


def test_last_knot_is_part_of_the_table() -> None:
    found = interpolate(wave_table(9), np.array([CUTOFF]), 9, 0)
    np.testing.assert_allclose(found[0], wave(torch.tensor([CUTOFF], dtype=torch.float64)).numpy()[0], rtol=1e-12)


def test_derivatives_of_rounded_tables_are_exact_to_rounding() -> None:
    distance = np.random.default_rng(1).uniform(0.0, CUTOFF, 400)
    exact = interpolate(wave_table(513), distance, 513, 6)
    rounded = interpolate(wave_table(513, np.float32).astype(np.float64), distance, 513, 6)
    np.testing.assert_allclose(rounded, exact, rtol=0.0, atol=8 * np.finfo(np.float32).eps * abs(exact).max())


def test_tables_of_known_elements_are_not_made_again(build: Callable[..., EnergyPotential]) -> None:
    tables = RadialTables(build().model, dtype=torch.float64, n_knots=16)
    assert tables.cover([8, 1])
    assert not tables.cover([1])
    assert tables.elements == (1, 8)


def test_slots_follow_the_order_of_elements(build: Callable[..., EnergyPotential]) -> None:
    model = build().model
    late, early = (RadialTables(model, dtype=torch.float64, n_knots=16) for _ in range(2))
    late.cover([8])
    late.cover([1])
    early.cover([1, 8])
    np.testing.assert_array_equal(late.embedding, early.embedding)
