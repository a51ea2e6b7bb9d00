"""Sums over the edges of one atom with every accumulator in a vector register; parts of the attention kernels.

For each vector of channels, a loop over edges. `sizes` are those of the attention kernels: heads, numbers per head,
channels, rows of features, axes of moments. Channel c belongs to head c mod heads, written h(c).
"""

from __future__ import annotations

from typing import Any

from numba.core import types

from e2former_calc.potentials.inference.vectors import MAX_LANES, Argument, Emitter, Pointer, Value, vector_kernel

SLAB = 2 * MAX_LANES
"""Numbers of scratch memory per edge and axis that `moments_backward` needs."""


class _Sizes:
    """Sizes, and how vectors of channels share heads.

    Attributes:
        emit: emits vectors of channels.
        own: heads of one vector.
        period: channels after which heads repeat, in whole vectors.
    """

    def __init__(self, context: Any, builder: Any, sizes: tuple[int, ...], element: types.Float) -> None:
        self.heads, self.width, self.channels, self.rows, self.axes = sizes
        emit = Emitter(context, builder, element, [self.channels])
        while self.heads % emit.lanes and emit.lanes % self.heads:
            emit = emit.narrowed(emit.lanes // 2)
        self.emit = emit
        self.own = min(self.heads, emit.lanes)
        self.period = max(self.heads, emit.lanes)

    def row_groups(self, spare: int) -> list[range]:
        """Rows whose moments fit the registers, with `spare` others."""
        return _parts(self.rows, (self.emit.registers - spare) // self.axes)

    def of_heads(self, pointer: Pointer) -> Value:
        """Numbers of heads as a vector of channels."""
        return self.emit.tile(self.emit.narrowed(self.own).load(pointer), self.own)

    def along(self, axes: Pointer, edge: Value, factor: Value) -> list[Value]:
        """The axes of an edge times a factor."""
        emit = self.emit
        own = emit.at(axes, (edge, self.axes))
        return [emit.mul(emit.broadcast(emit.element_at(own, (axis, 1))), factor) for axis in range(self.axes)]

    def kept(self, memory: Argument, chunk: Value) -> Pointer:
        """Memory (chunks, atoms, axes, rows, lanes) of derivatives by moments: its part for a vector of channels."""
        builder = self.emit.builder
        part = builder.mul(memory.extent(0), self.emit.index(self.n_kept))
        return self.emit.at(memory.start, (builder.mul(chunk, part), 1))

    @property
    def n_kept(self) -> int:
        """Derivatives by moments of one atom and vector of channels."""
        return self.axes * self.rows * self.emit.lanes


@vector_kernel
def sum_moments(
    context: Any, builder: Any, sizes: tuple[int, ...], i: Argument, edges: Argument, axes: Argument, value: Argument,
    weight: Argument, moment: Argument,
) -> None:  # fmt: skip
    """moment[axis, row, c] = sum over the edges of center i of axes[edge, axis] weight[local, h(c)] value[j, row, c].

    j is the source of an edge, and `local` counts the edges of the center.
    """
    size = _Sizes(context, builder, sizes, value.kind.dtype)
    emit, source = size.emit, edges.field("source").start
    begin, end = emit.range_at(edges.field("row_ptr").start, i.value)
    with emit.loop(size.channels // emit.lanes) as chunk:
        channel = emit.offset((chunk, emit.lanes))
        head = builder.urem(channel, emit.index(size.period))
        for rows in size.row_groups(spare=4):
            sums = [[emit.variable(emit.constant(0.0)) for _ in rows] for _ in range(size.axes)]
            with emit.loop(end, begin) as edge:
                local = builder.sub(edge, begin)
                factor = size.of_heads(emit.at(weight.start, (local, size.heads), (head, 1)))
                along = size.along(axes.start, edge, factor)
                j = emit.element_at(source, (edge, 1))
                own = emit.at(value.start, (j, size.rows * size.channels), (channel, 1))
                for place, row in enumerate(rows):
                    field = emit.load(own, row * size.channels)
                    for axis in range(size.axes):
                        sums[axis][place].value = emit.fma(along[axis], field, sums[axis][place].value)
            result = emit.at(moment.start, (channel, 1))
            for axis in range(size.axes):
                for place, row in enumerate(rows):
                    emit.store(sums[axis][place].value, result, (axis * size.rows + row) * size.channels)


@vector_kernel
def moments_backward(
    context: Any, builder: Any, sizes: tuple[int, ...], i: Argument, edges: Argument, axes: Argument, value: Argument,
    weight: Argument, d_moment: Argument, kept: Argument, slab: Argument, d_weight: Argument, d_axes: Argument,
) -> None:  # fmt: skip
    """Derivative of `sum_moments` for center i; here `weight` is that of all edges, (edges, heads).

    Fills d_weight[local, head], adds to d_axes[edge, axis], and copies d_moment to `kept` as `sum_fields` reads it.
    With t[axis, head] = sum over rows and the channels of a head of d_moment[axis, row, c] value[j, row, c], the
    derivative by the weight is the sum over axes of axes t, and that by axes the sum over heads of weight t. `slab` is
    scratch memory, (edges, `SLAB` * axes): t for one vector of heads, and the second sum, lane by lane.
    """
    size = _Sizes(context, builder, sizes, value.kind.dtype)
    emit = size.emit
    begin, end = emit.range_at(edges.field("row_ptr").start, i.value)
    count = builder.sub(end, begin)
    edge_axes, edge_weight = emit.at(axes.start, (begin, size.axes)), emit.at(weight.start, (begin, size.heads))
    _clear(size, slab, count)
    with emit.loop(size.period // emit.lanes) as group:
        head = emit.offset((group, emit.lanes))
        for rows in size.row_groups(spare=4):
            with emit.loop(size.channels // size.period) as repeat:
                channel = emit.offset((repeat, size.period), (head, 1))
                flows = _flows(size, rows, channel, d_moment.start)
                copy = emit.at(size.kept(kept, builder.udiv(channel, emit.index(emit.lanes))), (i.value, size.n_kept))
                _keep(size, rows, flows, copy)
                own = emit.at(value.start, (channel, 1)), emit.at(edges.field("source").start, (begin, 1))
                _add_overlaps(size, rows, flows, own, (slab, count))
        with emit.loop(count) as local:
            total = emit.at(slab.start, (local, SLAB * size.axes))
            factor = size.of_heads(emit.at(edge_weight, (local, size.heads), (head, 1)))
            by_weight = _collect(size, emit.at(edge_axes, (local, size.axes)), factor, total)
            emit.narrowed(size.own).store(by_weight, emit.at(d_weight.start, (local, size.heads), (head, 1)))
    with emit.loop(count) as local:
        for axis in range(size.axes):
            total = emit.at(slab.start, (local, SLAB * size.axes), (size.axes + axis, MAX_LANES))
            emit.accumulate(
                emit.sum(emit.load(total)), emit.at(d_axes.start, (builder.add(begin, local), size.axes), (axis, 1))
            )


def _clear(size: _Sizes, slab: Argument, count: Value) -> None:
    emit = size.emit
    with emit.loop(count) as local:
        for start in range(0, SLAB * size.axes, emit.lanes):
            emit.store(emit.constant(0.0), emit.at(slab.start, (local, SLAB * size.axes)), start)


def _flows(size: _Sizes, rows: range, channel: Value, d_moment: Pointer) -> list[list[Value]]:
    """Derivatives by moments, for each axis and row."""
    upstream = size.emit.at(d_moment, (channel, 1))
    return [
        [size.emit.load(upstream, (axis * size.rows + row) * size.channels) for row in rows]
        for axis in range(size.axes)
    ]


def _keep(size: _Sizes, rows: range, flows: list[list[Value]], memory: Pointer) -> None:
    for axis in range(size.axes):
        for place, row in enumerate(rows):
            size.emit.store(flows[axis][place], memory, (axis * size.rows + row) * size.emit.lanes)


def _add_overlaps(
    size: _Sizes, rows: range, flows: list[list[Value]], own: tuple[Pointer, Pointer], slab: tuple[Argument, Value]
) -> None:
    """Add the sum over rows of flow times value to the slab, for each axis and all edges."""
    emit, (value, source), (memory, count) = size.emit, own, slab
    with emit.loop(count) as local:
        fields = emit.at(value, (emit.element_at(source, (local, 1)), size.rows * size.channels))
        total = emit.at(memory.start, (local, SLAB * size.axes))
        sums = [emit.load(total, axis * MAX_LANES) for axis in range(size.axes)]
        for place, row in enumerate(rows):
            field = emit.load(fields, row * size.channels)
            sums = [emit.fma(flow[place], field, sum_) for flow, sum_ in zip(flows, sums, strict=True)]
        for axis in range(size.axes):
            emit.store(sums[axis], total, axis * MAX_LANES)


def _collect(size: _Sizes, axes: Pointer, factor: Value, total: Pointer) -> Value:
    """Derivative by weights; adds to that by axes, and clears t for the next heads."""
    emit = size.emit
    flows = [emit.load(total, axis * MAX_LANES) for axis in range(size.axes)]
    units = [emit.broadcast(emit.element_at(axes, (axis, 1))) for axis in range(size.axes)]
    for axis, flow in enumerate(flows):
        place = (size.axes + axis) * MAX_LANES
        emit.store(emit.fma(factor, flow, emit.load(total, place)), total, place)
        emit.store(emit.constant(0.0), total, axis * MAX_LANES)
    return emit.fold(emit.dot(list(zip(units, flows, strict=True))), size.own)


@vector_kernel
def sum_fields(
    context: Any, builder: Any, sizes: tuple[int, ...], first: Argument, last: Argument, edges: Argument,
    axes: Argument, weight: Argument, kept: Argument, d_value: Argument,
) -> None:  # fmt: skip
    """Derivative of `sum_moments` by the values of the sources first ... last - 1.

    d_value[j, row, c] = sum over edges and axes of weight[edge, h(c)] axes[edge, axis] d_moment[i, axis, row, c]. The
    derivatives by moments are those that `moments_backward` keeps: one vector of channels after the other, so that
    a loop over sources needs a small part of them.
    """
    size = _Sizes(context, builder, sizes, weight.kind.dtype)
    emit = size.emit
    by_source, center = edges.field("by_source").start, edges.field("center").start
    with emit.loop(size.channels // emit.lanes) as chunk, emit.loop(last.value, first.value) as source:
        channel = emit.offset((chunk, emit.lanes))
        head = builder.urem(channel, emit.index(size.period))
        begin, end = emit.range_at(edges.field("column_ptr").start, source)
        memory = size.kept(kept, chunk)
        sums = [emit.variable(emit.constant(0.0)) for _ in range(size.rows)]
        with emit.loop(end, begin) as place:
            edge = emit.element_at(by_source, (place, 1))
            factor = size.of_heads(emit.at(weight.start, (edge, size.heads), (head, 1)))
            along = size.along(axes.start, edge, factor)
            field = emit.at(memory, (emit.element_at(center, (edge, 1)), size.n_kept))
            for axis in range(size.axes):
                for row in range(size.rows):
                    part = emit.load(field, (axis * size.rows + row) * emit.lanes)
                    sums[row].value = emit.fma(along[axis], part, sums[row].value)
        result = emit.at(d_value.start, (source, size.rows * size.channels), (channel, 1))
        for row in range(size.rows):
            emit.store(sums[row].value, result, row * size.channels)


@vector_kernel
def sum_products(
    context: Any, builder: Any, sizes: tuple[int, ...], begin: Argument, end: Argument, listed: Argument,
    atom: Argument, factor: Argument, other: Argument, result: Argument,
) -> None:  # fmt: skip
    """result[d, head] = sum over edges of factor[edge, head] other[atom[edge], d, head].

    The edges are listed[begin ... end - 1], or begin ... end - 1 if `listed` is None.
    """
    heads, width = sizes[:2]
    emit = Emitter(context, builder, factor.kind.dtype, [heads])
    with emit.loop(heads // emit.lanes) as chunk:
        head = emit.offset((chunk, emit.lanes))
        for part in _parts(width, emit.registers - 2):
            sums = [emit.variable(emit.constant(0.0)) for _ in part]
            with emit.loop(end.value, begin.value) as place:
                edge = place if listed.is_none else emit.element_at(listed.start, (place, 1))
                own = emit.load(emit.at(factor.start, (edge, heads), (head, 1)))
                features = emit.at(other.start, (emit.element_at(atom.start, (edge, 1)), width * heads), (head, 1))
                for total, d in zip(sums, part, strict=True):
                    total.value = emit.fma(own, emit.load(features, d * heads), total.value)
            for total, d in zip(sums, part, strict=True):
                emit.store(total.value, emit.at(result.start, (head, 1)), d * heads)


@vector_kernel
def sum_rows(
    context: Any, builder: Any, sizes: tuple[int, ...], begin: Argument, end: Argument, factor: Argument,
    place: Argument, source: Argument, source_start: Argument, target: Argument, target_start: Argument,
) -> None:  # fmt: skip
    """target[target_start + c] = sum over terms of factor[term] source[source_start + place[term] + c], all channels c.

    Terms are begin ... end - 1; elements of both arrays are counted in C order.
    """
    channels = sizes[2]
    emit = Emitter(context, builder, source.kind.dtype, [channels])
    own = emit.at(source.start, (source_start.value, 1))
    result = emit.at(target.start, (target_start.value, 1))
    for part in _parts(channels // emit.lanes, emit.registers // 2):
        sums = [emit.variable(emit.constant(0.0)) for _ in part]
        with emit.loop(end.value, begin.value) as term:
            scale = emit.broadcast(emit.element_at(factor.start, (term, 1)))
            row = emit.at(own, (emit.element_at(place.start, (term, 1)), 1))
            for total, chunk in zip(sums, part, strict=True):
                total.value = emit.fma(scale, emit.load(row, chunk * emit.lanes), total.value)
        for total, chunk in zip(sums, part, strict=True):
            emit.store(total.value, result, chunk * emit.lanes)


def _parts(count: int, most: int) -> list[range]:
    """The range up to `count` in as few parts of about equal size, up to `most`, as possible."""
    n_parts = -(-count // max(1, most))
    return [range(count * k // n_parts, count * (k + 1) // n_parts) for k in range(n_parts)]
