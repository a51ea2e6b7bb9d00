"""Radial tables read by vector kernels: splines of the functions of one edge, and their derivatives."""

from __future__ import annotations

from typing import Final

from e2former_calc.potentials.inference.vectors import Argument, Emitter, Value

WEIGHTS: Final = 11
"""Weights of a spline per edge, see `geometry.Edges`."""
VALUE: Final = ((0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6))
"""Weights of a spline, and the rows of the table they belong to: value, slope and curvature at both knots."""
SLOPE: Final = ((6, 3), (7, 1), (8, 2), (9, 5), (10, 6))
"""The same for the derivative: chord, slope and curvature, and slope and curvature at the next knot."""
ROWS: Final = 4
"""Rows of a table per knot."""


class Splines:
    """All functions of one edge.

    Args:
        emit: emits vectors of functions.
        edge: number of the edge.
        edges: all edges.
        table: (slots, `ROWS`, width).
        width: number of functions.
        terms: `VALUE` or `SLOPE`.
    """

    def __init__(
        self, emit: Emitter, edge: Value, edges: Argument, table: Argument, *, width: int,
        terms: tuple[tuple[int, int], ...],
    ) -> None:  # fmt: skip
        weights = emit.at(edges.field("spline").start, (edge, WEIGHTS))
        slot = emit.element_at(edges.field("slot").start, (edge, 1))
        self._emit, self._start = emit, emit.at(table.start, (slot, ROWS * width))
        self._terms = [(emit.broadcast(emit.element_at(weights, (k, 1))), row * width) for k, row in terms]

    def at(self, first: Value, offset: int) -> Value:
        """One vector of them, from the function `first` + `offset` on."""
        own = self._emit.at(self._start, (first, 1))
        return self._emit.dot([(weight, self._emit.load(own, place + offset)) for weight, place in self._terms])
