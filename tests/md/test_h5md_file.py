"""Opening trajectory files: clear errors, and reading while another process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from ase.build import molecule

from e2former_calc.md import h5md_file
from e2former_calc.md.h5md import read_h5md, write_h5md
from e2former_calc.md.h5md_file import H5MDError, SharedFile

HOLD_THE_LOCK = """
import sys, h5py
with h5py.File(sys.argv[1], "w") as file:
    file["number"] = 7
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that another process has open for writing."""
    path = tmp_path_factory.mktemp("locked") / "run.h5md"
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield path
        process.communicate()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5md_file, "QUIET_S", 0.001)


def test_a_locked_file_that_is_quiet_is_read(locked: Path) -> None:
    assert SharedFile(locked).read(lambda file: int(file["number"][()])) == 7


def test_a_reading_that_a_change_overtakes_is_repeated(locked: Path) -> None:
    calls = []

    def read(file: Any) -> int:
        calls.append(file)
        if len(calls) == 1:
            os.utime(locked, ns=(0, 0))
        return len(calls)

    assert SharedFile(locked).read(read) == 2


def test_an_error_from_a_change_is_not_the_last_word(locked: Path) -> None:
    calls = []

    def read(file: Any) -> int:
        calls.append(file)
        if len(calls) == 1:
            os.utime(locked, ns=(1, 1))
            raise OSError("addr overflow")
        return len(calls)

    assert SharedFile(locked).read(read) == 2


def test_an_error_of_a_quiet_file_is_raised(locked: Path) -> None:
    with pytest.raises(KeyError, match="missing"):
        SharedFile(locked).read(lambda file: file["missing"])


def test_a_file_that_never_rests_is_given_up(locked: Path) -> None:
    moments = iter(range(2, 10**6))

    def read(_: Any) -> None:
        os.utime(locked, ns=(0, next(moments) * 10**9))

    with pytest.raises(H5MDError, match="is being written too often to be read"):
        SharedFile(locked).read(read)


def test_a_free_file_is_opened_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "free.h5", "w") as file:
        file["number"] = 3
    shared = SharedFile(tmp_path / "free.h5")
    assert shared.read(lambda file: file) is shared.read(lambda file: file)
    shared.close()
    shared.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5md"


def test_a_file_that_is_not_hdf5_is_refused(path: Path) -> None:
    path.write_text("3\n\nO 0 0 0\n")
    with pytest.raises(H5MDError, match=r"run.h5md is not an H5MD file: it is not HDF5"):
        next(read_h5md(path))
    with pytest.raises(H5MDError, match=r"run.h5md is not an H5MD file: it is not HDF5"):
        write_h5md(path, molecule("H2O"), append=True)


def test_a_truncated_file_is_refused(path: Path) -> None:
    write_h5md(path, molecule("H2O"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(H5MDError, match=r"run.h5md is truncated: .* copy it again"):
        next(read_h5md(path))


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot read the trajectory.*run.h5md"):
        next(read_h5md(path))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"choose a file in an existing, writable folder: '.*none/run.h5md'"):
        write_h5md(tmp_path / "none" / "run.h5md", molecule("H2O"))


def test_a_folder_that_cannot_be_written_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "errno = 13")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"permission denied\): choose a file in an existing, writable folder"):
        write_h5md(path, molecule("H2O"))
