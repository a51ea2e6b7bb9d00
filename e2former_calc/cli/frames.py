"""Trajectories of relaxations, frame by frame, in the format that the file name asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.trajectory import Trajectory

WriteFrame = Callable[[int, Atoms], None]
"""Takes the step number and a structure with results; the frame is on disk when it returns."""


@contextmanager
def _ase_trajectory(path: Path) -> Iterator[WriteFrame]:
    with Trajectory(path, "w") as file:
        yield lambda _step, atoms: file.write(atoms)


@contextmanager
def _extxyz(path: Path) -> Iterator[WriteFrame]:
    with open(path, "w", encoding="utf-8") as file:

        def write(_step: int, atoms: Atoms) -> None:
            ase.io.write(file, atoms, format="extxyz")
            file.flush()

        yield write


@contextmanager
def _h5md(path: Path) -> Iterator[WriteFrame]:
    from e2former_calc.md.h5md import H5MDWriter

    with _hdf5_errors(path), H5MDWriter(path, flush_every=1) as file:

        def write(step: int, atoms: Atoms) -> None:
            with _hdf5_errors(path):
                file.append(atoms, step=step)

        yield write


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """Failed writes of HDF5, which hide the number of the error in the text, as ordinary OSError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None:
            match = re.search(r"errno = (\d+)", str(cause))
            if match:
                number = int(match[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            cause = cause.__context__
        raise


_FORMATS = {".traj": _ase_trajectory, ".extxyz": _extxyz, ".xyz": _extxyz, ".h5md": _h5md}


def check_format(path: Path) -> None:
    """Refuse suffixes that no writer stands for.

    Raises:
        ValueError: naming the suffixes.
    """
    if path.suffix not in _FORMATS:
        raise ValueError(f"a trajectory must end in {', '.join(_FORMATS)}, got {str(path)!r}")


@contextmanager
def trajectory_writer(path: Path) -> Iterator[WriteFrame]:
    """Write a trajectory; what was written stays if the block ends with an error.

    Raises:
        ValueError: for an unknown suffix.
        OSError: if the file cannot be written.
    """
    check_format(path)
    try:
        with _FORMATS[path.suffix](path) as write:
            yield write
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise
