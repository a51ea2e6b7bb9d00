"""Counts of multiply-adds, against a count of every operation of the official code (limits of the architecture)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from e2former_calc.benchmark.floor import as_coded, floor_of, matrix_product_rate, restructured
from e2former_calc.benchmark.shapes import NetworkShape

PUBLISHED = NetworkShape(256, 4).config()
COMPACT = replace(NetworkShape(64, 3).config(), conv_multiplicity=4)
"""The compact network of the counts has four output channels per head."""


@pytest.mark.parametrize(("edges", "coded", "needed"), [(8, 53.5, 43.0), (32, 76.0, 44.1)])
def test_published_network_needs_the_counted_operations(edges: int, coded: float, needed: float) -> None:
    assert 1e-6 * as_coded(PUBLISHED, 1, edges) == pytest.approx(coded, rel=5e-3)
    assert 1e-6 * restructured(PUBLISHED, 1, edges) == pytest.approx(needed, rel=5e-3)


@pytest.mark.parametrize(("edges", "coded", "needed"), [(8, 2.06, 1.27), (32, 3.77, 1.45)])
def test_compact_network_needs_the_counted_operations(edges: int, coded: float, needed: float) -> None:
    assert 1e-6 * as_coded(COMPACT, 1, edges) == pytest.approx(coded, rel=2e-2)
    assert 1e-6 * restructured(COMPACT, 1, edges) == pytest.approx(needed, rel=2e-2)


def test_published_floor_of_216_waters_on_one_core() -> None:
    floor = floor_of(PUBLISHED, atoms=648, edges=32 * 648, peak=92e9)
    assert floor.energy_forces == pytest.approx(1250.0, rel=1e-2)
    assert floor.as_coded == pytest.approx(2150.0, rel=1e-2)


def test_zero_order_layers_need_less() -> None:
    zero = replace(PUBLISHED, orders=("zero",) * 4)
    assert restructured(zero, 10, 100) < restructured(PUBLISHED, 10, 100)
    assert as_coded(zero, 10, 100) < as_coded(PUBLISHED, 10, 100)


def test_rate_of_this_machine_is_plausible() -> None:
    assert 1e8 < matrix_product_rate(torch.device("cpu"), torch.float32) < 1e14
