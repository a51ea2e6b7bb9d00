"""Vector instructions: exact operations, sums over lanes, and widths that divide sizes in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from e2former_calc.potentials.inference.vectors import MAX_LANES, Argument, Emitter, vector_kernel

precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def applied(emit_result: Callable[[Emitter, Any], Any], x: np.ndarray, *, lanes: int) -> np.ndarray:
    """What an operation on vectors of so many lanes stores, vector after vector."""

    @vector_kernel
    def operation(context: Any, builder: Any, sizes: tuple[int, ...], x: Argument, y: Argument) -> None:
        emit = Emitter(context, builder, x.kind.dtype, sizes)
        with emit.loop(sizes[0] // emit.lanes) as k:
            result = emit_result(emit, emit.load(emit.at(x.start, (k, emit.lanes))))
            emit.narrowed(result.type.count).store(result, emit.at(y.start, (k, result.type.count)))

    sizes = (len(x), lanes)

    @njit
    def call(x, y):
        operation(sizes, x, y)

    y = np.full(len(x) + MAX_LANES, np.nan, x.dtype)
    call(x, y)
    return y


@precisions
def test_exponential_is_exact_to_rounding(dtype: type) -> None:
    x = np.linspace(-80.0, 80.0, 4096).astype(dtype)
    found = applied(lambda emit, value: emit.exp(value), x, lanes=4)[: len(x)]
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=4 * np.finfo(dtype).eps)


def test_exponential_of_very_small_numbers_does_not_overflow() -> None:
    x = np.array([-1e4, 1e4], np.float32)
    found = applied(lambda emit, value: emit.exp(value), x, lanes=2)
    assert found[0] < 1e-37
    assert np.isfinite(found[1])


@precisions
@pytest.mark.parametrize("count", [1, 2])
def test_folding_adds_lanes_with_the_same_remainder(dtype: type, count: int) -> None:
    x = np.arange(64).astype(dtype)
    found = applied(lambda emit, value: emit.fold(value, count), x, lanes=2)
    lanes = next(lanes for lanes in (2, 4, 8, 16) if np.isnan(found[64 // lanes * count :]).all())
    np.testing.assert_array_equal(
        found[: 64 // lanes * count], x.reshape(-1, lanes // count, count).sum(axis=1).ravel()
    )


@precisions
def test_extrema_and_quotients_are_those_of_numpy(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=32).astype(dtype)

    def limited(emit: Emitter, value: Any) -> Any:
        return emit.div(emit.minimum(emit.maximum(value, emit.constant(-0.5)), emit.constant(0.5)), emit.constant(3.0))

    np.testing.assert_allclose(applied(limited, x, lanes=4)[:32], np.clip(x, -0.5, 0.5) / dtype(3.0), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 6, 12, 20, 24])
def test_vectors_divide_sizes_in_memory(size: int) -> None:
    x = np.random.default_rng(0).normal(size=5 * size)
    found = applied(lambda emit, value: emit.add(value, value), x, lanes=size)
    np.testing.assert_array_equal(found[: len(x)], 2.0 * x)
    assert np.isnan(found[len(x) :]).all()


def test_sizes_must_be_known_when_a_kernel_is_compiled() -> None:
    @vector_kernel
    def nothing(context: Any, builder: Any, sizes: tuple[int, ...]) -> None:
        pass

    @njit
    def call(size):
        nothing((size, size))

    with pytest.raises(Exception, match="nothing"):
        call(3)
