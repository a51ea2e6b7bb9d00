"""What happens to each atom between matrix products: norms, invariants, gates; each with its derivative.

Node features are (rows, atoms, channels), so that all rows of one degree are one matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import exponential, inline, kernel

Array = NDArray[Any]


class Norm(NamedTuple):
    """Separable RMS norm: gain (degrees, channels), bias (channels), degree and balance of every row, epsilon."""

    gain: Array
    bias: Array
    degree: Array
    balance: Array
    epsilon: float


@kernel
def normalize(first: int, last: int, x: Array, norm: Norm, shift: Array, y: Array, scale: Array) -> None:
    """Centred scalars, one scale per atom (kept in `scale`), gain, bias; `shift` (atoms, channels) goes to l = 0."""
    n_rows, channels = x.shape[0], x.shape[2]
    size = x.dtype.type(channels)
    for i in range(first, last):
        mean = x.dtype.type(0.0)
        for c in range(channels):
            mean += x[0, i, c]
        mean /= size
        square = x.dtype.type(0.0)
        for c in range(channels):
            centred = x[0, i, c] - mean
            square += centred * centred
        square *= norm.balance[0]
        for row in range(1, n_rows):
            part = x.dtype.type(0.0)
            for c in range(channels):
                part += x[row, i, c] * x[row, i, c]
            square += part * norm.balance[row]
        inverse = x.dtype.type(1.0 / np.sqrt(square / size + norm.epsilon))
        scale[i] = inverse
        for c in range(channels):
            y[0, i, c] = (x[0, i, c] - mean) * inverse * norm.gain[0, c] + norm.bias[c] + shift[i, c]
        for row in range(1, n_rows):
            gain = norm.gain[norm.degree[row]]
            for c in range(channels):
                y[row, i, c] = x[row, i, c] * inverse * gain[c]


@kernel
def normalize_backward(first: int, last: int, x: Array, norm: Norm, scale: Array, d_y: Array, d_x: Array) -> None:
    """Add the derivative by x to d_x."""
    n_rows, channels = x.shape[0], x.shape[2]
    size = x.dtype.type(channels)
    for i in range(first, last):
        mean = x.dtype.type(0.0)
        for c in range(channels):
            mean += x[0, i, c]
        mean /= size
        overlap = x.dtype.type(0.0)
        for c in range(channels):
            overlap += d_y[0, i, c] * norm.gain[0, c] * (x[0, i, c] - mean)
        for row in range(1, n_rows):
            gain = norm.gain[norm.degree[row]]
            for c in range(channels):
                overlap += d_y[row, i, c] * gain[c] * x[row, i, c]
        inverse = scale[i]
        pull = overlap * inverse * inverse * inverse / size
        d_mean = x.dtype.type(0.0)
        for c in range(channels):
            d_mean += inverse * d_y[0, i, c] * norm.gain[0, c] - pull * norm.balance[0] * (x[0, i, c] - mean)
        d_mean /= size
        for c in range(channels):
            direct = inverse * d_y[0, i, c] * norm.gain[0, c] - pull * norm.balance[0] * (x[0, i, c] - mean)
            d_x[0, i, c] += direct - d_mean
        for row in range(1, n_rows):
            gain, balance = norm.gain[norm.degree[row]], norm.balance[row]
            for c in range(channels):
                d_x[row, i, c] += inverse * d_y[row, i, c] * gain[c] - pull * balance * x[row, i, c]


@kernel
def invariants(first: int, last: int, maps: Array, degree: Array, result: Array, value: Array) -> None:
    """Products of pairs of linear maps summed over m; and the value map, moved to (atoms, rows, channels).

    `maps` is (rows, atoms, 4 * half + channels): two maps for the query, two for the key, one for the value.
    `result` is (2, atoms, degrees * half): query, key.
    """
    n_rows, half = maps.shape[0], result.shape[2] // (degree[-1] + 1)
    channels = value.shape[2]
    for i in range(first, last):
        result[0, i] = 0.0
        result[1, i] = 0.0
        for row in range(n_rows):
            own, start = maps[row, i], degree[row] * half
            for which in range(2):
                target, offset = result[which, i], 2 * half * which
                for c in range(half):
                    target[start + c] += own[offset + c] * own[offset + half + c]
            for c in range(channels):
                value[i, row, c] = own[4 * half + c]


@kernel
def invariants_backward(first: int, last: int, maps: Array, degree: Array, d_result: Array, d_value: Array) -> None:
    """Derivative of `invariants` by the maps, written over them."""
    n_rows, half = maps.shape[0], d_result.shape[2] // (degree[-1] + 1)
    channels = d_value.shape[2]
    for i in range(first, last):
        for row in range(n_rows):
            own, start = maps[row, i], degree[row] * half
            for which in range(2):
                upstream, offset = d_result[which, i], 2 * half * which
                for c in range(half):
                    one, other = own[offset + c], own[offset + half + c]
                    own[offset + c] = upstream[start + c] * other
                    own[offset + half + c] = upstream[start + c] * one
            for c in range(channels):
                own[4 * half + c] = d_value[i, row, c]


@kernel
def activate(first: int, last: int, x: Array, gain: Array, bias: Array, epsilon: float, y: Array) -> None:
    """A layer norm and silu; all (atoms, width)."""
    width = x.shape[1]
    one = x.dtype.type(1.0)
    for i in range(first, last):
        mean, inverse = _moments(x[i], epsilon)
        for c in range(width):
            z = (x[i, c] - mean) * inverse * gain[c] + bias[c]
            y[i, c] = z / (one + exponential(-z))


@inline
def _moments(row: Array, epsilon: float) -> tuple[Any, Any]:
    """Mean, and 1 / standard deviation."""
    width = row.shape[0]
    size = row.dtype.type(width)
    mean, variance = row.dtype.type(0.0), row.dtype.type(0.0)
    for c in range(width):
        mean += row[c]
    mean /= size
    for c in range(width):
        variance += (row[c] - mean) * (row[c] - mean)
    return mean, row.dtype.type(1.0 / np.sqrt(variance / size + epsilon))


@kernel
def activate_backward(
    first: int, last: int, x: Array, gain: Array, bias: Array, epsilon: float, d_y: Array, d_x: Array
) -> None:
    """Derivative of `activate` by x."""
    width = x.shape[1]
    size = x.dtype.type(width)
    one = x.dtype.type(1.0)
    for i in range(first, last):
        mean, inverse = _moments(x[i], epsilon)
        d_mean, d_scale = x.dtype.type(0.0), x.dtype.type(0.0)
        for c in range(width):
            unit = (x[i, c] - mean) * inverse
            z = unit * gain[c] + bias[c]
            logistic = one / (one + exponential(-z))
            flow = d_y[i, c] * logistic * (one + z * (one - logistic)) * gain[c]
            d_x[i, c] = flow
            d_mean += flow
            d_scale += flow * unit
        d_mean /= size
        d_scale /= size
        for c in range(width):
            d_x[i, c] = inverse * (d_x[i, c] - d_mean - (x[i, c] - mean) * inverse * d_scale)


@kernel
def gate(
    first: int, last: int, f: Array, gates: Array, degree: Array, gain_scalar: float, gain_vector: float, z: Array
) -> None:
    """Scalars: silu of their gate; higher degrees: features times sigmoid; `gates` is (atoms, degrees * channels)."""
    n_rows, channels = f.shape[0], f.shape[2]
    one = f.dtype.type(1.0)
    scalar, vector = f.dtype.type(gain_scalar), f.dtype.type(gain_vector)
    logistic = np.empty(gates.shape[1], dtype=f.dtype)
    for i in range(first, last):
        for c in range(gates.shape[1]):
            logistic[c] = one / (one + exponential(-gates[i, c]))
        for c in range(channels):
            z[0, i, c] = scalar * gates[i, c] * logistic[c]
        for row in range(1, n_rows):
            start = degree[row] * channels
            for c in range(channels):
                z[row, i, c] = vector * logistic[start + c] * f[row, i, c]


@kernel
def gate_backward(
    first: int, last: int, f: Array, gates: Array, degree: Array, gain_scalar: float, gain_vector: float,
    d_z: Array, d_f: Array, d_gates: Array,
) -> None:  # fmt: skip
    """Derivatives of `gate` by f (rows of l > 0; l = 0 acts through the gates alone) and by the gates."""
    n_rows, channels = f.shape[0], f.shape[2]
    one = f.dtype.type(1.0)
    scalar, vector = f.dtype.type(gain_scalar), f.dtype.type(gain_vector)
    logistic = np.empty(gates.shape[1], dtype=f.dtype)
    for i in range(first, last):
        for c in range(gates.shape[1]):
            logistic[c] = one / (one + exponential(-gates[i, c]))
            d_gates[i, c] = 0.0
        for c in range(channels):
            slope = logistic[c] * (one + gates[i, c] * (one - logistic[c]))
            d_gates[i, c] = scalar * slope * d_z[0, i, c]
        for row in range(1, n_rows):
            start = degree[row] * channels
            for c in range(channels):
                d_f[row, i, c] = vector * logistic[start + c] * d_z[row, i, c]
                d_gates[i, start + c] += vector * f[row, i, c] * d_z[row, i, c]
        for c in range(channels, gates.shape[1]):
            d_gates[i, c] *= logistic[c] * (one - logistic[c])


@kernel
def silu(first: int, last: int, x: Array, y: Array, slope: Array) -> None:
    """Function and derivative; all (atoms, width)."""
    one = x.dtype.type(1.0)
    for i in range(first, last):
        for c in range(x.shape[1]):
            logistic = one / (one + exponential(-x[i, c]))
            y[i, c] = x[i, c] * logistic
            slope[i, c] = logistic * (one + x[i, c] * (one - logistic))


@kernel
def domain_distance(
    first: int, last: int, descriptors: Array, row: Array, mean: Array, whitening: Array, result: Array
) -> None:
    """Length of whitening applied to the deviation from the mean; infinite for atoms with a negative row.

    `mean` (elements, channels) and `whitening` (elements, channels, channels) are float64.
    """
    channels = descriptors.shape[1]
    vector = np.empty(channels)
    for i in range(first, last):
        if row[i] < 0:
            result[i] = np.inf
            continue
        vector[:] = 0.0
        for k in range(channels):
            deviation = descriptors[i, k] - mean[row[i], k]
            for c in range(channels):
                vector[c] += deviation * whitening[row[i], k, c]
        total = 0.0
        for c in range(channels):
            total += vector[c] * vector[c]
        result[i] = np.sqrt(total)
