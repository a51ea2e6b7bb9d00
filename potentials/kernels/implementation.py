"""The choice between the specification of a fused operation and its kernels."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

KernelImplementation = Literal["reference", "triton"]
"""How a fused operation is carried out: plain torch (the specification), or Triton kernels."""


def uses_triton(implementation: KernelImplementation, device: torch.device) -> bool:
    """True if Triton kernels are asked for; nothing else is ever used instead.

    Args:
        implementation: what the caller asks for.
        device: where the tensors are. Triton needs a CUDA device, or its interpreter (TRITON_INTERPRET=1).

    Raises:
        ValueError: for an unknown implementation, or a device without Triton.
        ModuleNotFoundError: if Triton is not installed.
    """
    if implementation not in ("reference", "triton"):
        raise ValueError(f"`implementation` must be 'reference' or 'triton', got {implementation!r}")
    if implementation == "reference":
        return False
    if find_spec("triton") is None:
        raise ModuleNotFoundError("implementation='triton' needs the package triton (Linux), which is not installed")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"implementation='triton' needs tensors on a CUDA device, got {device}: use 'reference' there")
    return True
