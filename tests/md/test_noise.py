"""Laws of the counter-based random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from e2former_calc.md.noise import Noise, Purpose, philox
from e2former_calc.md.noise import _box_muller as box_muller
from e2former_calc.md.noise import _circle as circle
from e2former_calc.md.noise import _logarithm as logarithm
from e2former_calc.md.noise import _uniform as uniform
from e2former_calc.md.replicas import Replicas

EPS = torch.finfo(torch.float64).eps


def noise(sizes: list[int], ids: list[int] | None = None, seed: int = 5) -> Noise:
    return Noise(seed, Replicas.of_sizes(sizes, ids=ids))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, (2**32 - 1, 2**32 - 1), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox(torch.tensor(counter), key).tolist() == expected


@pytest.mark.parametrize("purpose", [Purpose.THERMOSTAT, Purpose.COLOURED])
@pytest.mark.parametrize("step", [0, 2**32 - 1, 2**33 + 1])
@pytest.mark.parametrize("seed", [0, 2**64 - 3])
def test_the_native_kernel_makes_the_same_bits(seed: int, step: int, purpose: Purpose) -> None:
    ids = torch.tensor([2**32 - 1, 4]).repeat_interleave(3001)
    index = torch.arange(3001).repeat(2)
    words = [index, torch.full_like(ids, step % 2**32), ids, torch.full_like(ids, (step >> 32) * 256 + purpose)]
    plain = box_muller(uniform(philox(torch.stack(words), (seed % 2**32, seed >> 32))))
    assert torch.equal(noise([3001, 3001], [2**32 - 1, 4], seed).normals(step, purpose), plain)


def test_blocks_of_many_steps_hold_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    native, blocks = noise([3, 2]), noise([3, 2])
    monkeypatch.setattr(blocks, "_native", None)
    for step in (0, 255, 256, 2**33 + 1):
        assert torch.equal(blocks.normals(step, Purpose.THERMOSTAT), native.normals(step, Purpose.THERMOSTAT))
        assert torch.equal(
            blocks.replica_normals(step, Purpose.BAROSTAT), native.replica_normals(step, Purpose.BAROSTAT)
        )


@pytest.mark.parametrize("step", [0, 7, 2**33 + 1])
def test_numbers_do_not_depend_on_batch_mates_or_their_order(step: int) -> None:
    alone = noise([5], [3]).normals(step, Purpose.THERMOSTAT)
    batch = noise([2, 5, 90], [9, 3, 0]).normals(step, Purpose.THERMOSTAT)
    assert torch.equal(batch[2:7], alone)


def test_numbers_of_replicas_do_not_depend_on_batch_mates() -> None:
    alone, batch = noise([5], [3]), noise([2, 5], [9, 3])
    assert torch.equal(batch.replica_normals(4, Purpose.BAROSTAT)[1:], alone.replica_normals(4, Purpose.BAROSTAT))
    assert torch.equal(batch.replica_uniforms(4, Purpose.BAROSTAT)[1:], alone.replica_uniforms(4, Purpose.BAROSTAT))


def test_numbers_do_not_depend_on_which_were_asked_before() -> None:
    used, fresh = noise([3]), noise([3])
    for step in (900, 3, 901):
        used.normals(step, Purpose.THERMOSTAT)
    assert torch.equal(used.normals(17, Purpose.THERMOSTAT), fresh.normals(17, Purpose.THERMOSTAT))


def draws(which: str) -> tuple[Tensor, Tensor]:
    """Two tables that differ in one key only."""
    first = noise([4000]).normals(1, Purpose.THERMOSTAT)
    second = {
        "seed": lambda: noise([4000], seed=6).normals(1, Purpose.THERMOSTAT),
        "high half of the seed": lambda: noise([4000], seed=5 + 2**32).normals(1, Purpose.THERMOSTAT),
        "replica": lambda: noise([4000], [1]).normals(1, Purpose.THERMOSTAT),
        "step": lambda: noise([4000]).normals(2, Purpose.THERMOSTAT),
        "high half of the step": lambda: noise([4000]).normals(1 + 2**32, Purpose.THERMOSTAT),
        "purpose": lambda: noise([4000]).normals(1, Purpose.VELOCITIES),
    }
    return first, second[which]()


@pytest.mark.parametrize(
    "which", ["seed", "high half of the seed", "replica", "step", "high half of the step", "purpose"]
)
def test_every_part_of_the_key_gives_independent_numbers(which: str) -> None:
    first, second = draws(which)
    correlation = float((first * second).mean())
    assert abs(correlation) < 4.0 / math.sqrt(first.numel())


def test_numbers_are_normally_distributed() -> None:
    z = noise([50_000]).normals(0, Purpose.THERMOSTAT).flatten()
    assert kstest(z.numpy(), "norm").pvalue > 1e-3
    moments = [float((z**k).mean()) for k in (1, 2, 3, 4)]
    errors = [math.sqrt(v / len(z)) for v in (1, 2, 15, 96)]
    assert all(abs(m - x) < 4 * e for m, x, e in zip(moments, (0, 1, 0, 3), errors, strict=True))


def test_coordinates_of_an_atom_are_independent() -> None:
    z = noise([50_000]).normals(0, Purpose.THERMOSTAT)
    covariance = z.T @ z / len(z)
    assert float((covariance - torch.eye(3)).abs().max()) < 4 * math.sqrt(2 / len(z))


def test_elementary_functions_are_accurate(generator: torch.Generator) -> None:
    x = torch.rand(10_000, dtype=torch.float64, generator=generator)
    small = x * 2.0**-30 + 2.0**-33
    assert torch.allclose(logarithm(x), x.log(), rtol=8 * EPS, atol=8 * EPS)
    assert torch.allclose(logarithm(small), small.log(), rtol=8 * EPS, atol=0.0)
    cosine, sine = circle(x)
    assert torch.allclose(cosine, torch.cos(2 * math.pi * x), rtol=0.0, atol=16 * EPS)
    assert torch.allclose(sine, torch.sin(2 * math.pi * x), rtol=0.0, atol=16 * EPS)


def test_uniform_numbers_fill_the_open_interval() -> None:
    u = noise([1] * 5000).replica_uniforms(0, Purpose.ACCEPTANCE).flatten()
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"`seed` must be from 0 to 2\\^64 - 1, got {seed}"):
        noise([1], seed=seed)
