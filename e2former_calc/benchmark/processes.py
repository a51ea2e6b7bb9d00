"""What processes of measurements have in common: threads, and how they end."""

from __future__ import annotations

import signal


def how_it_ended(code: int, messages: str) -> str:
    """Signal or exit code, and the last line of what the process wrote to stderr.

    Args:
        code: as `subprocess.Popen.returncode`.
        messages: what it wrote.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (": probably out of memory" if name == "SIGKILL" else "")
    lines = messages.strip().splitlines()
    return f"ended with code {code}: {lines[-1] if lines else 'no message'}"


def thread_variables(number: int) -> dict[str, str]:
    """Environment variables from which programs take their number of threads."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}
