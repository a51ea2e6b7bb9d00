"""Attention and convolution over edges in one pass per center, and its derivative; no edge tensor is kept.

Forward, for each center: scores from queries, keys and gates; weights (softmax with an absolute offset,
softplus or sigmoid) times tabulated amplitudes; moments of the source features along 1, or x, y, z; contraction with
Clebsch-Gordan coefficients into the rows that the following matrix product reads. The derivative computes the
scores again. It runs once over centers (queries, geometry) and once over sources (keys, values), so that no
two threads add to the same number and the order of every sum is fixed.

The kernels are compiled for the sizes of a network. Sums over edges are written in vector instructions, `moments` and
`scores`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import kernel
from e2former_calc.potentials.inference.geometry import Edges
from e2former_calc.potentials.inference.moments import (
    SLAB,
    moments_backward,
    sum_fields,
    sum_moments,
    sum_products,
    sum_rows,
)
from e2former_calc.potentials.inference.scores import (
    AMPLITUDE,
    UPSTREAM,
    WEIGHT,
    Features,
    Rule,
    Sizes,
    normalize_backward,
    normalize_scores,
    score_edges,
    scores_backward,
    scratch_memory,
)
from e2former_calc.potentials.inference.vectors import aligned_memory

Array = NDArray[Any]


class Coupling(NamedTuple):
    """Sparse contraction of the moments of a center into its rows, and the way back.

    Attributes:
        place: where each row begins in those of one atom; it has terms row_ptr[row] ... row_ptr[row + 1] - 1.
        entry, factor: of each term, the number that its moment (axis, row of features) begins with, and its factor.
        column_ptr, target, column_factor: the same terms by moment, with the places of the rows that they go to.
        width: numbers in all rows of an atom.
    """

    place: Array
    row_ptr: Array
    entry: Array
    factor: Array
    column_ptr: Array
    target: Array
    column_factor: Array
    width: int


class Upstream(NamedTuple):
    """What the pass over centers leaves for the pass over sources.

    Attributes:
        moment: derivatives by the moments of every center, (atoms, axes, rows, channels) numbers in the order in which
            `moments_backward` keeps them.
        product: derivatives by the scalar products of query and key, (edges, heads).
        weight: attention weights, (edges, heads).
    """

    moment: Array
    product: Array
    weight: Array


class Gradients(NamedTuple):
    """Derivatives by queries (atoms, width, heads); by gates (edges, heads), or None where they come from the table;
    by axes (edges, axes) and distances (edges), which are added to.
    """

    query: Array
    gates: Array | None
    axes: Array
    distance: Array


class AttentionKernels(NamedTuple):
    """Compiled functions; each works on the atoms first ... last - 1.

    Attributes:
        attend: (first, last, edges, axes, table, gates, rule, features, coupling, output); fills `output`. `axes` is
            (edges, 1 or 3), what moments are taken along; `gates` is (edges, heads), and `table` (slots, 4, heads),
            amplitudes; or None, and `table` is (slots, 4, 2 * heads), gates and amplitudes.
        by_centers: (first, last, edges, axes, table, gates, rule, features, coupling, d_output, upstream, gradients);
            fills `upstream` and the derivatives by queries and gates, adds to the others.
        by_sources: (first, last, edges, axes, features, upstream, d_key, d_value); fills `d_key` and `d_value`.
    """

    attend: Callable[..., None]
    by_centers: Callable[..., None]
    by_sources: Callable[..., None]


@cache
def attention_kernels(sizes: Sizes) -> AttentionKernels:
    """Kernels for the sizes of one layer."""
    return AttentionKernels(_attend(sizes), _by_centers(sizes), _by_sources(sizes))


def _attend(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def attend(
        first: int, last: int, edges: Edges, axes: Array, table: Array, gates: Array | None, rule: Rule,
        features: Features, coupling: Coupling, output: Array,
    ) -> None:  # fmt: skip
        scratch, head = scratch_memory(first, last, edges, sizes[0], table)
        moment = aligned_memory(sizes[4] * sizes[3] * sizes[2], table).reshape(sizes[4], sizes[3], sizes[2])
        for i in range(first, last):
            begin, end = edges.row_ptr[i], edges.row_ptr[i + 1]
            if end > begin:
                score_edges(sizes, i, edges, table, gates, features, scratch)
                normalize_scores(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes)
            for local in range(end - begin):
                for h in range(sizes[0]):
                    scratch[UPSTREAM, local, h] = scratch[WEIGHT, local, h] * scratch[AMPLITUDE, local, h]
            sum_moments(sizes, i, edges, axes, features.value, scratch[UPSTREAM], moment)
            for row in range(coupling.place.shape[0]):
                start, stop, place = coupling.row_ptr[row], coupling.row_ptr[row + 1], coupling.place[row]
                sum_rows(sizes, start, stop, coupling.factor, coupling.entry, moment, 0, output[i], place)

    return attend


def _by_centers(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def by_centers(
        first: int, last: int, edges: Edges, axes: Array, table: Array, gates: Array | None, rule: Rule,
        features: Features, coupling: Coupling, d_output: Array, upstream: Upstream, gradients: Gradients,
    ) -> None:  # fmt: skip
        scratch, head = scratch_memory(first, last, edges, sizes[0], table)
        moment = aligned_memory(sizes[4] * sizes[3] * sizes[2], table).reshape(sizes[4], sizes[3], sizes[2])
        slab = aligned_memory(scratch.shape[1] * SLAB * sizes[4], table).reshape(scratch.shape[1], SLAB * sizes[4])
        for i in range(first, last):
            begin, end = edges.row_ptr[i], edges.row_ptr[i + 1]
            for entry in range(sizes[4] * sizes[3]):
                start, stop, place = coupling.column_ptr[entry], coupling.column_ptr[entry + 1], entry * sizes[2]
                sum_rows(sizes, start, stop, coupling.column_factor, coupling.target, d_output[i], 0, moment, place)
            if end > begin:
                score_edges(sizes, i, edges, table, gates, features, scratch)
                normalize_scores(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes)
            for edge in range(begin, end):
                for h in range(sizes[0]):
                    upstream.weight[edge, h] = scratch[WEIGHT, edge - begin, h] * scratch[AMPLITUDE, edge - begin, h]
            moments_backward(
                sizes, i, edges, axes, features.value, upstream.weight, moment, upstream.moment, slab,
                scratch[UPSTREAM], gradients.axes,
            )  # fmt: skip
            if end > begin:
                normalize_backward(end - begin, rule, scratch, edges.envelope[begin:end], head, sizes)
            scores_backward(
                sizes, i, edges, table, scratch, upstream.product, gradients.gates, gradients.distance
            )  # fmt: skip
            sum_products(sizes, begin, end, None, edges.source, upstream.product, features.key, gradients.query[i])

    return by_centers


def _by_sources(sizes: Sizes) -> Callable[..., None]:
    @kernel
    def by_sources(
        first: int, last: int, edges: Edges, axes: Array, features: Features, upstream: Upstream, d_key: Array,
        d_value: Array,
    ) -> None:  # fmt: skip
        sum_fields(sizes, first, last, edges, axes, upstream.weight, upstream.moment, d_value)
        for j in range(first, last):
            begin, end = edges.column_ptr[j], edges.column_ptr[j + 1]
            sum_products(
                sizes, begin, end, edges.by_source, edges.center, upstream.product, features.query, d_key[j]
            )  # fmt: skip

    return by_sources
