"""Scores of one center's edges, their normalisation, and both backwards; parts of the attention kernels.

The scratch memory of a center is (kinds, neighbours, heads), with a second one (kinds, heads) for its softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from e2former_calc.potentials.inference import splines
from e2former_calc.potentials.inference.compilation import exponential, inline, log_one_plus
from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.vectors import Argument, Emitter, Value, aligned_memory, vector_kernel

Array = NDArray[Any]

Sizes = tuple[int, int, int, int, int]
"""Heads, numbers per head, channels, rows of features, and axes of moments (1 or 3)."""

SOFTMAX, SOFTPLUS, SIGMOID = 0, 1, 2

GATE, AMPLITUDE, PRODUCT, SCORE, WEIGHT, SLOPE, UPSTREAM, BY_ENVELOPE = range(8)
"""Kinds of scratch memory: WEIGHT is the normalised score with envelope, without amplitude."""
MAXIMUM, TIED, TOTAL, LOWEST = range(4)
"""Kinds of scratch memory per head."""


class Rule(NamedTuple):
    """Kind of normalisation, offset of the softmax denominator, relative tolerance of equal maxima."""

    kind: int
    offset: float
    tie: float


class Features(NamedTuple):
    """Queries and keys (atoms, width, heads), and values (atoms, rows, channels)."""

    query: Array
    key: Array
    value: Array


@inline
def scratch_memory(first: int, last: int, edges: Edges, heads: int, table: Array) -> tuple[Array, Array]:
    """Memory for the longest row of edges of these centers, and memory per head."""
    longest = 1
    for i in range(first, last):
        longest = max(longest, edges.row_ptr[i + 1] - edges.row_ptr[i])
    kinds = aligned_memory(8 * longest * heads, table).reshape(8, longest, heads)
    return kinds, aligned_memory(4 * heads, table).reshape(4, heads)


@vector_kernel
def score_edges(
    context: Any, builder: Any, sizes: tuple[int, ...], i: Argument, edges: Argument, table: Argument,
    gates: Argument, features: Argument, scratch: Argument,
) -> None:  # fmt: skip
    """Gates, amplitudes, products of query and key, and scores of the edges of center i.

    `gates` is (edges, heads), and the table holds amplitudes; or None, and the table holds gates and amplitudes.
    """
    heads, width = sizes[:2]
    emit = Emitter(context, builder, table.kind.dtype, [heads])
    begin, end = emit.range_at(edges.field("row_ptr").start, i.value)
    source = edges.field("source").start
    query, key = (features.field(name).start for name in ("query", "key"))
    memory = _Scratch(emit, scratch)
    with emit.loop(builder.sub(end, begin)) as local:
        edge = builder.add(begin, local)
        tabulated = heads if gates.is_none else 0
        functions = splines.Splines(emit, edge, edges, table, width=tabulated + heads, terms=splines.VALUE)
        with emit.loop(heads // emit.lanes) as chunk:
            head = emit.offset((chunk, emit.lanes))
            if gates.is_none:
                gate = functions.at(head, 0)
            else:
                gate = emit.load(emit.at(gates.start, (edge, heads), (head, 1)))
            memory.store(gate, GATE, local, head)
            memory.store(functions.at(head, tabulated), AMPLITUDE, local, head)
            own = emit.at(query, (i.value, width * heads), (head, 1))
            other = emit.at(key, (emit.element_at(source, (edge, 1)), width * heads), (head, 1))
            product = emit.dot([(emit.load(own, d * heads), emit.load(other, d * heads)) for d in range(width)])
            memory.store(product, PRODUCT, local, head)
            memory.store(emit.mul(memory.load(GATE, local, head), product), SCORE, local, head)


class _Scratch:
    """Vectors in scratch memory."""

    def __init__(self, emit: Emitter, array: Argument) -> None:
        self._emit, self._start, self._heads = emit, array.start, array.extent(2)
        self._stride = emit.builder.mul(array.extent(1), self._heads)

    def load(self, kind: int, local: Value, head: Value) -> Value:
        return self._emit.load(self._at(kind, local, head))

    def store(self, value: Value, kind: int, local: Value, head: Value) -> None:
        self._emit.store(value, self._at(kind, local, head))

    def _at(self, kind: int, local: Value, head: Value) -> Value:
        builder = self._emit.builder
        place = builder.add(builder.mul(self._emit.index(kind), self._stride), builder.mul(local, self._heads))
        return self._emit.at(self._start, (place, 1), (head, 1))


@inline
def normalize_scores(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, sizes: Sizes) -> None:
    """Normalised scores with envelope; for the derivative SLOPE (by the score) and BY_ENVELOPE, each per weight.

    Softmax: SLOPE holds exp(score - M) instead, and `head` the constants of the row.
    """
    zero, one = head.dtype.type(0.0), head.dtype.type(1.0)
    if rule.kind == SOFTMAX:
        _softmax(sizes, n_edges, rule, scratch, envelope, head)
        return
    for local in range(n_edges):
        u = envelope[local, 0]
        for h in range(sizes[0]):
            score = scratch[SCORE, local, h]
            decay = exponential(-abs(score))
            logistic = (one if score >= zero else decay) / (one + decay)
            if rule.kind == SOFTPLUS:
                function, slope = max(score, zero) + log_one_plus(decay), logistic
            else:
                function, slope = logistic, logistic * (one - logistic)
            scratch[WEIGHT, local, h] = function * u
            scratch[SLOPE, local, h] = slope * u
            scratch[BY_ENVELOPE, local, h] = function


@vector_kernel
def _softmax(
    context: Any, builder: Any, sizes: tuple[int, ...], n_edges: Argument, rule: Argument, scratch: Argument,
    envelope: Argument, head: Argument,
) -> None:  # fmt: skip
    """Weights p / (sum p + offset), p = exp(score - M) u, with M the mean of the scores equal to the largest one.

    `head` gets M, the number TIED of scores that make it, LOWEST, the smallest of what counts as equal to it, and the
    denominator.
    """
    heads, count = sizes[0], n_edges.value
    emit = Emitter(context, builder, scratch.kind.dtype, [heads])
    memory = _Scratch(emit, scratch)
    offset, tie = (emit.broadcast(rule.field(name).converted(emit.element)) for name in ("offset", "tie"))
    zero, one = emit.constant(0.0), emit.constant(1.0)
    with emit.loop(heads // emit.lanes) as chunk:
        first = emit.offset((chunk, emit.lanes))
        row = emit.at(head.start, (first, 1))
        largest = emit.variable(memory.load(SCORE, emit.index(0), first))
        with emit.loop(count, 1) as local:
            largest.value = emit.maximum(largest.value, memory.load(SCORE, local, first))
        size = emit.maximum(emit.maximum(largest.value, emit.sub(zero, largest.value)), one)
        lowest = emit.sub(largest.value, emit.mul(tie, size))
        sum_, tied = emit.variable(zero), emit.variable(zero)
        with emit.loop(count) as local:
            score = memory.load(SCORE, local, first)
            equal = emit.at_least(score, lowest)
            sum_.value = emit.add(sum_.value, builder.select(equal, score, zero))
            tied.value = emit.add(tied.value, builder.select(equal, one, zero))
        maximum = emit.div(sum_.value, tied.value)
        total = emit.variable(offset)
        with emit.loop(count) as local:
            power = emit.exp(emit.sub(memory.load(SCORE, local, first), maximum))
            memory.store(power, SLOPE, local, first)
            u = emit.broadcast(emit.element_at(envelope.start, (local, 2)))
            total.value = emit.fma(power, u, total.value)
        share = emit.div(one, total.value)
        with emit.loop(count) as local:
            u = emit.broadcast(emit.element_at(envelope.start, (local, 2)))
            memory.store(emit.mul(emit.mul(memory.load(SLOPE, local, first), u), share), WEIGHT, local, first)
        for kind, value in ((MAXIMUM, maximum), (TIED, tied.value), (LOWEST, lowest), (TOTAL, total.value)):
            emit.store(value, row, kind * heads)


@inline
def normalize_backward(n_edges: int, rule: Rule, scratch: Array, envelope: Array, head: Array, sizes: Sizes) -> None:
    """From UPSTREAM, the derivative by weight times amplitude, to SLOPE by the score and BY_ENVELOPE."""
    if rule.kind == SOFTMAX:
        _softmax_backward(sizes, n_edges, rule, scratch, envelope, head)
        return
    for local in range(n_edges):
        for h in range(sizes[0]):
            flow = scratch[UPSTREAM, local, h] * scratch[AMPLITUDE, local, h]
            scratch[SLOPE, local, h] *= flow
            scratch[BY_ENVELOPE, local, h] *= flow


@vector_kernel
def _softmax_backward(
    context: Any, builder: Any, sizes: tuple[int, ...], n_edges: Argument, rule: Argument, scratch: Argument,
    envelope: Argument, head: Argument,
) -> None:  # fmt: skip
    """Softmax a = p / (S + offset), p = exp(s - M) u: with g = dE/da and G = sum g a over the row,
    dE/dp = (g - G) / (S + offset), dE/ds = p dE/dp, and dE/dM = -sum p dE/dp = -G offset / (S + offset) goes to the
    scores that made M.
    """
    heads, count = sizes[0], n_edges.value
    emit = Emitter(context, builder, scratch.kind.dtype, [heads])
    memory, zero = _Scratch(emit, scratch), emit.constant(0.0)
    offset = emit.broadcast(rule.field("offset").converted(emit.element))
    with emit.loop(heads // emit.lanes) as chunk:
        first = emit.offset((chunk, emit.lanes))
        row = emit.at(head.start, (first, 1))
        tied, lowest, total = (emit.load(row, kind * heads) for kind in (TIED, LOWEST, TOTAL))
        mean = emit.variable(zero)
        with emit.loop(count) as local:
            flow = emit.mul(memory.load(UPSTREAM, local, first), memory.load(AMPLITUDE, local, first))
            mean.value = emit.fma(flow, memory.load(WEIGHT, local, first), mean.value)
        share = emit.div(emit.constant(1.0), total)
        shared = emit.div(emit.mul(emit.mul(mean.value, offset), emit.sub(zero, share)), tied)
        average = mean.value
        with emit.loop(count) as local:
            flow = emit.mul(memory.load(UPSTREAM, local, first), memory.load(AMPLITUDE, local, first))
            power = emit.mul(memory.load(SLOPE, local, first), share)
            by_envelope = emit.mul(emit.sub(flow, average), power)
            equal = emit.at_least(memory.load(SCORE, local, first), lowest)
            u = emit.broadcast(emit.element_at(envelope.start, (local, 2)))
            memory.store(emit.fma(by_envelope, u, builder.select(equal, shared, zero)), SLOPE, local, first)
            memory.store(by_envelope, BY_ENVELOPE, local, first)


@vector_kernel
def scores_backward(
    context: Any, builder: Any, sizes: tuple[int, ...], i: Argument, edges: Argument, table: Argument,
    scratch: Argument, d_product: Argument, d_gates: Argument, d_distance: Argument,
) -> None:  # fmt: skip
    """For the edges of center i: fills d_product[edge, head], and adds to d_distance[edge] what goes through gates,
    amplitudes and envelope; where gates do not come from the table, fills d_gates[edge, head] instead of theirs.
    """
    heads = sizes[0]
    emit = Emitter(context, builder, table.kind.dtype, [heads])
    begin, end = emit.range_at(edges.field("row_ptr").start, i.value)
    envelope = edges.field("envelope").start
    memory = _Scratch(emit, scratch)
    with emit.loop(builder.sub(end, begin)) as local:
        edge = builder.add(begin, local)
        tabulated = heads if d_gates.is_none else 0
        functions = splines.Splines(emit, edge, edges, table, width=tabulated + heads, terms=splines.SLOPE)
        by_distance = emit.broadcast(emit.element_at(envelope, (edge, 2), (1, 1)))
        total = emit.variable(emit.constant(0.0))
        with emit.loop(heads // emit.lanes) as chunk:
            head = emit.offset((chunk, emit.lanes))
            slope = memory.load(SLOPE, local, head)
            by_product = emit.mul(slope, memory.load(GATE, local, head))
            emit.store(by_product, emit.at(d_product.start, (edge, heads), (head, 1)))
            by_gate, flow = emit.mul(slope, memory.load(PRODUCT, local, head)), total.value
            if d_gates.is_none:
                flow = emit.fma(by_gate, functions.at(head, 0), flow)
            else:
                emit.store(by_gate, emit.at(d_gates.start, (edge, heads), (head, 1)))
            flow = emit.fma(memory.load(BY_ENVELOPE, local, head), by_distance, flow)
            by_amplitude = emit.mul(memory.load(UPSTREAM, local, head), memory.load(WEIGHT, local, head))
            total.value = emit.fma(by_amplitude, functions.at(head, tabulated), flow)
        emit.accumulate(emit.sum(total.value), emit.at(d_distance.start, (edge, 1)))
