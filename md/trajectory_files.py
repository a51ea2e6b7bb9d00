"""Trajectory files of one replica in the format that the file name asks for, and the topology beside them.

========  =====================================================================================================
.h5md     H5MD 1.1: everything, full precision, changes on disk all at once (`atomic_file`)
.extxyz   text, 8 decimals: positions, momenta, forces, cell, energy
.traj     ASE's own: the same in full precision
========  =====================================================================================================

All of them continue behind a given step, so that a run that was killed goes on without a gap and without doubles.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import ase.io
from ase import Atoms
from ase.io.trajectory import Trajectory

from e2former_calc.md.atomic_file import BINARY, write_pieces
from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.h5md import H5MDError, H5MDWriter

SUFFIXES = (".h5md", ".extxyz", ".xyz", ".traj")
BLOCK_BYTES = 2**22
"""Frames in memory before they are written."""
MAX_PDB_ATOMS = 99_999
_ULM_COUNT_AT = 32
"""Where ASE's .traj files hold the number of frames."""


@runtime_checkable
class FrameFile(Protocol):
    """A trajectory file that is being written."""

    def append(self, frame: Frame) -> None:
        """Add a frame; it may stay in memory until `commit`."""
        ...

    def commit(self) -> None:
        """Bring all frames to disk."""
        ...

    def close(self) -> None:
        """Commit and close; further calls do nothing."""
        ...


def open_frame_file(
    path: Path, topology: Topology, *, keep_until: int | None = None, precision: str = "float64",
    compression: str | None = None,
) -> FrameFile:  # fmt: skip
    """Open a trajectory for writing.

    Args:
        path: its suffix is one of `SUFFIXES`.
        topology: what is the same in all frames.
        keep_until: continue behind this step, later frames are removed; None begins a new file.
        precision, compression: of .h5md files, see `H5MDWriter`.

    Raises:
        FileNotFoundError: if a file to be continued is absent.
        H5MDError, OSError: if it cannot be written or is damaged.
        ValueError: for another suffix.
    """
    check_suffix(path)
    if keep_until is not None and not path.is_file():
        raise FileNotFoundError(f"the trajectory {path} of the run to be continued is not there: put it back")
    if path.suffix == ".h5md":
        return _H5MD(path, topology, keep_until=keep_until, precision=precision, compression=compression)
    kind = _Traj if path.suffix == ".traj" else _Extxyz
    return kind(path, topology, keep_until=keep_until)


def check_suffix(path: Path) -> None:
    """Refuse names that stand for no format.

    Raises:
        ValueError: naming the suffixes.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a trajectory must end in {', '.join(SUFFIXES)}, got {str(path)!r}")


def topology_path(trajectory: Path, atoms: int) -> Path:
    """Name of the topology beside a trajectory: .pdb, or .extxyz where the PDB format has no room for the atoms."""
    return trajectory.with_suffix(".pdb" if atoms <= MAX_PDB_ATOMS else ".extxyz")


def write_topology(path: Path, atoms: Atoms) -> None:
    """Write elements, first positions and cell for programs that cannot find them in the trajectory (VMD, OVITO).

    Raises:
        OSError: if it cannot be written.
    """
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    with _named(path):
        ase.io.write(path, bare, format="proteindatabank" if path.suffix == ".pdb" else "extxyz")


def frame_bytes(topology: Topology) -> int:
    """Memory that a frame takes."""
    return 72 * len(topology.numbers) + 512


class _H5MD:
    def __init__(
        self, path: Path, topology: Topology, *, keep_until: int | None, precision: str, compression: str | None
    ) -> None:
        block = max(1, min(256, BLOCK_BYTES // frame_bytes(topology)))
        self._writer = H5MDWriter(
            path, append=keep_until is not None, flush_every=block, precision=precision, compression=compression,
            durable=True,
        )  # fmt: skip
        self._topology = topology
        if keep_until is not None:
            self._writer.truncate(keep_until)

    def append(self, frame: Frame) -> None:
        self._writer.append_frame(self._topology, frame)

    def commit(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Extxyz:
    def __init__(self, path: Path, topology: Topology, *, keep_until: int | None) -> None:
        self._path, self._topology = path, topology
        self._pending: list[bytes] = []
        self._size = 0
        with _named(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
            if keep_until is not None:
                with path.open("rb") as file:
                    self._size = _end_of_step(file, keep_until)
            os.ftruncate(self._descriptor, self._size)

    def append(self, frame: Frame) -> None:
        text = io.StringIO()
        ase.io.write(text, frame.to_atoms(self._topology), format="extxyz")
        self._pending.append(text.getvalue().encode())
        if sum(map(len, self._pending)) > BLOCK_BYTES:
            self.commit()

    def commit(self) -> None:
        content, self._pending = b"".join(self._pending), []
        with _named(self._path):
            try:
                write_pieces(self._descriptor, [(self._size, content)])
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(content)

    def close(self) -> None:
        if self._descriptor >= 0:
            try:
                self.commit()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1


class _Traj:
    def __init__(self, path: Path, topology: Topology, *, keep_until: int | None) -> None:
        self._path, self._topology = path, topology
        self._pending: list[Frame] = []
        with _named(path):
            if keep_until is None or not _keep_traj_frames(path, keep_until):
                Trajectory(path, "w").close()

    def append(self, frame: Frame) -> None:
        self._pending.append(frame)
        if len(self._pending) * frame_bytes(self._topology) > BLOCK_BYTES:
            self.commit()

    def commit(self) -> None:
        frames, self._pending = self._pending, []
        if not frames:
            return
        with _named(self._path), Trajectory(self._path, "a") as file:
            for frame in frames:
                file.write(frame.to_atoms(self._topology))
        with _named(self._path), self._path.open("rb+") as written:
            os.fsync(written.fileno())

    def close(self) -> None:
        self.commit()


def _end_of_step(file: io.BufferedReader, step: int) -> int:
    """Size of the part of an extxyz file whose frames are complete and not behind a step."""
    end = 0
    while True:
        head, comment = file.readline(), file.readline()
        number = re.search(rb"\bstep=(\d+)", comment)
        if number is None or not head.strip().isdigit() or int(number[1]) > step:
            return end
        line = b"\n"
        for _ in range(int(head)):
            line = file.readline()
        if not line.endswith(b"\n"):
            return end
        end = file.tell()


def _keep_traj_frames(path: Path, step: int) -> int:
    """Cut a .traj file behind a step; returns the number of frames that stay.

    Raises:
        H5MDError: if it cannot be read.
    """
    try:
        with Trajectory(path) as file:
            steps = [int(atoms.info["step"]) for atoms in file]
    except Exception as error:  # ASE's reader raises errors of any kind for damaged files
        raise H5MDError(f"{path} is damaged and cannot be continued ({error}): restore it from a copy") from error
    kept = sum(number <= step for number in steps)
    with path.open("rb+") as raw:
        raw.seek(_ULM_COUNT_AT)
        raw.write(struct.pack("<q", kept))
    return kept


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the operating system with the name of the file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        reason = (
            f"cannot write the trajectory ({os.strerror(error.errno).lower()}); what was written before is readable: "
            "make space or fix the disk, then continue from there"
        )
        raise OSError(error.errno, reason, str(path)) from error
