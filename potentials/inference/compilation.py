"""How the native kernels of this folder are compiled: by numba, on first use, kept on disk for later runs.

Kernels work on half-open ranges of atoms and hold no lock, so that threads can share a call (`in_shares`). Sums are
carried out in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload

from e2former_calc.potentials.exact_kernels import compiled

F = TypeVar("F", bound=Callable[..., Any])

_FAST_MATH = {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"}


def kernel(function: F) -> F:
    """Compile a function when it is first called; sums may be carried out in another order than they are written.

    Not for functions that other kernels call: these are `inline`, or exact (`exact_kernels.exact`).
    """
    return compiled(function, fastmath=_FAST_MATH)


def inline(function: F) -> F:
    """A part of kernels, without a call at run time."""
    return cast(F, numba.njit(inline="always", fastmath=_FAST_MATH, error_model="numpy")(_plain(function)))


def _plain(function: F) -> F:
    """The function as it is written, without what checks of types at run time wrap around it."""
    return cast(F, inspect.unwrap(function))


def in_shares(function: Callable[[int, int, int], None], n_atoms: int, threads: int) -> None:
    """`function(share, first, last)` over all atoms, in up to `threads` numbered shares at the same time."""
    shares = max(1, min(threads, n_atoms))
    if shares == 1:
        function(0, 0, n_atoms)
        return
    bounds = [n_atoms * k // shares for k in range(shares + 1)]
    pool = _pool(shares - 1)
    others = [pool.submit(function, k, bounds[k], bounds[k + 1]) for k in range(1, shares)]
    try:
        function(0, bounds[0], bounds[1])
    finally:
        # An interrupted evaluation leaves no thread behind that writes into the memory of the next one.
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="e2former-kernel")


if hasattr(os, "register_at_fork"):
    # Threads do not live on in a forked process.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def exponential(x: float) -> float:
    """exp(x) in the precision of x; a polynomial that compilers vectorise in float32 (relative error below 4e-7).

    Range reduction and polynomial: the scheme of S. L. Moshier's Cephes library (expf), written anew.
    """
    return math.exp(x)


@overload(exponential, inline="always")
def _compile_exponential(x: Any) -> Callable[[Any], Any]:
    return _plain(_exponential_float32 if x == numba.float32 else _exponential_float64)


def _exponential_float64(x: Any) -> Any:
    return math.exp(x)


def _exponential_float32(x: Any) -> Any:
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    power = np.float32(math.floor(x * np.float32(1.4426950408889634) + np.float32(0.5)))
    rest = x - power * np.float32(0.693359375)
    rest = rest - power * np.float32(-2.12194440e-4)
    sum_ = np.float32(1.0 / 5040.0)
    sum_ = sum_ * rest + np.float32(1.0 / 720.0)
    sum_ = sum_ * rest + np.float32(1.0 / 120.0)
    sum_ = sum_ * rest + np.float32(1.0 / 24.0)
    sum_ = sum_ * rest + np.float32(1.0 / 6.0)
    sum_ = sum_ * rest + np.float32(0.5)
    sum_ = sum_ * rest * rest + rest + np.float32(1.0)
    bits = (np.int32(power) + np.int32(127)) << np.int32(23)
    return sum_ * np.int32(bits).view(np.float32)


def log_one_plus(x: float) -> float:
    """log(1 + x) for 0 <= x <= 1 in the precision of x; a series in x / (2 + x) in float32 (error below 1e-7)."""
    return math.log1p(x)


@overload(log_one_plus, inline="always")
def _compile_log_one_plus(x: Any) -> Callable[[Any], Any]:
    return _plain(_log_one_plus_float32 if x == numba.float32 else _log_one_plus_float64)


def _log_one_plus_float64(x: Any) -> Any:
    return math.log1p(x)


def _log_one_plus_float32(x: Any) -> Any:
    z = x / (np.float32(2.0) + x)
    square = z * z
    sum_ = np.float32(2.0 / 13.0)
    sum_ = sum_ * square + np.float32(2.0 / 11.0)
    sum_ = sum_ * square + np.float32(2.0 / 9.0)
    sum_ = sum_ * square + np.float32(2.0 / 7.0)
    sum_ = sum_ * square + np.float32(2.0 / 5.0)
    sum_ = sum_ * square + np.float32(2.0 / 3.0)
    return z * (sum_ * square + np.float32(2.0))
