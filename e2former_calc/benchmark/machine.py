"""Where a benchmark was made: processor, versions, state of the source."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import e2former_calc


def machine_info() -> dict[str, Any]:
    """Processor, memory, load, versions and commit; JSON-able, None for what is unknown."""
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cores": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mkl": torch.backends.mkl.is_available(),
        "cuda": torch.version.cuda,
        "e2former_calc": e2former_calc.__version__,
        "commit": source_commit(Path(e2former_calc.__file__).parent),
    }


def cpu_model() -> str:
    """Name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def source_commit(package: Path) -> str | None:
    """Commit of the checkout that holds the package, with "+changes" if files differ; None outside one."""
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top) / package.name != package.resolve():
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain")
    return commit if not changes or commit is None else f"{commit}+changes"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
