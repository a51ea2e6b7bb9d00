"""Resident memory of this process in MB (10^6 bytes)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_memory() -> float:
    """Memory in use now; where the system does not tell, the largest so far."""
    value = _from_status("VmRSS")
    return peak_memory() if value is None else value


def peak_memory() -> float:
    """Largest resident memory since the start of the process, or since `reset_peak_memory`.

    Raises:
        NotImplementedError: on systems that report neither.
    """
    value = _from_status("VmHWM")
    if value is not None:
        return value
    try:
        import resource
    except ImportError:
        raise NotImplementedError(f"resident memory is not available on {sys.platform!r}") from None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1e-6 if sys.platform == "darwin" else 1024e-6)


def reset_peak_memory() -> bool:
    """Start `peak_memory` anew; False where the system cannot."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _from_status(key: str) -> float | None:
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024e-6
