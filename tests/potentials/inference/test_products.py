"""Products of features and one matrix for each degree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from e2former_calc.potentials.inference.products import LinearMap, apply, apply_transposed, linear_map

Matrices = list[NDArray[np.floating]]

ROUNDING = 32


def matrices(widths: list[tuple[int, int]], dtype: type, seed: int = 0) -> Matrices:
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(size) / np.sqrt(size[0])).astype(dtype) for size in widths]


def features(n_atoms: int, widths: list[int], dtype: type, seed: int = 1) -> NDArray[np.floating]:
    total = sum((2 * degree + 1) * width for degree, width in enumerate(widths))
    return np.random.default_rng(seed).standard_normal((n_atoms, total)).astype(dtype)


def expected(weights: Matrices, x: NDArray[np.floating]) -> NDArray[np.float64]:
    parts, column = [], 0
    for degree, weight in enumerate(weights):
        for _ in range(2 * degree + 1):
            parts.append(x[:, column : column + len(weight)].astype(np.float64) @ weight.astype(np.float64))
            column += len(weight)
    return np.concatenate(parts, axis=1)


def applied(linear: LinearMap, x: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    y = np.full((len(x), width), np.nan, x.dtype)
    apply(linear, x, y[:0], y)
    return y


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 140)), min_size=1, max_size=3),
    n_atoms=st.integers(0, 20), dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_product_is_that_of_numpy(widths: list[tuple[int, int]], n_atoms: int, dtype: type) -> None:
    weights, x = matrices(widths, dtype), features(n_atoms, [size[0] for size in widths], dtype)
    result = expected(weights, x)
    np.testing.assert_allclose(
        applied(linear_map(weights), x, result.shape[1]), result, rtol=0.0, atol=ROUNDING * np.finfo(dtype).eps
    )


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.tuples(st.integers(1, 140), st.integers(1, 70)), min_size=1, max_size=3),
    n_atoms=st.integers(0, 20), dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_transposed_product_is_that_of_numpy(widths: list[tuple[int, int]], n_atoms: int, dtype: type) -> None:
    weights, y = matrices(widths, dtype), features(n_atoms, [size[1] for size in widths], dtype)
    result = expected([weight.T for weight in weights], y)
    x = np.full(result.shape, np.nan, dtype)
    apply_transposed(linear_map(weights), y, x[:0], x)
    np.testing.assert_allclose(x, result, rtol=0.0, atol=4 * ROUNDING * np.finfo(dtype).eps)


@pytest.mark.parametrize("width", [3, 16, 65])
def test_what_was_there_before_is_added(width: int) -> None:
    weights, x = matrices([(7, width)], np.float64), features(11, [7], np.float64)
    before = features(11, [width], np.float64, seed=2)
    y = np.empty_like(before)
    apply(linear_map(weights), x, before, y)
    np.testing.assert_allclose(y, before + expected(weights, x), rtol=0.0, atol=1e-14)


def test_result_may_be_what_is_added_to() -> None:
    weights, x = matrices([(7, 24), (5, 40)], np.float64), features(9, [7, 5], np.float64)
    y = features(9, [24, 40], np.float64, seed=2)
    total = y + expected(weights, x)
    apply(linear_map(weights), x, y, y)
    np.testing.assert_allclose(y, total, rtol=0.0, atol=1e-14)


def test_bias_goes_to_degree_zero_alone() -> None:
    bias = np.arange(5.0)
    y = applied(linear_map([np.zeros((4, 5)), np.zeros((4, 6))], bias), features(3, [4, 4], np.float64), 5 + 18)
    assert (y[:, :5] == bias).all()
    assert (y[:, 5:] == 0.0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_does_not_depend_on_the_others(dtype: type) -> None:
    linear, x = linear_map(matrices([(64, 96), (33, 41)], dtype)), features(23, [64, 33], dtype)
    whole = applied(linear, x, 96 + 3 * 41)
    for first, last in ((0, 1), (1, 3), (5, 12), (22, 23)):
        assert np.array_equal(applied(linear, x[first:last], 96 + 3 * 41), whole[first:last])


def test_columns_behind_the_product_are_left_alone() -> None:
    weights, x = matrices([(6, 17)], np.float32), features(7, [6], np.float32)
    y = np.full((7, 40), -1.0, np.float32)
    apply(linear_map(weights), x, y[:0], y)
    assert (y[:, 17:] == -1.0).all()


def test_columns_of_x_behind_the_matrix_are_not_read() -> None:
    weights = matrices([(6, 17)], np.float32)
    x = np.full((7, 12), np.nan, np.float32)
    x[:, :6] = features(7, [6], np.float32)
    assert np.isfinite(applied(linear_map(weights), x, 17)).all()
