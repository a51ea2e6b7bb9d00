"""Wall times, and what an accelerator says about itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

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
