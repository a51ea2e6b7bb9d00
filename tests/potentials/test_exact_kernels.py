"""Kernels round every operation by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

from e2former_calc.potentials import exact_kernels
from e2former_calc.potentials.exact_kernels import exact


@exact
def _multiply_and_add(a: float, b: float, c: float) -> float:
    return a * b + c


@exact
def _is_below(value: float, limit: float) -> bool:
    return value < limit


@exact
def _sum(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def test_a_product_is_rounded_before_it_is_added() -> None:
    near_one = 1.0 + 2.0**-30
    # The exact square is 1 + 2^-29 + 2^-60, and its last term is lost when it is rounded.
    assert _multiply_and_add(near_one, near_one, -(1.0 + 2.0**-29)) == 0.0


def test_sums_run_from_the_first_to_the_last() -> None:
    values = np.random.default_rng(0).normal(size=1001) * 10.0 ** np.arange(1001) ** 0.3
    total = 0.0
    for value in values.tolist():
        total += value
    assert _sum(values) == total


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_may_be_infinite_or_none(value: float) -> None:
    assert not _is_below(value, np.inf)


def test_a_folder_that_cannot_be_written_to_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert exact(lambda x: x + 1.0)(1.0) == 2.0


def test_machine_code_of_other_sources_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "doubling.py"
    file.write_text(
        "from e2former_calc.potentials.exact_kernels import exact\n\n@exact\ndef double(x):\n    return 2.0 * x\n"
    )

    def hits() -> int:
        spec = importlib.util.spec_from_file_location("doubling", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.double(2.0) == 4.0
        return sum(module.double.stats.cache_hits.values())

    assert [hits(), hits()] == [0, 1]
    monkeypatch.setattr(exact_kernels, "_sources", lambda: "others")
    assert [hits(), hits()] == [0, 1]
