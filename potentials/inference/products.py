"""Matrix products of the native kernels: features of some atoms times one matrix for each degree.

Matrices are stored in panels of a few vectors' width, so that a tile of rows times one panel is accumulated in
registers. Each number of a result is one sum in the order of the inner index: it depends neither on the other rows nor
on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from e2former_calc.potentials.exact_kernels import exact
from e2former_calc.potentials.inference.compilation import inline
from e2former_calc.potentials.inference.vectors import Emitter

Array = NDArray[Any]

_FEATURES = llvm.get_host_cpu_features()
_ARM = llvm.get_process_triple().startswith(("aarch64", "arm64"))
LANE_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
"""Width of a vector register of this processor."""
TILE_ROWS, TILE_VECTORS = (6, 2, 1), (4, 2, 1) if LANE_BYTES == 64 or _ARM else (2, 1)
"""Sizes of tiles: the sums of the largest are 24 vectors where there are 32 registers, else 12, which leaves room for a
panel and numbers of x."""


class LinearMap(NamedTuple):
    """A matrix W_l (in, out) for each degree l, applied to 2 l + 1 rows of every atom, with a bias on l = 0.

    Attributes:
        numbers: panels of all matrices, each (in, panel width), those of the transposed matrices, and the bias.
        sizes: for each degree where its panels begin, and the transposed ones; in, out; first column of x and of y.
    """

    numbers: Array
    sizes: Array


def linear_map(matrices: Sequence[Array], bias: Array | None = None) -> LinearMap:
    """The panels of matrices (in, out), one for each degree; no bias is zero."""
    forward, backward = [_panels(matrix) for matrix in matrices], [_panels(matrix.T) for matrix in matrices]
    if bias is None:
        bias = np.zeros(matrices[0].shape[1], matrices[0].dtype)
    starts = np.cumsum([0, *map(len, forward), *map(len, backward)])
    sizes, x_column, y_column = [], 0, 0
    for degree, matrix in enumerate(matrices):
        sizes.append((starts[degree], starts[len(matrices) + degree], *matrix.shape, x_column, y_column))
        x_column += (2 * degree + 1) * matrix.shape[0]
        y_column += (2 * degree + 1) * matrix.shape[1]
    return LinearMap(np.concatenate([*forward, *backward, bias]), np.array(sizes, dtype=np.int64))


def _panels(matrix: Array) -> Array:
    """Columns in groups of as many vectors as tiles have; the last vector is filled up with zeros."""
    lanes = LANE_BYTES // matrix.itemsize
    vectors = -(-matrix.shape[1] // lanes)
    padded = np.zeros((matrix.shape[0], vectors * lanes), matrix.dtype)
    padded[:, : matrix.shape[1]] = matrix
    groups, start = [], 0
    while start < vectors:
        width = next(size for size in TILE_VECTORS if size <= vectors - start)
        groups.append(padded[:, start * lanes : (start + width) * lanes].ravel())
        start += width
    return np.concatenate(groups)


def _tile_signature(
    _: Any, size: Any, x: Any, x_place: Any, panels: Any, panel_place: Any, before: Any, y: Any, y_place: Any, add: Any
) -> tuple[Any, Any]:
    """Set y[r, c] = sum_k x[r, k] panel[k, c], with sums in registers.

    Args:
        size: rows of the tile, and vectors of columns.
        x_place, y_place: where the tile begins in the flat array, and the distance of its rows.
        panel_place: where the panel begins, and its number of rows.
        before, add: whether to add what stands in `before` at the same place as in y.
    """
    return types.void(size, x, x_place, panels, panel_place, before, y, y_place, add), _emit_tiles


_tile = cast(Any, intrinsic(_tile_signature))


def _emit_tiles(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """A branch for every size."""
    kinds, number = signature.args, signature.args[3].dtype
    emitter = Emitter(context, builder, number).narrowed(LANE_BYTES * 8 // number.bitwidth)
    rows, vectors = _pair(builder, values[0])
    arrays = [emitter.start(kinds[at], values[at]) for at in (1, 3, 5, 6)]
    places = [_pair(builder, values[at]) for at in (2, 4, 7, 7)]
    begins = [emitter.at(array, (place[0], 1)) for array, place in zip(arrays, places, strict=True)]
    arguments = [*begins, places[0][1], places[3][1], places[1][1], values[8]]
    code = builder.add(builder.mul(rows, emitter.index(8)), vectors)
    done = builder.append_basic_block("done")
    choice = builder.switch(code, done)
    for n_rows in TILE_ROWS:
        for n_vectors in TILE_VECTORS:
            block = builder.append_basic_block(f"tile_{n_rows}_{n_vectors}")
            choice.add_case(emitter.index(n_rows * 8 + n_vectors), block)
            builder.position_at_end(block)
            builder.call(_tile_function(context, builder.module, number, n_rows, n_vectors), arguments)
            builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


def _pair(builder: Any, values: Any) -> tuple[Any, Any]:
    return builder.extract_value(values, 0), builder.extract_value(values, 1)


def _tile_function(context: Any, module: Any, number: types.Float, n_rows: int, n_vectors: int) -> Any:
    """A function of its own for each size: next to other code, its sums would not stay in registers."""
    pointer, index = context.get_value_type(number).as_pointer(), ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [pointer] * 4 + [index] * 3 + [ir.IntType(1)])
    name = f"e2former_tile_{number}_{n_rows}_{n_vectors}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emitter = Emitter(context, builder, number).narrowed(LANE_BYTES * 8 // number.bitwidth)
    _emit_tile(emitter, n_rows, n_vectors, function.args)
    builder.ret_void()
    return function


def _emit_tile(emitter: Emitter, n_rows: int, n_vectors: int, arguments: Any) -> None:
    x, panel, before, y, x_stride, y_stride, inner, add = arguments
    lanes, tile = emitter.lanes, [(r, v) for r in range(n_rows) for v in range(n_vectors)]
    sums = {entry: emitter.variable(emitter.constant(0.0)) for entry in tile}
    with emitter.builder.if_then(add):
        for r, v in tile:
            sums[r, v].value = emitter.load(emitter.at(before, (y_stride, r)), v * lanes)
    with emitter.loop(inner) as k:
        line = emitter.at(panel, (k, n_vectors * lanes))
        factors = [emitter.load(line, v * lanes) for v in range(n_vectors)]
        for r in range(n_rows):
            own = emitter.broadcast(emitter.element_at(x, (k, 1), (x_stride, r)))
            for v in range(n_vectors):
                sums[r, v].value = _multiply_add(emitter, own, factors[v], sums[r, v].value)
    for r, v in tile:
        emitter.store(sums[r, v].value, emitter.at(y, (y_stride, r)), v * lanes)


def _multiply_add(emitter: Emitter, *values: Any) -> Any:
    """The instruction: products and sums that compilers may join would be joined in some tiles only."""
    vector, module = emitter.vector, emitter.builder.module
    name = f"llvm.fmuladd.v{emitter.lanes}f{emitter.element.bitwidth}"
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(vector, [vector] * 3), name)
    return emitter.builder.call(function, values)


@exact
def apply(linear: LinearMap, x: Array, before: Array, y: Array) -> None:
    """Set y = before + x W + bias; `before` may be y, or without atoms for zero.

    x, y and `before` are (atoms, numbers); an atom has its degrees one after the other, l as (2 l + 1, in or out).
    """
    for degree in range(linear.sizes.shape[0]):
        start, _, inner, width, x_column, y_column = linear.sizes[degree]
        rows = 2 * degree + 1
        _multiply(linear.numbers, start, rows, x, x_column, inner, before, y, y_column, width)
    width = linear.sizes[0, 3]
    bias = linear.numbers[linear.numbers.shape[0] - width :]
    for i in range(y.shape[0]):
        own = y[i, :width]
        for c in range(width):
            own[c] += bias[c]


@exact
def apply_transposed(linear: LinearMap, y: Array, before: Array, x: Array) -> None:
    """Set x = before + y W^T, the derivative of `apply`; `before` may be x, or without atoms for zero."""
    for degree in range(linear.sizes.shape[0]):
        _, start, width, inner, x_column, y_column = linear.sizes[degree]
        rows = 2 * degree + 1
        _multiply(linear.numbers, start, rows, y, y_column, inner, before, x, x_column, width)


@exact
def _multiply(
    panels: Array, place: int, rows: int, x: Array, x_column: int, inner: int, before: Array, y: Array, y_column: int,
    width: int,
) -> None:  # fmt: skip
    """All rows of one degree times its matrix; a panel stays in the cache while all of them are held against it."""
    lanes = LANE_BYTES // panels.itemsize
    edge = np.empty((TILE_ROWS[0], TILE_VECTORS[0] * lanes), panels.dtype)
    add, first = before.shape[0] > 0, 0
    while first < width:
        vectors = _largest((width - first + lanes - 1) // lanes, TILE_VECTORS)
        columns = min(width - first, vectors * lanes)
        whole = columns == vectors * lanes
        for row in range(rows):
            x_start, y_start, i = x_column + row * inner, y_column + row * width + first, 0
            while i < y.shape[0]:
                size, source = (_largest(y.shape[0] - i, TILE_ROWS), vectors), (i * x.shape[1] + x_start, x.shape[1])
                if whole:
                    result, target = y, (i * y.shape[1] + y_start, y.shape[1])
                else:
                    result, target = edge, (0, edge.shape[1])
                _tile(size, x, source, panels, (place, inner), before, result, target, add and whole)
                if not whole:
                    _write_edge(edge, size[0], columns, before, y, i, y_start)
                i += size[0]
        first += columns
        place += inner * vectors * lanes


@inline
def _largest(count: int, sizes: tuple[int, ...]) -> int:
    """The largest of the sizes that is not above `count`."""
    for size in sizes:
        if size <= count:
            return size
    return 1


@inline
def _write_edge(edge: Array, n: int, columns: int, before: Array, y: Array, first: int, start: int) -> None:
    for r in range(n):
        for c in range(columns):
            own = before[first + r, start + c] if before.shape[0] > 0 else edge.dtype.type(0.0)
            y[first + r, start + c] = own + edge[r, c]
