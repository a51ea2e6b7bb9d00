"""Opening HDF5 files: clear errors, and reading what another process is still writing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import h5py

from e2former_calc.md.atomic_file import AtomicFile, recover

HDF5_VERSIONS = ("v108", "v108")
QUIET_S = 0.05
ATTEMPTS = 40

T = TypeVar("T")


class H5MDError(ValueError):
    """A trajectory cannot be read or extended; the message says why and what to do."""


class CommittedFile:
    """An HDF5 file open for writing, which on disk goes from one `commit` to the next and is never in between.

    Args:
        path: path of the file.
        append: keep its content; else it is emptied.
        durable: see `AtomicFile`.

    Attributes:
        file: the `h5py.File`; its changes are in memory until they are committed.

    Raises:
        H5MDError: if a file that should be continued is not HDF5 or truncated.
        OSError: if it cannot be written; the message says why.
    """

    def __init__(self, path: Path, *, append: bool, durable: bool = False) -> None:
        self.path = path
        try:
            self._disk = AtomicFile(path, append=append, durable=durable)
        except BlockingIOError as error:
            reason = "another process has this trajectory open: close it there or choose another file"
            raise OSError(error.errno, reason, str(path)) from error
        except OSError as error:
            reason = f"cannot write the trajectory ({_reason(error)}): choose a file in an existing, writable folder"
            raise OSError(error.errno, reason, str(path)) from error
        try:
            self.file: Any = h5py.File(self._disk, "r+" if append else "w", libver=HDF5_VERSIONS)
        except OSError as error:
            self._disk.close()
            raise _unusable(path, error) from error

    def __bool__(self) -> bool:
        """True while it is open."""
        return bool(self.file)

    def commit(self) -> None:
        """Bring all changes to disk, at once or not at all. After an error the file is closed.

        Raises:
            OSError: if they cannot be written; the file on disk keeps the state of the commit before.
        """
        try:
            self.file.flush()
            self._disk.commit()
        except OSError as error:
            self.abandon()
            reason = (
                f"cannot write the trajectory ({_reason(error)}); what was written before is complete and readable: "
                "make space or fix the disk, then continue from there"
            )
            raise OSError(error.errno, reason, str(self.path)) from error

    def close(self) -> None:
        """Commit and close; further calls do nothing.

        Raises:
            OSError: as in `commit`.
        """
        if self:
            self.commit()
            self.abandon()

    def abandon(self) -> None:
        """Close without a commit."""
        if self:
            self.file.close()
            self._disk.close()


class SharedFile:
    """An HDF5 file for reading, which another process may be writing.

    HDF5 has no order in which a writer's changes reach the disk, so a file that changes while it is
    read may give errors or wrong numbers. If a writer holds its lock, every reading starts when the
    file has been quiet for `QUIET_S` seconds, opens it anew, and is repeated if it changed meanwhile.

    Args:
        path: path of the file.

    Raises:
        H5MDError: if it is not HDF5 or truncated.
        OSError: if it cannot be read; the message says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        try:
            recover(path)
            self._file = h5py.File(path, "r")
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno is None:
                raise _unusable(path, error) from error
            raise OSError(error.errno, f"cannot read the trajectory ({_reason(error)})", str(path)) from error

    def read(self, function: Callable[[Any], T]) -> T:
        """What `function` makes of the open file.

        Raises:
            H5MDError: if another process changes the file all the time.
        """
        if self._file is not None:
            return function(self._file)
        for _ in range(ATTEMPTS):
            before = self._stamp()
            time.sleep(QUIET_S)
            if self._stamp() != before:
                continue
            try:
                with h5py.File(self.path, "r", locking=False) as file:
                    result = function(file)
            except Exception:
                if self._stamp() == before:
                    raise
                continue
            if self._stamp() == before:
                return result
        raise H5MDError(f"{self.path} is being written too often to be read: try again later, or copy it")

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._file is not None:
            self._file.close()

    def _stamp(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_mtime_ns, status.st_size


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()


def _unusable(path: Path, error: OSError) -> H5MDError:
    text = str(error)
    if "truncated file" in text:
        return H5MDError(f"{path} is truncated: it is shorter than when it was written; copy it again ({text})")
    if "signature not found" in text:
        return H5MDError(f"{path} is not an H5MD file: it is not HDF5")
    return H5MDError(f"{path} cannot be opened: {text}")
