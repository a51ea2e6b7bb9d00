"""What the commands say besides their results: start line, warnings, errors."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from e2former_calc.calculator import E2FormerCalculator

FORCE_SOURCES = {"gradient": "gradient of the energy", "head": "force head, not the gradient of the energy"}
"""Where forces come from, in words."""

_ARGUMENT = re.compile(
    r"\b(config|head|variant|weights|device|dtype|charge|spin|forces|neighbor_cap)=('[^']*'|\"[^\"]*\"|\.\.\.|[\w.+-]+)"
)
_OPTION_NAMES = {"config": "model-config", "neighbor_cap": "neighbor-cap"}

_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory")


def one_line(text: str) -> str:
    """The text on one line, with Python arguments (`forces='head'`) as options (`--forces head`)."""
    return _ARGUMENT.sub(_as_option, " ".join(str(text).split())).replace("strict=False", "--no-strict")


def _as_option(match: re.Match[str]) -> str:
    name, value = match.groups()
    return f"--{_OPTION_NAMES.get(name, name)} {value.strip(chr(39) + chr(34))}"


def user_error_text(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for programming errors and click's own exceptions."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror + (f": {error.filename}" if error.filename else ""))
    if _is_out_of_memory(error):
        return f"out of memory: use a smaller structure, smaller batches, or another --device ({one_line(str(error))})"
    if isinstance(error, OSError | ValueError | NotImplementedError):
        return one_line(str(error)) or type(error).__name__
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    description = f"{type(error).__name__}: {error}"
    torch_marks = isinstance(error, RuntimeError) and any(mark in description for mark in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or torch_marks


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Within this context Python warnings appear as lines `Warning: ...` on stderr, each text once."""
    shown: set[str] = set()

    def show(message: Warning | str, *_details: Any, **_more: Any) -> None:
        text = one_line(str(message))
        if text not in shown:
            shown.add(text)
            notice(f"Warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def notice(text: str) -> None:
    """Write a line to stderr, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def announce(calculator: E2FormerCalculator, *, model: str, size: str) -> None:
    """The start line: device, dtype, size of the task, model, licence."""
    from e2former_calc.cli.models import licence

    potential = calculator.potential
    dtype = str(potential.dtype).removeprefix("torch.")
    kernels = "fused kernels" if getattr(potential, "prepared", None) is not None else "plain torch"
    notice(f"device {potential.device}, {dtype}, {kernels}, {size}, model {model}, licence {licence(model)}")


def plural(count: int, noun: str) -> str:
    """`1 atom`, `2 atoms`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def echo_table(rows: list[tuple[str, str]]) -> None:
    """Print pairs of a label and a value, values aligned."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        click.echo(f"{label:<{width}}  {value}")
