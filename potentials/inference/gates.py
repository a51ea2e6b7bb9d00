"""Gates of scores that depend on the direction of an edge, QKdot_alpha and QKdotS_alpha, and their derivatives.

Both begin with p[l, c] = R_lc(r) sum_m Y_lm(u) d_i[lm, c]: projections of a linear map d_i of the center's normalised
features on the direction u, times tabulated functions of the distance. QKdot_alpha maps p to the heads; QKdotS_alpha,
whose solid harmonics r^l Y_lm(u) have their power of r in the table, maps it to a norm, silu and a second map.

Rows of some edges at a time pass through the maps. Every edge belongs to its center, which needs only itself, so that
threads share nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline, kernel
from e2former_calc.potentials.inference.embedding import Harmonics, evaluate_harmonics, harmonics_backward
from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.node_kernels import (
    Norm,
    activate,
    activate_backward,
    normalize,
    normalize_backward,
)
from e2former_calc.potentials.inference.packed import PackedGate
from e2former_calc.potentials.inference.products import apply, apply_transposed
from e2former_calc.potentials.inference.splines import SLOPE, VALUE, Splines
from e2former_calc.potentials.inference.vectors import Argument, Emitter, aligned_memory, vector_kernel
from e2former_calc.potentials.inference.workspace import LayerMemory, Scratch
from e2former_calc.potentials.layers import EPS

Array = NDArray[Any]

CENTERS: Final = 36
"""Atoms that pass through a map at a time."""
EDGES: Final = 48
"""Edges that pass through a map at a time."""


class GateGradients(NamedTuple):
    """Derivatives by harmonics (edges, rows), distances (edges), and input features of a layer, all added to."""

    harmonics: Array
    distance: Array
    features: Array


class GateKernels(NamedTuple):
    """Compiled functions; each works on the atoms first ... last - 1 with the scratch memory of one thread.

    Attributes:
        gates: (share, first, last, gate, norm, memory, scratch, condition, edges, harmonics, table, result); fills
            `result`, (edges, heads). `norm` and `memory` are those of the layer that `gate` belongs to, `harmonics`
            (edges, rows) is what `evaluate` gives, and `table` is (slots, 4, degrees * width).
        backward: (share, first, last, gate, norm, memory, scratch, condition, edges, harmonics, table, d_gates,
            gradients); from the derivative by the result.
    """

    gates: Callable[..., None]
    backward: Callable[..., None]


@cache
def gate_kernels(lmax: int, width: int) -> GateKernels:
    """Kernels for a largest degree and a number of columns c per degree."""
    return GateKernels(_gates(lmax, width), _backward(lmax, width))


@kernel
def evaluate(first: int, last: int, recursion: Harmonics, edges: Edges, harmonics: Array) -> None:
    """Y_lm of the unit vectors of the edges of some centers, (edges, rows)."""
    for edge in range(edges.row_ptr[first], edges.row_ptr[last]):
        evaluate_harmonics(recursion, edges.unit[edge], harmonics[edge])


@kernel
def evaluate_backward(
    first: int, last: int, recursion: Harmonics, edges: Edges, harmonics: Array, d_harmonics: Array, d_unit: Array
) -> None:
    """Add to the derivative by unit vectors what goes through harmonics; `d_harmonics` is overwritten."""
    for edge in range(edges.row_ptr[first], edges.row_ptr[last]):
        harmonics_backward(recursion, edges.unit[edge], harmonics[edge], d_harmonics[edge], d_unit[edge])


def _gates(lmax: int, width: int) -> Callable[..., None]:
    sizes, rows, columns = (lmax, width), (lmax + 1) ** 2, (lmax + 1) * width

    @kernel
    def gates(
        share: int, first: int, last: int, gate: PackedGate, norm: Norm, memory: LayerMemory, scratch: Scratch,
        condition: Array, edges: Edges, harmonics: Array, table: Array, result: Array,
    ) -> None:  # fmt: skip
        none = memory.x[:0]
        block = min(CENTERS, scratch.h.shape[1])
        dots = aligned_memory(block * rows * width, table).reshape(block, rows * width)
        projected = aligned_memory(EDGES * columns, table).reshape(EDGES, columns)
        hidden = aligned_memory(EDGES * result.shape[1], table).reshape(EDGES, result.shape[1])
        for begin in range(first, last, block):
            end = min(begin + block, last)
            _map_centers(share, begin, end, gate, norm, memory, scratch, condition, dots)
            for start in range(edges.row_ptr[begin], edges.row_ptr[end], EDGES):
                stop = min(start + EDGES, edges.row_ptr[end])
                own = result[start:stop]
                _project(sizes, start, stop, begin, edges, table, harmonics, dots, projected)
                apply(gate.first, projected[: stop - start], none, own)
                if gate.gain.shape[0] > 0:
                    activate(own, gate.gain, gate.bias, EPS, hidden)
                    apply(gate.last, hidden[: stop - start], none, own)

    return gates


def _backward(lmax: int, width: int) -> Callable[..., None]:
    sizes, rows, columns = (lmax, width), (lmax + 1) ** 2, (lmax + 1) * width

    @kernel
    def backward(
        share: int, first: int, last: int, gate: PackedGate, norm: Norm, memory: LayerMemory, scratch: Scratch,
        condition: Array, edges: Edges, harmonics: Array, table: Array, d_gates: Array, gradients: GateGradients,
    ) -> None:  # fmt: skip
        none = memory.x[:0]
        block = min(CENTERS, scratch.h.shape[1])
        dots = aligned_memory(block * rows * width, table).reshape(block, rows * width)
        d_dots = aligned_memory(block * rows * width, table).reshape(block, rows * width)
        projected = aligned_memory(EDGES * columns, table).reshape(EDGES, columns)
        before = aligned_memory(EDGES * d_gates.shape[1], table).reshape(EDGES, d_gates.shape[1])
        flow = aligned_memory(EDGES * d_gates.shape[1], table).reshape(EDGES, d_gates.shape[1])
        for begin in range(first, last, block):
            end = min(begin + block, last)
            _map_centers(share, begin, end, gate, norm, memory, scratch, condition, dots)
            d_dots[:] = 0.0
            for start in range(edges.row_ptr[begin], edges.row_ptr[end], EDGES):
                stop = min(start + EDGES, edges.row_ptr[end])
                n, own = stop - start, d_gates[start:stop]
                if gate.gain.shape[0] > 0:
                    _project(sizes, start, stop, begin, edges, table, harmonics, dots, projected)
                    apply(gate.first, projected[:n], none, before[:n])
                    apply_transposed(gate.last, own, none, flow[:n])
                    activate_backward(before[:n], gate.gain, gate.bias, EPS, flow)
                    apply_transposed(gate.first, flow[:n], none, projected[:n])
                else:
                    apply_transposed(gate.first, own, none, projected[:n])
                _project_backward(
                    sizes, start, stop, begin, edges, table, harmonics, dots, projected, d_dots, gradients.harmonics,
                    gradients.distance,
                )  # fmt: skip
            d_h = scratch.h[share, : end - begin]
            apply_transposed(gate.dot, d_dots[: end - begin], none, d_h)
            x, d_x = memory.x[begin:end], gradients.features[begin:end]
            normalize_backward(x, norm, memory.scale_1[begin:end], d_h, d_x)

    return backward


@inline
def _map_centers(
    share: int, begin: int, end: int, gate: PackedGate, norm: Norm, memory: LayerMemory, scratch: Scratch,
    condition: Array, dots: Array,
) -> None:  # fmt: skip
    """The linear map of the normalised features of centers, which are those that queries and keys are made of."""
    h, x = scratch.h[share, : end - begin], memory.x[begin:end]
    normalize(x, norm, condition[begin:end], memory.scale_1[begin:end], h)
    apply(gate.dot, h, x[:0], dots[: end - begin])


@vector_kernel
def _project(
    context: Any, builder: Any, sizes: tuple[int, ...], start: Argument, stop: Argument, first: Argument,
    edges: Argument, table: Argument, harmonics: Argument, dots: Argument, result: Argument,
) -> None:  # fmt: skip
    """result[local, l, c] = R_lc sum_m Y_lm dots[i - first, lm, c] for the edges start ... stop - 1 with centers i.

    `sizes` are the largest degree and the number of columns c.
    """
    lmax, width = sizes
    emit, rows = Emitter(context, builder, table.kind.dtype, [width]), (lmax + 1) ** 2
    center = edges.field("center").start
    with emit.loop(builder.sub(stop.value, start.value)) as local:
        edge = builder.add(start.value, local)
        own = emit.at(harmonics.start, (edge, rows))
        factors = [emit.broadcast(emit.element_at(own, (row, 1))) for row in range(rows)]
        value = Splines(emit, edge, edges, table, width=(lmax + 1) * width, terms=VALUE)
        atom = builder.sub(emit.element_at(center, (edge, 1)), first.value)
        with emit.loop(width // emit.lanes) as chunk:
            column = emit.offset((chunk, emit.lanes))
            fields = emit.at(dots.start, (atom, rows * width), (column, 1))
            target = emit.at(result.start, (local, (lmax + 1) * width), (column, 1))
            for degree in range(lmax + 1):
                of_degree = range(degree**2, (degree + 1) ** 2)
                total = emit.dot([(factors[row], emit.load(fields, row * width)) for row in of_degree])
                emit.store(emit.mul(total, value.at(column, degree * width)), target, degree * width)


@vector_kernel
def _project_backward(
    context: Any, builder: Any, sizes: tuple[int, ...], start: Argument, stop: Argument, first: Argument,
    edges: Argument, table: Argument, harmonics: Argument, dots: Argument, upstream: Argument, d_dots: Argument,
    d_harmonics: Argument, d_distance: Argument,
) -> None:  # fmt: skip
    """Add derivatives of `_project`, from `upstream` by its result, to those by dots, harmonics and distance."""
    lmax, width = sizes
    emit, rows = Emitter(context, builder, table.kind.dtype, [width]), (lmax + 1) ** 2
    center = edges.field("center").start
    sums = [emit.variable(emit.constant(0.0)) for _ in range(rows + 1)]
    with emit.loop(builder.sub(stop.value, start.value)) as local:
        edge = builder.add(start.value, local)
        own, by_own = (emit.at(array.start, (edge, rows)) for array in (harmonics, d_harmonics))
        factors = [emit.broadcast(emit.element_at(own, (row, 1))) for row in range(rows)]
        value, slope = (
            Splines(emit, edge, edges, table, width=(lmax + 1) * width, terms=terms) for terms in (VALUE, SLOPE)
        )
        atom = builder.sub(emit.element_at(center, (edge, 1)), first.value)
        for sum_ in sums:
            sum_.value = emit.constant(0.0)
        with emit.loop(width // emit.lanes) as chunk:
            column = emit.offset((chunk, emit.lanes))
            fields, by_fields = (emit.at(array.start, (atom, rows * width), (column, 1)) for array in (dots, d_dots))
            flows = emit.at(upstream.start, (local, (lmax + 1) * width), (column, 1))
            for degree in range(lmax + 1):
                flow = emit.load(flows, degree * width)
                by_total = emit.mul(flow, value.at(column, degree * width))
                total = emit.constant(0.0)
                for row in range(degree**2, (degree + 1) ** 2):
                    field = emit.load(fields, row * width)
                    total = emit.fma(factors[row], field, total)
                    sums[row].value = emit.fma(by_total, field, sums[row].value)
                    added = emit.fma(factors[row], by_total, emit.load(by_fields, row * width))
                    emit.store(added, by_fields, row * width)
                by_distance = emit.mul(flow, slope.at(column, degree * width))
                sums[rows].value = emit.fma(by_distance, total, sums[rows].value)
        for row in range(rows):
            emit.accumulate(emit.sum(sums[row].value), emit.at(by_own, (row, 1)))
        emit.accumulate(emit.sum(sums[rows].value), emit.at(d_distance.start, (edge, 1)))
