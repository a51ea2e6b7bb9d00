"""A file that HDF5 writes in memory and that changes on disk all at once, or not at all.

HDF5 rewrites its tables in place and in no fixed order: a process killed meanwhile leaves a file that nobody can
open, and after a failed write (full disk) HDF5 may bring down the process when it exits. Therefore HDF5 gets this
object instead of a file. What it writes stays in memory until `commit`, which

1. appends what lies behind the old end of the file, to which nothing points yet,
2. writes what replaces old bytes to a journal beside the file, closed by a checksum,
3. replaces these bytes in the file, for which the disk needs no new space, and removes the journal.

A full disk ends 1 or 2, and the file is cut to its old end. A process killed in 1 or 2 leaves the old content;
one killed in 3 leaves a complete journal, from which the next opening finishes the commit.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096
BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag that Windows needs for files that are no text."""
MAGIC = b"e2former_calc journal 1\n"

Buffer = Any
"""Any object with the buffer protocol; h5py hands over views of its own kind."""

Piece = tuple[int, bytes]
"""Bytes and where they belong."""


class AtomicFile:
    """Bytes at positions, as Python's files, for `h5py.File`.

    Args:
        path: the file; created if it does not exist.
        append: keep its content.
        durable: wait at every commit until the disk has the data, against a power failure; a killed process
            loses nothing without it.

    Raises:
        BlockingIOError: if another process writes it.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, *, append: bool, durable: bool = False) -> None:
        self.path, self.durable = path, durable
        self._journal = journal_of(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
        try:
            _lock(self._descriptor)
            if append:
                _finish(self._descriptor, self._journal)
            else:
                os.ftruncate(self._descriptor, 0)
                self._journal.unlink(missing_ok=True)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._position = 0
        self._committed = os.fstat(self._descriptor).st_size
        self._length = self._on_disk = self._committed
        self._pages: dict[int, bytearray] = {}

    def tell(self) -> int:
        """Current position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position counted from the start, the current position or the end."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Bytes from the current position on."""
        size = max(0, self._length - self._position) if size < 0 else size
        content = bytearray(size)
        self.readinto(content)
        return bytes(content)

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer, with zeros behind the end."""
        view = memoryview(buffer).cast("B")
        done = 0
        for page, part in _parts(self._position, len(view)):
            size = part.stop - part.start
            view[done : done + size] = self._page(page)[part]
            done += size
        self._position += done
        return done

    def write(self, data: Buffer) -> int:
        """Put bytes at the current position, in memory."""
        view = memoryview(data).cast("B")
        done = 0
        for page, part in _parts(self._position, len(view)):
            size = part.stop - part.start
            if page not in self._pages:
                self._pages[page] = bytearray(PAGE) if size == PAGE else bytearray(self._page(page))
            self._pages[page][part] = view[done : done + size]
            done += size
        self._position += done
        if done:
            self._length = max(self._length, self._position)
        return done

    def truncate(self, size: int | None = None) -> int:
        """Set the length, in memory."""
        self._length = self._position if size is None else size
        self._on_disk = min(self._on_disk, self._length)
        last, end = divmod(self._length, PAGE)
        for page in [page for page in self._pages if page > last]:
            del self._pages[page]
        if last in self._pages:
            self._pages[last][end:] = bytes(PAGE - end)
        return self._length

    def flush(self) -> None:
        """Nothing; HDF5 calls it where errors cannot be handled. See `commit`."""

    def commit(self) -> None:
        """Bring everything written so far to the file.

        Raises:
            OSError: if that fails, for instance for lack of space; the file is as it was before.
        """
        old, new = self._pieces()
        length = self._length
        try:
            write_pieces(self._descriptor, new)
            self._sync(self._descriptor)
            if old:
                self._write_journal(old, length)
        except BaseException:
            self._journal.unlink(missing_ok=True)
            os.ftruncate(self._descriptor, self._committed)
            raise
        write_pieces(self._descriptor, old)
        os.ftruncate(self._descriptor, length)
        self._sync(self._descriptor)
        if old:
            self._journal.unlink()
        self._committed = self._on_disk = length
        self._pages.clear()

    def close(self) -> None:
        """Close without a commit; further calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._pages.clear()

    def _page(self, page: int) -> bytes | bytearray:
        """Content of a page, with zeros behind the end."""
        if page in self._pages:
            return self._pages[page]
        wanted = max(0, min(PAGE, self._on_disk - page * PAGE))
        return _read_at(self._descriptor, wanted, page * PAGE).ljust(PAGE, b"\0")

    def _pieces(self) -> tuple[list[Piece], list[Piece]]:
        """What replaces bytes of the file, and what lies behind its end."""
        old, new = [], []
        kept = min(self._committed, self._length)
        zeroed = range(self._on_disk // PAGE, -(-kept // PAGE)) if self._on_disk < kept else ()
        for page in sorted({*self._pages, *zeroed}):
            start = page * PAGE
            content = bytes(self._page(page)[: max(0, self._length - start)])
            split = max(0, min(len(content), self._committed - start))
            if split:
                old.append((start, content[:split]))
            if split < len(content):
                new.append((start + split, content[split:]))
        return old, new

    def _write_journal(self, pieces: list[Piece], length: int) -> None:
        content = b"".join([struct.pack("<QQ", offset, len(data)) + data for offset, data in pieces])
        content = MAGIC + struct.pack("<Q", length) + content
        descriptor = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
        try:
            write_pieces(descriptor, [(0, content + hashlib.sha256(content).digest())])
            self._sync(descriptor)
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        if self.durable:
            os.fsync(descriptor)


def journal_of(path: Path) -> Path:
    """Name of the journal of a file."""
    return path.with_name(f"{path.name}-journal")


def recover(path: Path) -> None:
    """Finish the commit of a process that was killed meanwhile; nothing to do in any other case.

    Raises:
        OSError: if the file cannot be written.
    """
    if not journal_of(path).exists() or not path.exists():
        return
    descriptor = os.open(path, os.O_RDWR | BINARY)
    try:
        _lock(descriptor)
        _finish(descriptor, journal_of(path))
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _finish(descriptor: int, journal: Path) -> None:
    """Apply a journal if it is complete, and remove it."""
    if not journal.exists():
        return
    stored = journal.read_bytes()
    content, digest = stored[:-32], stored[-32:]
    if content.startswith(MAGIC) and hashlib.sha256(content).digest() == digest:
        place = len(MAGIC)
        (length,) = struct.unpack_from("<Q", content, place)
        place += 8
        while place < len(content):
            offset, size = struct.unpack_from("<QQ", content, place)
            place += 16
            write_pieces(descriptor, [(offset, content[place : place + size])])
            place += size
        os.ftruncate(descriptor, length)
        os.fsync(descriptor)
    journal.unlink()


def _parts(position: int, size: int) -> Iterator[tuple[int, slice]]:
    """Pages that a range of bytes lies on, and the part of each."""
    end = position + size
    while position < end:
        page, start = divmod(position, PAGE)
        stop = min(PAGE, start + end - position)
        yield page, slice(start, stop)
        position += stop - start


def write_pieces(descriptor: int, pieces: list[Piece]) -> None:
    """Write bytes to their places.

    Raises:
        OSError: if not all of them can be written.
    """
    for offset, data in pieces:
        done = 0
        while done < len(data):
            done += _write_at(descriptor, data[done:], offset + done)


def _write_at(descriptor: int, data: bytes, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.write(descriptor, data)


def _read_at(descriptor: int, size: int, place: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, place)
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.read(descriptor, size)


def _lock(descriptor: int) -> None:
    """Take the lock that HDF5 looks for too.

    Raises:
        BlockingIOError: if another one has it.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
