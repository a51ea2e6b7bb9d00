"""Correlation functions by FFT, O(frames log frames), averaged over all time origins."""

from __future__ import annotations

import numpy as np
import scipy.fft
from jaxtyping import Float

COLUMN_CHUNK = 96
"""Columns transformed at a time, so that memory stays bounded for many atoms."""


def autocorrelation(
    series: Float[np.ndarray, "frames columns"],
    *,
    weights: Float[np.ndarray, " columns"] | None = None,
    max_lag: int | None = None,
) -> Float[np.ndarray, " lags"]:
    """Sum over columns of weight times <x(s) x(s + t)>_s, lags 0 ... max_lag, unbiased (lag t has frames - t origins).

    Raises:
        ValueError: if `max_lag` is negative or not smaller than the number of frames.
    """
    frames, columns = series.shape
    lags = frames if max_lag is None else max_lag + 1
    if not 1 <= lags <= frames:
        raise ValueError(f"`max_lag` must be 0 ... {frames - 1} for {frames} frames, got {max_lag}")
    scale = np.ones(columns) if weights is None else weights
    size = scipy.fft.next_fast_len(2 * frames - 1, real=True)
    power = np.zeros(size // 2 + 1)
    for start in range(0, columns, COLUMN_CHUNK):
        part = slice(start, start + COLUMN_CHUNK)
        transform = scipy.fft.rfft(np.asarray(series[:, part], dtype=np.float64), n=size, axis=0)
        power += (transform.real**2 + transform.imag**2) @ scale[part]
    correlation: Float[np.ndarray, " lags"] = scipy.fft.irfft(power, n=size)[:lags]
    return np.asarray(correlation / (frames - np.arange(lags)))


def mean_squared_displacement(
    positions: Float[np.ndarray, "frames atoms 3"], *, max_lag: int | None = None
) -> Float[np.ndarray, " lags"]:
    """<|r(s + t) - r(s)|^2> over origins and atoms for lags 0 ... max_lag, in the square of the unit of `positions`.

    Positions must be unwrapped. The mean position of each atom is removed first, which changes nothing but rounding.

    Raises:
        ValueError: if `max_lag` is negative or not smaller than the number of frames.
    """
    frames, atoms = positions.shape[:2]
    flat = (positions - positions.mean(axis=0)).reshape(frames, -1)
    product = autocorrelation(flat, max_lag=max_lag)
    lags = np.arange(len(product))
    squares = np.einsum("fc,fc->f", flat, flat)
    head = np.concatenate([[0.0], np.cumsum(squares)])
    both = (head[frames - lags] + head[frames] - head[lags]) / (frames - lags)
    result: Float[np.ndarray, " lags"] = (both - 2.0 * product) / atoms
    result[0] = 0.0
    return result
