"""Arithmetic that E2Former-V2 cannot do without, and the time that it takes at the peak rate of the machine.

Multiply-adds of one forward evaluation, with M = (L+1)^2 rows, C channels, D = heads * width scalars, H heads and
n(l) paths into degree l. "Restructured" is what is left after tables, merged linear maps and relative vectors;
"as coded" is the official algorithm. The derivative by positions costs 1.02 of the forward evaluation more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.benchmark.timing import wait
from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.so3 import coupling_paths

FORCES_FACTOR = 2.02
"""Energy and forces relative to the energy alone."""
ELEMENT_WIDTH = 128
SPLINE_ROWS = 6
"""Coefficients of a quintic spline."""
PEAK_SIZE, PEAK_REPEATS = 1024, 12


@dataclass(frozen=True)
class Floor:
    """Smallest times in ms.

    Attributes:
        energy, energy_forces: of the restructured count.
        as_coded: energy and forces of the official count.
    """

    energy: float
    energy_forces: float
    as_coded: float


def floor_of(config: E2FormerV2Config, *, atoms: int, edges: int, peak: float) -> Floor:
    """Floor of one network and structure at `peak` FLOP/s; one multiply-add is two FLOP."""
    forward = 2e3 * restructured(config, atoms, edges) / peak
    coded = 2e3 * as_coded(config, atoms, edges) / peak
    return Floor(energy=forward, energy_forces=FORCES_FACTOR * forward, as_coded=FORCES_FACTOR * coded)


def restructured(config: E2FormerV2Config, atoms: int, edges: int) -> float:
    """Multiply-adds with radial tables, one matrix for path mixing and output, and moments of relative vectors."""
    rows, channels = (config.lmax + 1) ** 2, config.channels
    heads, scalars = config.num_heads, config.num_heads * config.head_width
    total = atoms * _head(config)
    total += edges * ((config.lmax + 1) * channels * SPLINE_ROWS + rows * channels)
    for order in config.orders:
        axes, products = (3, _product_rows(config)) if order == "first" else (1, rows)
        node = _projections(config) + rows * channels**2 + products * channels**2 + _feed_forward(config)
        total += atoms * node + edges * (axes * rows * channels + scalars + 2 * heads * SPLINE_ROWS)
    return float(total)


def as_coded(config: E2FormerV2Config, atoms: int, edges: int) -> float:
    """Multiply-adds of the official code; periodic images are not counted as further nodes."""
    rows, channels, basis = (config.lmax + 1) ** 2, config.channels, config.num_basis
    heads, scalars = config.num_heads, config.num_heads * config.head_width
    hidden, width = min(128, basis // 2), config.num_heads * config.conv_multiplicity
    total = atoms * _head(config)
    radial = 3 * basis * hidden + hidden**2 + hidden * channels
    total += edges * ((config.lmax + 1) * radial + rows * channels + basis)
    for order in config.orders:
        products = _product_rows(config) if order == "first" else 0
        node = _projections(config) + rows * channels**2 + _feed_forward(config)
        rotations = 2 * (rows**2 + products**2) * channels if products else 0
        node += rotations + (products * channels * width + rows * width * channels if products else rows * channels**2)
        edge = (basis + 2 * ELEMENT_WIDTH) * hidden + hidden**2 + 2 * hidden * heads
        total += atoms * node + edges * (edge + scalars + (products + rows) * channels)
    return float(total)


def _projections(config: E2FormerV2Config) -> int:
    """Queries and keys."""
    rows, scalars = (config.lmax + 1) ** 2, config.num_heads * config.head_width
    half = scalars // 2
    return 2 * (2 * rows * config.channels * half + (config.lmax + 1) * half**2 + half * scalars)


def _feed_forward(config: E2FormerV2Config) -> int:
    return (2 * (config.lmax + 1) ** 2 + config.lmax + 1) * config.channels**2


def _head(config: E2FormerV2Config) -> int:
    return 2 * config.channels**2 + config.channels


def _product_rows(config: E2FormerV2Config) -> int:
    return sum(2 * l_out + 1 for _, l_out in coupling_paths(config.lmax))


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate (FLOP/s) of a square matrix product, with the threads and the precision that torch is set to.

    On the host the better one of torch and the kernels of this package: libraries do not use every processor well.
    """
    size = PEAK_SIZE * (8 if device.type == "cuda" else 1)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = _shortest(lambda: a @ b, device)
    if device.type == "cpu" and dtype in (torch.float32, torch.float64):
        best = min(best, _shortest(_native_product(a, b), device))
    return 2.0 * size**3 / best


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    """Smallest time (s) of some repeats."""
    best = float("inf")
    for _ in range(PEAK_REPEATS):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _native_product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Callable[[], None]:
    from e2former_calc.potentials.inference.compilation import in_shares
    from e2former_calc.potentials.inference.products import apply, linear_map

    left, panels, result = a.numpy(), linear_map([b.numpy()]), torch.empty(len(a), b.shape[1], dtype=a.dtype).numpy()

    def share(_: int, first: int, last: int) -> None:
        apply(panels, left[first:last], left[:0], result[first:last])

    share(0, 0, 1)
    return lambda: in_shares(share, len(left), torch.get_num_threads())
