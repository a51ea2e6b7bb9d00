"""Vector instructions written down, for loops whose sums compilers do not keep in registers.

A `vector_kernel` emits LLVM instructions while a kernel that calls it is compiled. `Emitter` emits those on vectors;
loops over what is known at that time are loops of Python, so that they are unrolled. How wide vectors are depends on
the processor that numba compiles for, and the order of every sum on that alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline

MAX_LANES: Final = 16
"""Numbers in the widest vector of any processor."""
CACHE_LINE: Final = 64
"""Bytes; vectors that cross the border of two lines take two accesses."""

Value: TypeAlias = Any
"""Result of an instruction, or a constant: a number, a vector, or an index."""
Pointer: TypeAlias = Any
"""Address of a number or an index in an array."""

_INDEX = ir.IntType(64)
_generation = cast(Any, cgutils)


@dataclass(frozen=True)
class Argument:
    """An argument of a `vector_kernel` while code is generated.

    Attributes:
        context, builder: what numba hands to the code generation.
        kind: its numba type.
        value: what the caller passes; None is no value.
    """

    context: Any
    builder: Any
    kind: Any
    value: Value

    @property
    def start(self) -> Pointer:
        """First element of an array; all arrays are in C order."""
        return self._made.data

    @property
    def is_none(self) -> bool:
        """Whether the caller passes None."""
        return isinstance(self.kind, types.NoneType)

    def extent(self, axis: int) -> Value:
        """Length of an array along an axis."""
        return self.builder.extract_value(self._made.shape, axis)

    def field(self, name: str) -> Argument:
        """An entry of a named tuple."""
        place = self.kind.fields.index(name)
        value = self.builder.extract_value(self.value, place)
        return Argument(self.context, self.builder, self.kind.types[place], value)

    def converted(self, kind: Any) -> Value:
        """A number in another precision."""
        return self.context.cast(self.builder, self.value, self.kind, kind)

    @property
    def _made(self) -> Any:
        return self.context.make_array(self.kind)(self.context, self.builder, self.value)


@inline
def aligned_memory(size: int, like: NDArray[Any]) -> NDArray[Any]:
    """Memory for so many numbers of the type of `like`, from the beginning of a cache line on."""
    memory = np.empty(size + CACHE_LINE // like.itemsize, like.dtype)
    skip = (-memory.ctypes.data % CACHE_LINE) // like.itemsize
    return memory[skip : skip + size]


def vector_kernel(generate: Callable[..., None]) -> Callable[..., None]:
    """A function for kernels from what generates its code: (context, builder, sizes, *arguments), without a result.

    Kernels call it as (sizes, *arguments), with a tuple of integers that are known when they are compiled, such as a
    variable of an enclosing function; the code generation gets each of the others as an `Argument`.
    """

    def typed(_: Any, sizes: Any, *arguments: Any) -> Any:
        known = _known(sizes)
        return None if known is None else (types.void(sizes, *arguments), partial(_emit, generate, known))

    typed.__name__, typed.__doc__ = generate.__name__, generate.__doc__
    signature = inspect.signature(generate)
    # Numba counts the arguments of a call by the signature: one for its own context, and those after the builder.
    typed.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return cast(Callable[..., None], intrinsic(prefer_literal=True)(typed))


def _emit(
    generate: Callable[..., None], known: tuple[int, ...], context: Any, builder: Any, signature: Any, values: Any
) -> Value:
    pairs = zip(signature.args[1:], values[1:], strict=True)
    generate(context, builder, known, *(Argument(context, builder, kind, value) for kind, value in pairs))
    return context.get_dummy_value()


def _known(sizes: Any) -> tuple[int, ...] | None:
    """The values of a tuple of integers; None if they are not known yet."""
    if not all(isinstance(part, types.IntegerLiteral) for part in sizes):
        return None
    return tuple(part.literal_value for part in sizes)


class Emitter:
    """Emits instructions on vectors of floating-point numbers.

    Products and sums may be contracted (fused multiply-add) where the processor has it; nothing else is reordered.

    Args:
        context, builder: what numba hands to the code generation of an intrinsic.
        element: type of the numbers, float32 or float64.
        divides: sizes in memory, which the number of lanes shall divide; none for the full width.

    Attributes:
        lanes: numbers per vector, a power of two.
        registers: vector registers of the processor.
    """

    def __init__(self, context: Any, builder: Any, element: types.Float, divides: Sequence[int] = ()) -> None:
        features = context.codegen().magic_tuple()[2]
        bits = 512 if "+avx512f" in features else 256 if "+avx2" in features else 128
        self.registers = 32 if bits == 512 or "+neon" in features else 16
        self.context, self.builder, self.element = context, builder, element
        self.scalar = context.get_value_type(element)
        self._align = element.bitwidth // 8
        self.lanes = bits // element.bitwidth
        while any(size % self.lanes for size in divides):
            self.lanes //= 2

    def narrowed(self, lanes: int) -> Emitter:
        """The same with fewer, or more, lanes."""
        other = object.__new__(Emitter)
        other.__dict__.update(self.__dict__, lanes=lanes)
        return other

    @property
    def vector(self) -> ir.VectorType:
        """Type of a vector."""
        return ir.VectorType(self.scalar, self.lanes)

    def index(self, value: int | Value) -> Value:
        """A number of elements as a value."""
        return ir.Constant(_INDEX, value) if isinstance(value, int) else value

    def offset(self, *terms: tuple[int | Value, int]) -> Value:
        """Sum of index times stride."""
        total = self.index(0)
        for index, stride in terms:
            total = self.builder.add(total, self.builder.mul(self.index(index), self.index(stride)))
        return total

    def start(self, kind: types.Array, array: Value) -> Pointer:
        """First element of an array in C order."""
        return Argument(self.context, self.builder, kind, array).start

    def at(self, pointer: Pointer, *terms: tuple[int | Value, int]) -> Pointer:
        """Element at the sum of index times stride."""
        return self.builder.gep(pointer, [self.offset(*terms)])

    def element_at(self, pointer: Pointer, *terms: tuple[int | Value, int]) -> Value:
        """Its value: a scalar, or an index."""
        return self.builder.load(self.at(pointer, *terms))

    def range_at(self, pointer: Pointer, place: Value) -> tuple[Value, Value]:
        """Entry of a list of bounds, and the next one."""
        begin = self.at(pointer, (place, 1))
        return self.builder.load(begin), self.element_at(begin, (1, 1))

    def accumulate(self, value: Value, pointer: Pointer) -> None:
        """Add a number to one in memory."""
        self.builder.store(self.builder.fadd(self.builder.load(pointer), value), pointer)

    def load(self, pointer: Pointer, offset: int = 0) -> Value:
        """Vector from memory that is aligned to its elements only."""
        return self.builder.load(self._as_vector(pointer, offset), align=self._align)

    def store(self, value: Value, pointer: Pointer, offset: int = 0) -> None:
        """Vector to memory that is aligned to its elements only."""
        self.builder.store(value, self._as_vector(pointer, offset), align=self._align)

    def _as_vector(self, pointer: Pointer, offset: int) -> Value:
        return self.builder.bitcast(self.builder.gep(pointer, [self.index(offset)]), self.vector.as_pointer())

    def constant(self, value: float) -> Value:
        """The same number in every lane."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def broadcast(self, scalar: Value) -> Value:
        """A number in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self._shuffle(first, [0] * self.lanes)

    def mul(self, a: Value, b: Value) -> Value:
        """Product."""
        return self.builder.fmul(a, b, flags=("contract",))

    def add(self, a: Value, b: Value) -> Value:
        """Sum."""
        return self.builder.fadd(a, b, flags=("contract",))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Product plus c."""
        return self.add(self.mul(a, b), c)

    def sub(self, a: Value, b: Value) -> Value:
        """Difference."""
        return self.builder.fsub(a, b, flags=("contract",))

    def div(self, a: Value, b: Value) -> Value:
        """Quotient."""
        return self.builder.fdiv(a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger one."""
        return self.builder.select(self.at_least(a, b), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller one."""
        return self.builder.select(self.at_least(a, b), b, a)

    def at_least(self, a: Value, b: Value) -> Value:
        """Whether a >= b, for `builder.select`."""
        return self.builder.fcmp_ordered(">=", a, b)

    def exp(self, x: Value) -> Value:
        """Exponential: in float32 the polynomial of `compilation.exponential`, otherwise that of the C library."""
        if self.element != types.float32:
            return self._call("exp", x)
        x = self.minimum(self.maximum(x, self.constant(-87.0)), self.constant(88.0))
        power = self._call("floor", self.fma(x, self.constant(1.4426950408889634), self.constant(0.5)))
        rest = self.fma(power, self.constant(-0.693359375), x)
        rest = self.fma(power, self.constant(2.12194440e-4), rest)
        total = self.constant(1.0 / 5040.0)
        for denominator in (720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
            total = self.fma(total, rest, self.constant(1.0 / denominator))
        integers = ir.VectorType(ir.IntType(32), self.lanes)
        exponent = self.builder.add(self.builder.fptosi(power, integers), ir.Constant(integers, [127] * self.lanes))
        bits = self.builder.shl(exponent, ir.Constant(integers, [23] * self.lanes))
        return self.mul(total, self.builder.bitcast(bits, self.vector))

    def _call(self, function: str, x: Value) -> Value:
        name = f"llvm.{function}.v{self.lanes}f{self.element.bitwidth}"
        kind = ir.FunctionType(self.vector, [self.vector])
        return self.builder.call(_generation.get_or_insert_function(self.builder.module, kind, name), [x])

    def dot(self, pairs: Sequence[tuple[Value, Value]]) -> Value:
        """Sum of products."""
        total = self.mul(*pairs[0])
        for a, b in pairs[1:]:
            total = self.fma(a, b, total)
        return total

    def tile(self, part: Value, count: int) -> Value:
        """A vector of all lanes that repeats one of `count` lanes."""
        return part if count == self.lanes else self._shuffle(part, [lane % count for lane in range(self.lanes)])

    def fold(self, value: Value, count: int) -> Value:
        """Sum of all lanes with the same remainder by `count`, a power of two: a vector of `count` lanes."""
        lanes = self.lanes
        while lanes > count:
            lanes //= 2
            low = self._shuffle(value, range(lanes))
            value = self.add(low, self._shuffle(value, range(lanes, 2 * lanes)))
        return value

    def sum(self, value: Value) -> Value:
        """Sum of all lanes."""
        return self.builder.extract_element(self.fold(value, 1), ir.Constant(ir.IntType(32), 0))

    def _shuffle(self, value: Value, lanes: Sequence[int]) -> Value:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)

    def variable(self, initial: Value) -> Variable:
        """A value that loops change; it stays in a register."""
        return Variable(self.builder, initial)

    @contextmanager
    def loop(self, stop: int | Value, start: int | Value = 0) -> Iterator[Value]:
        """Instructions emitted inside are repeated for the index start ... stop - 1."""
        with cgutils.for_range(self.builder, self.index(stop), self.index(start)) as loop:
            yield loop.index


class Variable:
    """A value that loops change."""

    def __init__(self, builder: Any, initial: Value) -> None:
        self._builder = builder
        self._place = _generation.alloca_once(builder, initial.type)
        self.value = initial

    @property
    def value(self) -> Value:
        """What it is at this point of the program."""
        return self._builder.load(self._place)

    @value.setter
    def value(self, value: Value) -> None:
        self._builder.store(value, self._place)
