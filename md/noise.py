"""Counter-based normal random numbers: a function of (seed, replica, step, atom, purpose) and of nothing else.

The generator is Philox4x32 with ten rounds (J. K. Salmon et al., SC'11, doi:10.1145/2063384.2063405). There is
no state to store: what a replica receives does not depend on the other replicas of its batch, on their order
or on a restart. Integers are 64-bit tensors of which 32 bits are used. The normal numbers are made from them
with additions, multiplications, divisions and square roots of single elements, whose rounding IEEE 754 fixes.
On the host `native_noise` makes the same numbers in one pass; there blocks of many steps would save nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.md.replicas import Replicas

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

_NUMBERS_PER_BLOCK = 1 << 15
"""Numbers made in one go; small systems get many steps at a time."""
_STEPS_PER_BLOCK = 256


class Purpose(IntEnum):
    """What a random number is for; different purposes have independent numbers."""

    VELOCITIES = 1
    THERMOSTAT = 2
    BAROSTAT = 3
    ACCEPTANCE = 4
    COLOURED = 5


Counters = tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], int, int, tuple[int, int]]
"""What a row of numbers is a function of: index and id of the row, step, purpose, and the seed as two words."""


@dataclass(eq=False)
class _Rows:
    """Counters of the rows of a table of random numbers, and the block of steps made last for each purpose."""

    index: Int[Tensor, " rows"]
    ids: Int[Tensor, " rows"]
    blocks: dict[Purpose, tuple[int, Float[Tensor, "steps rows 3"]]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps in a block."""
        return max(1, min(_STEPS_PER_BLOCK, _NUMBERS_PER_BLOCK // (3 * len(self.index))))


class Noise:
    """Random numbers of the replicas of one batch.

    Args:
        seed: from 0 to 2^64 - 1.
        replicas: their ids enter the counter.

    Raises:
        ValueError: for a seed outside its range.
    """

    def __init__(self, seed: int, replicas: Replicas) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"`seed` must be from 0 to 2^64 - 1, got {seed}")
        self.seed = seed
        self._key = (seed & _MASK, seed >> 32)
        device = replicas.batch.device
        ids = torch.tensor(replicas.ids, dtype=torch.int64, device=device)
        self._atoms = _Rows(replicas.local_index, ids[replicas.batch])
        self._replicas = _Rows(torch.zeros_like(ids), ids)
        self._native = _native_normals() if device.type == "cpu" else None

    def counters(self, step: int, purpose: Purpose) -> Counters:
        """From which `native_noise` makes `normals` on the host."""
        return self._atoms.index.numpy(), self._atoms.ids.numpy(), step, int(purpose), self._key

    def normals(self, step: int, purpose: Purpose) -> Float[Tensor, "atoms 3"]:
        """Independent normal numbers, mean 0 and variance 1, for every coordinate."""
        return self._from_block(self._atoms, step, purpose)

    def replica_normals(self, step: int, purpose: Purpose) -> Float[Tensor, "replicas 3"]:
        """Three independent normal numbers for every replica."""
        return self._from_block(self._replicas, step, purpose)

    def replica_uniforms(self, step: int, purpose: Purpose) -> Float[Tensor, "replicas 4"]:
        """Four independent numbers between 0 and 1, both excluded, for every replica."""
        return _uniform(self._bits(step, 1, purpose, self._replicas))[:, 0].T

    def _from_block(self, rows: _Rows, step: int, purpose: Purpose) -> Tensor:
        if self._native is not None:
            result = np.empty((len(rows.index), 3))
            self._native(rows.index.numpy(), rows.ids.numpy(), step, int(purpose), self._key, result)
            return torch.from_numpy(result)
        number, offset = divmod(step, rows.steps)
        stored = rows.blocks.get(purpose)
        if stored is None or stored[0] != number:
            bits = self._bits(number * rows.steps, rows.steps, purpose, rows)
            stored = rows.blocks[purpose] = number, _box_muller(_uniform(bits))
        return stored[1][offset]

    def _bits(self, first: int, count: int, purpose: Purpose, rows: _Rows) -> Int[Tensor, "4 steps _"]:
        index, ids = rows.index, rows.ids
        steps = torch.arange(first, first + count, device=index.device)[:, None]
        shape = (count, len(index))
        words = (index[None], steps & _MASK, ids[None], (steps >> 32) * 256 + int(purpose))
        return philox(torch.stack([word.expand(shape) for word in words]), self._key)


def _native_normals() -> Callable[..., None]:
    from e2former_calc.md.native_noise import normals  # numba loads slowly

    return normals


def philox(counter: Int[Tensor, "4 *shape"], key: tuple[int, int]) -> Int[Tensor, "4 *shape"]:
    """Philox4x32-10: four words of 32 random bits from four words of counter and two words of key."""
    tail = (1,) * (counter.dim() - 1)
    device = counter.device
    swapped = torch.tensor(_MULTIPLIERS[::-1], device=device).reshape(2, *tail)
    multipliers = (torch.tensor(_MULTIPLIERS, device=device).reshape(2, *tail), swapped)
    even, odd = torch.stack([counter[0], counter[2]]), torch.stack([counter[3], counter[1]])
    for turn in range(_ROUNDS):
        # Rows of `even` change places every round, rows of `odd` stand opposite to them.
        words = [(k + turn * step) & _MASK for k, step in zip(key, _KEY_STEPS, strict=True)]
        round_key = torch.tensor(words[::-1] if turn % 2 == 0 else words, device=device).reshape(2, *tail)
        product = even * multipliers[turn % 2]
        even = ((product >> 32) & _MASK) ^ odd ^ round_key
        odd = (product & _MASK).flip(0)
    return torch.stack([even[0], odd[1], even[1], odd[0]])


def _uniform(bits: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return (bits.to(torch.float64) + 0.5) * 2.0**-32


def _box_muller(uniform: Float[Tensor, "4 *shape"]) -> Float[Tensor, "*shape 3"]:
    """Three of the four normal numbers that four uniform ones give."""
    radius = _square_root(-2.0 * _logarithm(uniform[::2]))
    cosine, sine = _circle(uniform[1::2])
    return torch.stack([radius[0] * cosine[0], radius[0] * sine[0], radius[1] * cosine[1]], dim=-1)


def _square_root(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Rounded as IEEE 754 has it; on the host libraries that torch uses give the neighbouring number at times."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _logarithm(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Natural logarithm of positive normal numbers by the series of the inverse hyperbolic tangent."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    power = exponent.to(torch.float64) - small.to(torch.float64)
    t = (mantissa - 1.0) / (mantissa + 1.0)
    return power * math.log(2.0) + 2.0 * t * _polynomial(t * t, [1.0 / (2 * k + 1) for k in range(11)])


def _circle(turns: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Cosine and sine of an angle given in turns, 0 to 1."""
    quarter = torch.round(4.0 * turns)
    x = (turns - 0.25 * quarter) * (2.0 * math.pi)
    square = x * x
    cosine = _polynomial(square, [(-1.0) ** k / math.factorial(2 * k) for k in range(9)])
    sine = x * _polynomial(square, [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(9)])
    odd = (quarter == 1.0) | (quarter == 3.0)
    first, second = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    half = (quarter == 2.0) | (quarter == 3.0)
    return torch.where(half, -first, first), torch.where(half, -second, second)


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
