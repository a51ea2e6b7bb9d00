"""Wall times, and what an accelerator says about itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from e2former_calc.potentials.potential import EnergyPotential

Value = TypeVar("Value")

MINIMUM_REPEATS = 2
"""Repeats that are made even if the first ones take longer than the time given."""


def timed(call: Callable[[], Value], device: torch.device | None = None) -> tuple[float, Value]:
    """Wall time in ms until the device has finished, and what the call returned."""
    wait(device)
    start = time.perf_counter()
    value = call()
    wait(device)
    return 1e3 * (time.perf_counter() - start), value


def wait(device: torch.device | None) -> None:
    """Return when an accelerator has done all its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_memory_peak(device: torch.device) -> float | None:
    """Largest allocation (MB) since the start or `reset_device_memory_peak`; None on the host."""
    return 1e-6 * torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_device_memory_peak(device: torch.device) -> None:
    """Start `device_memory_peak` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class ModelStopwatch:
    """Time that a potential spends in its forward calls, in ms.

    Attributes:
        last, total: of the last call, and of all calls since the start.
    """

    def __init__(self, potential: EnergyPotential) -> None:
        self.last = self.total = 0.0
        self.device = potential.device
        self._start = 0.0
        potential.register_forward_pre_hook(self._before)
        potential.register_forward_hook(self._after)

    def _before(self, *_: Any) -> None:
        wait(self.device)
        self._start = time.perf_counter()

    def _after(self, *_: Any) -> None:
        wait(self.device)
        self.last = 1e3 * (time.perf_counter() - self._start)
        self.total += self.last
