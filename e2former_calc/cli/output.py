"""Output files: refused before a long run if they exist or cannot be written, complete or absent after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def with_suffix(prefix: Path, suffix: str) -> Path:
    """`PREFIX` + suffix; dots in the prefix stay.

    Raises:
        ValueError: if the prefix is a folder or empty.
    """
    if prefix.is_dir() or not prefix.name:
        raise ValueError(f"the prefix {str(prefix)!r} is a folder: add the beginning of a file name")
    return prefix.with_name(prefix.name + suffix)


def check_outputs(outputs: Iterable[Path], *, inputs: Iterable[Path] = (), overwrite: bool) -> None:
    """Make sure, before any work is done, that the results can be written.

    Raises:
        FileExistsError: if a file is there and `overwrite` is false; names all of them.
        OSError: if a folder is missing or not writable.
        ValueError: if an output would replace an input.
    """
    outputs = list(outputs)
    sources = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in sources:
            raise ValueError(f"{path} is an input and would be replaced: choose another name")
        _check_folder(path.parent)
    existing = [path for path in outputs if path.exists()]
    folders = [path for path in existing if path.is_dir()]
    if folders:
        raise IsADirectoryError(f"{folders[0]} is a folder: choose another name")
    if existing and not overwrite:
        names = ", ".join(map(str, existing))
        raise FileExistsError(f"{names} would be replaced: add --overwrite, or choose another name")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist: create it first"
        raise NotADirectoryError(f"the folder {folder} {reason}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {folder} is not writable: choose another one")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; it becomes `path` if the block succeeds and vanishes if it does not.

    It lies in the same folder and has the same suffix.

    Raises:
        OSError: if it cannot be written completely; names `path`.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
