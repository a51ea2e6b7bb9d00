"""The normal numbers of `noise` by a native kernel for the host: the same bits, ten times as fast."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from e2former_calc.potentials.exact_kernels import exact, exact_inline

_MASK = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_FIRST, _SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_FIRST_KEY, _SECOND_KEY = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10

_LOGARITHM = tuple(1.0 / (2 * k + 1) for k in reversed(range(11)))
_COSINE = tuple((-1.0) ** k / math.factorial(2 * k) for k in reversed(range(9)))
_SINE = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in reversed(range(9)))
"""Coefficients of the series in `noise`, from the highest power down."""

_TURN, _LOG_TWO, _ROOT_HALF = 2.0 * math.pi, math.log(2.0), math.sqrt(0.5)
_MANTISSA, _HALF, _EXPONENT = 0x000FFFFFFFFFFFFF, 0x3FE0000000000000, 1022
"""Bits of the fraction of a float64, those of the number 1/2, and its exponent as it is stored."""


@exact
def normals(
    index: Int[ndarray, " rows"], ids: Int[ndarray, " rows"], step: int, purpose: int, key: tuple[int, int],
    result: Float[ndarray, "rows 3"],
) -> None:  # fmt: skip
    """Fill `result` with the normal numbers of a step: `noise._box_muller` of uniform numbers from `noise.philox`."""
    rows = len(index)
    uniform = np.empty((4, rows))
    counter = np.uint64(step) & _MASK, (np.uint64(step) >> _HALF_WORD) * np.uint64(256) + np.uint64(purpose)
    for i in range(rows):
        words = _philox(
            np.uint64(index[i]), counter[0], np.uint64(ids[i]), counter[1], np.uint64(key[0]), np.uint64(key[1])
        )
        uniform[0, i] = (np.float64(words[0]) + 0.5) * 2.0**-32
        uniform[1, i] = (np.float64(words[1]) + 0.5) * 2.0**-32
        uniform[2, i] = (np.float64(words[2]) + 0.5) * 2.0**-32
        uniform[3, i] = (np.float64(words[3]) + 0.5) * 2.0**-32
    for i in range(rows):
        radius = math.sqrt(-2.0 * _logarithm(uniform[0, i]))
        cosine, sine = _circle(uniform[1, i])
        result[i, 0] = radius * cosine
        result[i, 1] = radius * sine
    for i in range(rows):
        result[i, 2] = math.sqrt(-2.0 * _logarithm(uniform[2, i])) * _circle(uniform[3, i])[0]


@exact_inline
def _philox(a: Any, b: Any, c: Any, d: Any, first_key: Any, second_key: Any) -> tuple[Any, Any, Any, Any]:
    """`noise.philox` of one counter."""
    for _ in range(_ROUNDS):
        first, second = a * _FIRST, c * _SECOND
        a, b = (second >> _HALF_WORD) ^ b ^ first_key, second & _MASK
        c, d = (first >> _HALF_WORD) ^ d ^ second_key, first & _MASK
        first_key, second_key = (first_key + _FIRST_KEY) & _MASK, (second_key + _SECOND_KEY) & _MASK
    return a, b, c, d


@exact_inline
def _logarithm(x: Any) -> Any:
    """`noise._logarithm` of one number."""
    bits = np.float64(x).view(np.int64)
    mantissa = np.int64((bits & _MANTISSA) | _HALF).view(np.float64)
    exponent = np.float64((bits >> 52) - _EXPONENT)
    small = mantissa < _ROOT_HALF
    mantissa = mantissa * 2.0 if small else mantissa
    power = exponent - 1.0 if small else exponent
    t = (mantissa - 1.0) / (mantissa + 1.0)
    square = t * t
    value = _LOGARITHM[0]
    for coefficient in _LOGARITHM[1:]:
        value = value * square + coefficient
    return power * _LOG_TWO + 2.0 * t * value


@exact_inline
def _circle(turns: Any) -> tuple[Any, Any]:
    """`noise._circle` of one angle."""
    quarter = np.rint(4.0 * turns)
    x = (turns - 0.25 * quarter) * _TURN
    square = x * x
    cosine, sine = _COSINE[0], _SINE[0]
    for coefficient in _COSINE[1:]:
        cosine = cosine * square + coefficient
    for coefficient in _SINE[1:]:
        sine = sine * square + coefficient
    sine = x * sine
    odd = quarter == 1.0 or quarter == 3.0
    first, second = -sine if odd else cosine, cosine if odd else sine
    half = quarter == 2.0 or quarter == 3.0
    return -first if half else first, -second if half else second
