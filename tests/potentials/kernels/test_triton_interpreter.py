"""Triton kernels without a GPU: the folder `triton_kernels` in a process that interprets them on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).resolve().parent
FILES = sorted((HERE / "triton_kernels").glob("test_*.py"))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets the kernels itself")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_interpreted_kernels_equal_their_reference(path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    options = ["-m", "not slow", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    command = [sys.executable, "-m", "pytest", str(path), *options]
    run = subprocess.run(command, cwd=HERE.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
