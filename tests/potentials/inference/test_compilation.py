"""Elementary functions of the kernels, and sharing of work."""

from __future__ import annotations

import time

import numpy as np
import pytest

from e2former_calc.potentials.inference.compilation import exponential, in_shares, kernel, log_one_plus


@kernel
def exponentials(x, result):
    for k in range(x.shape[0]):
        result[k] = exponential(x[k])


@kernel
def logarithms(x, result):
    for k in range(x.shape[0]):
        result[k] = log_one_plus(x[k])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_is_exact_to_rounding(dtype: type) -> None:
    x = np.linspace(-80.0, 80.0, 20_001).astype(dtype)
    result = np.empty_like(x)
    exponentials(x, result)
    np.testing.assert_allclose(result, np.exp(x.astype(np.float64)), rtol=3 * np.finfo(dtype).eps)


def test_exponential_of_very_small_numbers_does_not_overflow() -> None:
    x, result = np.array([-1e4, 1e4], np.float32), np.empty(2, np.float32)
    exponentials(x, result)
    assert result[0] < 1e-37
    assert np.isfinite(result[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithm_is_exact_to_rounding(dtype: type) -> None:
    x = np.concatenate([[0.0], np.logspace(-12, 0, 10_001)]).astype(dtype)
    result = np.empty_like(x)
    logarithms(x, result)
    np.testing.assert_allclose(result, np.log1p(x.astype(np.float64)), rtol=4 * np.finfo(dtype).eps)


def test_outside_of_kernels_both_are_ordinary_functions() -> None:
    assert exponential(1.0) == pytest.approx(np.e)
    assert log_one_plus(1.0) == pytest.approx(np.log(2.0))


@pytest.mark.parametrize("n_atoms", [0, 1, 63, 64, 127, 128, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_atom_is_worked_on_once(n_atoms: int, threads: int) -> None:
    count = np.zeros(n_atoms, int)

    def work(_: int, first: int, last: int) -> None:
        count[first:last] += 1

    in_shares(work, n_atoms, threads)
    assert (count == 1).all()


def test_shares_have_numbers_of_their_own() -> None:
    seen = []
    in_shares(lambda share, first, last: seen.append((share, first, last)), 1000, 3)
    assert sorted(share for share, _, _ in seen) == [0, 1, 2]


def test_an_error_in_another_thread_is_raised() -> None:
    def work(_: int, first: int, last: int) -> None:
        if first > 0:
            raise ValueError("second share")

    with pytest.raises(ValueError, match="second share"):
        in_shares(work, 1000, 2)


def test_an_error_in_this_thread_waits_for_the_others() -> None:
    ended = []

    def work(share: int, first: int, last: int) -> None:
        if share == 0:
            raise ValueError("first share")
        time.sleep(0.05)
        ended.append(share)

    with pytest.raises(ValueError, match="first share"):
        in_shares(work, 1000, 2)
    assert ended == [1]
