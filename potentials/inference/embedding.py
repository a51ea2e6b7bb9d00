"""Input embedding from radial tables: x_i[lm] = sum over edges of Y_lm(u) R_l(r), and its derivative.

Spherical harmonics follow from the recursion Y_l = sum C Y_{l-1} u of `so3.harmonics`, backwards for the derivative.
The kernels are compiled for the sizes of a network: loops of known length become a few vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline, kernel
from e2former_calc.potentials.inference.geometry import Edges

Array = NDArray[Any]


class Harmonics(NamedTuple):
    """Sparse recursion, in the order of rising degrees: y[row] += factor * y[lower] * u[axis]; and degrees of rows."""

    row: Array
    lower: Array
    axis: Array
    factor: Array
    degree: Array


class EmbeddingKernels(NamedTuple):
    """Compiled functions; each works on the atoms first ... last - 1.

    Attributes:
        embed: (first, last, edges, table, harmonics, x); fills x, (rows, atoms, channels). `table` is
            (slots, 4, degrees * channels): value, slope, curvature, chord.
        backward: (first, last, edges, table, harmonics, d_x, d_unit, d_distance); adds to the last two.
    """

    embed: Callable[..., None]
    backward: Callable[..., None]


@cache
def embedding_kernels(lmax: int, channels: int) -> EmbeddingKernels:
    """Kernels for a largest degree and a number of channels."""
    return EmbeddingKernels(_embed(lmax, channels), _backward(lmax, channels))


def _embed(lmax: int, channels: int) -> Callable[..., None]:
    rows, width = (lmax + 1) ** 2, (lmax + 1) * channels

    @kernel
    def embed(first: int, last: int, edges: Edges, table: Array, harmonics: Harmonics, x: Array) -> None:
        radial, y = np.empty(width, table.dtype), np.empty(rows, table.dtype)
        total = np.empty((rows, channels), table.dtype)
        for i in range(first, last):
            total[:] = 0.0
            for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
                _interpolate(table, edges.slot[edge], edges.spline[edge, :6], radial, width)
                _evaluate(harmonics, edges.unit[edge], y)
                _add_outer(y, radial, total, lmax, channels)
            for row in range(rows):
                for c in range(channels):
                    x[row, i, c] = total[row, c]

    return embed


def _backward(lmax: int, channels: int) -> Callable[..., None]:
    rows, width = (lmax + 1) ** 2, (lmax + 1) * channels

    @kernel
    def backward(
        first: int, last: int, edges: Edges, table: Array, harmonics: Harmonics, d_x: Array, d_unit: Array,
        d_distance: Array,
    ) -> None:  # fmt: skip
        radial, slope = np.empty(width, table.dtype), np.empty(width, table.dtype)
        y, d_y, flow = np.empty(rows, table.dtype), np.empty(rows, table.dtype), np.empty(width, table.dtype)
        upstream = np.empty((rows, channels), table.dtype)
        for i in range(first, last):
            for row in range(rows):
                for c in range(channels):
                    upstream[row, c] = d_x[row, i, c]
            for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
                _interpolate(table, edges.slot[edge], edges.spline[edge, :6], radial, width)
                _interpolate_slope(table, edges.slot[edge], edges.spline[edge], slope, width)
                _evaluate(harmonics, edges.unit[edge], y)
                _outer_backward(y, radial, upstream, d_y, flow, lmax, channels)
                along = table.dtype.type(0.0)
                for c in range(width):
                    along += flow[c] * slope[c]
                d_distance[edge] += along
                _harmonics_backward(harmonics, edges.unit[edge], y, d_y, d_unit[edge])

    return backward


@inline
def _add_outer(y: Array, radial: Array, total: Array, lmax: int, channels: int) -> None:
    for degree in range(lmax + 1):
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            for c in range(channels):
                total[row, c] += y[row] * radial[degree * channels + c]


@inline
def _outer_backward(
    y: Array, radial: Array, upstream: Array, d_y: Array, d_radial: Array, lmax: int, channels: int
) -> None:
    for degree in range(lmax + 1):
        start = degree * channels
        for c in range(channels):
            d_radial[start + c] = 0.0
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            overlap = radial.dtype.type(0.0)
            for c in range(channels):
                d_radial[start + c] += y[row] * upstream[row, c]
                overlap += radial[start + c] * upstream[row, c]
            d_y[row] = overlap


@inline
def _interpolate(table: Array, slot: int, spline: Array, result: Array, width: int) -> None:
    """Splines of all functions of one pair of elements, from the weights of the six rows."""
    a, b, c, d, e, f = spline[0], spline[1], spline[2], spline[3], spline[4], spline[5]
    for k in range(width):
        low = a * table[slot, 0, k] + b * table[slot, 1, k] + c * table[slot, 2, k]
        result[k] = low + d * table[slot + 1, 0, k] + e * table[slot + 1, 1, k] + f * table[slot + 1, 2, k]


@inline
def _interpolate_slope(table: Array, slot: int, spline: Array, result: Array, width: int) -> None:
    """Derivatives of the splines by the distance."""
    a, b, c, d, e = spline[6], spline[7], spline[8], spline[9], spline[10]
    for k in range(width):
        low = a * table[slot, 3, k] + b * table[slot, 1, k] + c * table[slot, 2, k]
        result[k] = low + d * table[slot + 1, 1, k] + e * table[slot + 1, 2, k]


@inline
def _evaluate(harmonics: Harmonics, unit: Array, y: Array) -> None:
    y[:] = 0.0
    y[0] = 1.0
    for term in range(harmonics.row.shape[0]):
        y[harmonics.row[term]] += harmonics.factor[term] * y[harmonics.lower[term]] * unit[harmonics.axis[term]]


@inline
def _harmonics_backward(harmonics: Harmonics, unit: Array, y: Array, d_y: Array, d_unit: Array) -> None:
    n_terms = harmonics.row.shape[0]
    for back in range(n_terms):
        term = n_terms - 1 - back
        row, lower, axis = harmonics.row[term], harmonics.lower[term], harmonics.axis[term]
        flow = harmonics.factor[term] * d_y[row]
        d_y[lower] += flow * unit[axis]
        d_unit[axis] += flow * y[lower]
