"""Input embedding from radial tables: x_i[lm] = sum over edges of Y_lm(u) R_l(r), and its derivative.

Spherical harmonics follow from the recursion Y_l = sum C Y_{l-1} u of `so3.harmonics`, backwards for the derivative.
The kernels are compiled for the sizes of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline, kernel
from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.splines import SLOPE, VALUE, Splines
from e2former_calc.potentials.inference.vectors import Argument, Emitter, vector_kernel

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
        embed: (first, last, edges, table, harmonics, x); fills x, (atoms, rows, channels). `table` is
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
    rows, sizes = (lmax + 1) ** 2, (lmax, channels)

    @kernel
    def embed(first: int, last: int, edges: Edges, table: Array, harmonics: Harmonics, x: Array) -> None:
        y = np.empty(rows, table.dtype)
        for i in range(first, last):
            x[i] = 0.0
            for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
                evaluate_harmonics(harmonics, edges.unit[edge], y)
                _add_outer(sizes, edge, edges, table, y, x[i])

    return embed


def _backward(lmax: int, channels: int) -> Callable[..., None]:
    rows, sizes = (lmax + 1) ** 2, (lmax, channels)

    @kernel
    def backward(
        first: int, last: int, edges: Edges, table: Array, harmonics: Harmonics, d_x: Array, d_unit: Array,
        d_distance: Array,
    ) -> None:  # fmt: skip
        y, flow = np.empty(rows, table.dtype), np.empty(rows + 1, table.dtype)
        for i in range(first, last):
            for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
                evaluate_harmonics(harmonics, edges.unit[edge], y)
                _outer_backward(sizes, edge, edges, table, y, d_x[i], flow)
                d_distance[edge] += flow[rows]
                harmonics_backward(harmonics, edges.unit[edge], y, flow, d_unit[edge])

    return backward


@vector_kernel
def _add_outer(
    context: Any, builder: Any, sizes: tuple[int, ...], edge: Argument, edges: Argument, table: Argument, y: Argument,
    total: Argument,
) -> None:  # fmt: skip
    """total[row, c] += y[row] R[degree of row, c]; `sizes` are the largest degree and the number of channels."""
    lmax, channels = sizes
    emit = Emitter(context, builder, table.kind.dtype, [channels])
    factors = [emit.broadcast(emit.element_at(y.start, (row, 1))) for row in range((lmax + 1) ** 2)]
    value = Splines(emit, edge.value, edges, table, width=(lmax + 1) * channels, terms=VALUE)
    with emit.loop(channels // emit.lanes) as chunk:
        channel = emit.offset((chunk, emit.lanes))
        result = emit.at(total.start, (channel, 1))
        for degree in range(lmax + 1):
            radial = value.at(channel, degree * channels)
            for row in range(degree**2, (degree + 1) ** 2):
                sum_ = emit.fma(factors[row], radial, emit.load(result, row * channels))
                emit.store(sum_, result, row * channels)


@vector_kernel
def _outer_backward(
    context: Any, builder: Any, sizes: tuple[int, ...], edge: Argument, edges: Argument, table: Argument, y: Argument,
    upstream: Argument, flow: Argument,
) -> None:  # fmt: skip
    """Derivatives of sum upstream[row, c] y[row] R[degree, c] by y, and by the distance through R: rows + 1 numbers."""
    lmax, channels = sizes
    emit, rows = Emitter(context, builder, table.kind.dtype, [channels]), (lmax + 1) ** 2
    factors = [emit.broadcast(emit.element_at(y.start, (row, 1))) for row in range(rows)]
    value, slope = (
        Splines(emit, edge.value, edges, table, width=(lmax + 1) * channels, terms=terms) for terms in (VALUE, SLOPE)
    )
    sums = [emit.variable(emit.constant(0.0)) for _ in range(rows + 1)]
    with emit.loop(channels // emit.lanes) as chunk:
        channel = emit.offset((chunk, emit.lanes))
        fields = emit.at(upstream.start, (channel, 1))
        for degree in range(lmax + 1):
            radial, by_radial = value.at(channel, degree * channels), emit.constant(0.0)
            for row in range(degree**2, (degree + 1) ** 2):
                field = emit.load(fields, row * channels)
                by_radial = emit.fma(factors[row], field, by_radial)
                sums[row].value = emit.fma(radial, field, sums[row].value)
            sums[rows].value = emit.fma(by_radial, slope.at(channel, degree * channels), sums[rows].value)
    for place, sum_ in enumerate(sums):
        builder.store(emit.sum(sum_.value), emit.at(flow.start, (place, 1)))


@inline
def evaluate_harmonics(harmonics: Harmonics, unit: Array, y: Array) -> None:
    """Spherical harmonics y of one unit vector."""
    y[:] = 0.0
    y[0] = 1.0
    for term in range(harmonics.row.shape[0]):
        y[harmonics.row[term]] += harmonics.factor[term] * y[harmonics.lower[term]] * unit[harmonics.axis[term]]


@inline
def harmonics_backward(harmonics: Harmonics, unit: Array, y: Array, d_y: Array, d_unit: Array) -> None:
    """Add to the derivative by the unit vector that through its harmonics; `d_y` is overwritten."""
    n_terms = harmonics.row.shape[0]
    for back in range(n_terms):
        term = n_terms - 1 - back
        row, lower, axis = harmonics.row[term], harmonics.lower[term], harmonics.axis[term]
        flow = harmonics.factor[term] * d_y[row]
        d_y[lower] += flow * unit[axis]
        d_unit[axis] += flow * y[lower]
