"""The explicit choice between reference and kernels."""

from __future__ import annotations

import sys

import pytest
import torch

from e2former_calc.potentials.kernels.implementation import uses_triton

HOST = torch.device("cpu")


def test_the_reference_runs_anywhere() -> None:
    assert not uses_triton("reference", HOST)


@pytest.mark.usefixtures("_untyped")
def test_unknown_implementations_are_refused() -> None:
    with pytest.raises(ValueError, match="'reference' or 'triton', got 'fast'"):
        uses_triton("fast", HOST)


def test_without_triton_its_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package triton"):
        uses_triton("triton", torch.device("cuda"))


def test_on_the_host_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="CUDA device, got cpu"):
        uses_triton("triton", HOST)
