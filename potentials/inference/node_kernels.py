"""What happens to each atom between matrix products: norms, invariants, gates; each with its derivative.

Features are (atoms, rows * channels), and functions work on all atoms of what they get. They become part of the passes
that call them: of a kernel that several others call, each has a machine code of its own with other roundings, and which
one is used would depend on the order in which they are loaded.
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


@inline
def _mean(row: Array, width: int) -> Any:
    total = row.dtype.type(0.0)
    for c in range(width):
        total += row[c]
    return total / row.dtype.type(width)


@inline
def normalize(x: Array, norm: Norm, shift: Array, scale: Array, result: Array) -> None:
    """Centred scalars, one scale per atom (kept in `scale`), gain, bias; `shift`, if it has atoms, goes to l = 0."""
    n_rows, channels = norm.degree.shape[0], norm.gain.shape[1]
    size = x.dtype.type(channels)
    for i in range(x.shape[0]):
        own, y = x[i], result[i]
        mean = _mean(own, channels)
        square = x.dtype.type(0.0)
        for c in range(channels):
            centred = own[c] - mean
            square += centred * centred
        square *= norm.balance[0]
        for row in range(1, n_rows):
            part, features = x.dtype.type(0.0), own[row * channels : (row + 1) * channels]
            for c in range(channels):
                part += features[c] * features[c]
            square += part * norm.balance[row]
        inverse = x.dtype.type(1.0 / np.sqrt(square / size + norm.epsilon))
        scale[i] = inverse
        for c in range(channels):
            y[c] = (own[c] - mean) * inverse * norm.gain[0, c] + norm.bias[c]
        if shift.shape[0] > 0:
            for c in range(channels):
                y[c] += shift[i, c]
        for row in range(1, n_rows):
            gain, features = norm.gain[norm.degree[row]], own[row * channels : (row + 1) * channels]
            target = y[row * channels : (row + 1) * channels]
            for c in range(channels):
                target[c] = features[c] * inverse * gain[c]


@inline
def normalize_backward(x: Array, norm: Norm, scale: Array, upstream: Array, d_x: Array) -> None:
    """Add to d_x the derivative by x, from that by the result."""
    n_rows, channels = norm.degree.shape[0], norm.gain.shape[1]
    size = x.dtype.type(channels)
    for i in range(x.shape[0]):
        own, d_y, result = x[i], upstream[i], d_x[i]
        mean = _mean(own, channels)
        overlap = x.dtype.type(0.0)
        for c in range(channels):
            overlap += d_y[c] * norm.gain[0, c] * (own[c] - mean)
        for row in range(1, n_rows):
            gain, start, end = norm.gain[norm.degree[row]], row * channels, (row + 1) * channels
            features, flow = own[start:end], d_y[start:end]
            for c in range(channels):
                overlap += flow[c] * gain[c] * features[c]
        inverse = scale[i]
        pull = overlap * inverse * inverse * inverse / size
        d_mean = x.dtype.type(0.0)
        for c in range(channels):
            d_mean += inverse * d_y[c] * norm.gain[0, c] - pull * norm.balance[0] * (own[c] - mean)
        d_mean /= size
        for c in range(channels):
            result[c] += inverse * d_y[c] * norm.gain[0, c] - pull * norm.balance[0] * (own[c] - mean) - d_mean
        for row in range(1, n_rows):
            gain, start, end = norm.gain[norm.degree[row]], row * channels, (row + 1) * channels
            features, flow, target, shrink = own[start:end], d_y[start:end], result[start:end], pull * norm.balance[row]
            for c in range(channels):
                target[c] += inverse * flow[c] * gain[c] - shrink * features[c]


@inline
def invariants(maps: Array, degree: Array, result: Array) -> None:
    """Products of pairs of linear maps summed over m.

    `maps` is (atoms, rows * 4 * half): two maps for the query, two for the key. `result` is (2, at least as many atoms,
    degrees * half): query, key.
    """
    n_rows, half = degree.shape[0], result.shape[2] // (degree[-1] + 1)
    for i in range(maps.shape[0]):
        for which in range(2):
            result[which, i] = 0.0
            for row in range(n_rows):
                start, at = degree[row] * half, (4 * row + 2 * which) * half
                one, other = maps[i, at : at + half], maps[i, at + half : at + 2 * half]
                target = result[which, i, start : start + half]
                for c in range(half):
                    target[c] += one[c] * other[c]


@inline
def invariants_backward(maps: Array, degree: Array, d_result: Array) -> None:
    """Derivative of `invariants` by the maps, written over them."""
    n_rows, half = degree.shape[0], d_result.shape[2] // (degree[-1] + 1)
    for i in range(maps.shape[0]):
        for row in range(n_rows):
            for which in range(2):
                start, at = degree[row] * half, (4 * row + 2 * which) * half
                one, other = maps[i, at : at + half], maps[i, at + half : at + 2 * half]
                upstream = d_result[which, i, start : start + half]
                for c in range(half):
                    value = one[c]
                    one[c] = upstream[c] * other[c]
                    other[c] = upstream[c] * value


@inline
def activate(x: Array, gain: Array, bias: Array, epsilon: float, result: Array) -> None:
    """A layer norm and silu; (atoms, width)."""
    one = x.dtype.type(1.0)
    for i in range(x.shape[0]):
        own, y = x[i], result[i]
        mean, inverse = _moments(own, epsilon)
        for c in range(own.shape[0]):
            z = (own[c] - mean) * inverse * gain[c] + bias[c]
            y[c] = z / (one + exponential(-z))


@inline
def _moments(row: Array, epsilon: float) -> tuple[Any, Any]:
    """Mean, and 1 / standard deviation."""
    width = row.shape[0]
    size = row.dtype.type(width)
    mean, variance = _mean(row, width), row.dtype.type(0.0)
    for c in range(width):
        variance += (row[c] - mean) * (row[c] - mean)
    return mean, row.dtype.type(1.0 / np.sqrt(variance / size + epsilon))


@inline
def activate_backward(x: Array, gain: Array, bias: Array, epsilon: float, flow: Array) -> None:
    """Derivative of `activate` by x, written over that by its result."""
    width = x.shape[1]
    size = x.dtype.type(width)
    one = x.dtype.type(1.0)
    for i in range(x.shape[0]):
        own, d_x = x[i], flow[i]
        mean, inverse = _moments(own, epsilon)
        d_mean, d_scale = x.dtype.type(0.0), x.dtype.type(0.0)
        for c in range(width):
            unit = (own[c] - mean) * inverse
            z = unit * gain[c] + bias[c]
            logistic = one / (one + exponential(-z))
            d_x[c] *= logistic * (one + z * (one - logistic)) * gain[c]
            d_mean += d_x[c]
            d_scale += d_x[c] * unit
        d_mean /= size
        d_scale /= size
        for c in range(width):
            d_x[c] = inverse * (d_x[c] - d_mean - (own[c] - mean) * inverse * d_scale)


@inline
def gate(f: Array, gates: Array, degree: Array, gain_scalar: float, gain_vector: float, result: Array) -> None:
    """Scalars: silu of their gate; higher degrees: features times sigmoid; `gates` is (atoms, degrees * channels)."""
    n_rows, channels = degree.shape[0], gates.shape[1] // (degree[-1] + 1)
    one = f.dtype.type(1.0)
    scalar, vector = f.dtype.type(gain_scalar), f.dtype.type(gain_vector)
    logistic = np.empty(gates.shape[1], dtype=f.dtype)
    for i in range(f.shape[0]):
        own, opening, z = f[i], gates[i], result[i]
        for c in range(gates.shape[1]):
            logistic[c] = one / (one + exponential(-opening[c]))
        for c in range(channels):
            z[c] = scalar * opening[c] * logistic[c]
        for row in range(1, n_rows):
            start, at = degree[row] * channels, row * channels
            opened, features, target = (
                logistic[start : start + channels],
                own[at : at + channels],
                z[at : at + channels],
            )
            for c in range(channels):
                target[c] = vector * opened[c] * features[c]


@inline
def gate_backward(
    f: Array, gates: Array, degree: Array, gain_scalar: float, gain_vector: float, flow: Array, d_gates: Array
) -> None:
    """Derivatives of `gate` by f, written over that by its result (l > 0), and by the gates."""
    n_rows, channels = degree.shape[0], gates.shape[1] // (degree[-1] + 1)
    one = f.dtype.type(1.0)
    scalar, vector = f.dtype.type(gain_scalar), f.dtype.type(gain_vector)
    logistic = np.empty(gates.shape[1], dtype=f.dtype)
    for i in range(f.shape[0]):
        own, opening, d_z, by_gate = f[i], gates[i], flow[i], d_gates[i]
        for c in range(gates.shape[1]):
            logistic[c] = one / (one + exponential(-opening[c]))
            by_gate[c] = 0.0
        for c in range(channels):
            by_gate[c] = scalar * logistic[c] * (one + opening[c] * (one - logistic[c])) * d_z[c]
        for row in range(1, n_rows):
            start, at = degree[row] * channels, row * channels
            opened, features, target = (
                logistic[start : start + channels],
                own[at : at + channels],
                d_z[at : at + channels],
            )
            gate_flow = by_gate[start : start + channels]
            for c in range(channels):
                gate_flow[c] += vector * features[c] * target[c]
                target[c] *= vector * opened[c]
        for c in range(channels, gates.shape[1]):
            by_gate[c] *= logistic[c] * (one - logistic[c])


@inline
def silu(x: Array, slope: Array) -> None:
    """The function, written over its argument, and its derivative, for the columns that `slope` has."""
    one = x.dtype.type(1.0)
    for i in range(x.shape[0]):
        for c in range(slope.shape[1]):
            logistic = one / (one + exponential(-x[i, c]))
            slope[i, c] = logistic * (one + x[i, c] * (one - logistic))
            x[i, c] *= logistic


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
        center, factors = mean[row[i]], whitening[row[i]]
        for k in range(channels):
            deviation, line = descriptors[i, k] - center[k], factors[k]
            for c in range(channels):
                vector[c] += deviation * line[c]
        total = 0.0
        for c in range(channels):
            total += vector[c] * vector[c]
        result[i] = np.sqrt(total)
