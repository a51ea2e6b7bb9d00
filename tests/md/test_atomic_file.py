"""A file changes all at once or not at all, whenever the process dies and whenever the disk is full."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2former_calc.md import atomic_file
from e2former_calc.md.atomic_file import PAGE, AtomicFile, journal_of, recover

OLD = random.Random(1).randbytes(5 * PAGE + 17)
EDIT = random.Random(2).randbytes(3 * PAGE)
EDIT_AT = PAGE - 5
NEW = OLD[:EDIT_AT] + EDIT + OLD[EDIT_AT + len(EDIT) :] + EDIT


class Killed(BaseException):
    """The process is dead: nothing that it would do afterwards happens."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def edit(path: Path) -> None:
    """From OLD to NEW in one commit."""
    with closing(AtomicFile(path, append=True, durable=True)) as file:
        file.seek(EDIT_AT)
        file.write(EDIT)
        file.seek(0, os.SEEK_END)
        file.write(EDIT)
        file.commit()


def dying(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the process die in system call number `calls` of those that change files; a write stops halfway."""
    count = [0]

    def mortal(function: Callable[..., Any], *, writes: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] < calls:
                return function(*arguments, **options)
            if writes and count[0] == calls:
                descriptor, data, place = arguments
                function(descriptor, data[: len(data) // 2], place)
            raise Killed

        return call

    patch.setattr(os, "pwrite", mortal(os.pwrite, writes=True))
    for name in ("ftruncate", "fsync"):
        patch.setattr(os, name, mortal(getattr(os, name)))
    patch.setattr(Path, "unlink", mortal(Path.unlink))


def test_a_commit_writes_everything(path: Path) -> None:
    edit(path)
    assert path.read_bytes() == NEW
    assert not journal_of(path).exists()


def test_nothing_reaches_the_disk_before_a_commit(path: Path) -> None:
    file = AtomicFile(path, append=True)
    file.write(EDIT)
    assert file.seek(0) == 0
    assert file.read(len(EDIT)) == EDIT
    file.close()
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("calls", range(1, 16))
def test_a_killed_commit_is_whole_or_void(path: Path, calls: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, calls)
        with suppress(Killed):
            edit(path)
    recover(path)
    assert path.read_bytes() == NEW or path.read_bytes()[: len(OLD)] == OLD
    assert not journal_of(path).exists()


def test_all_moments_of_a_commit_have_been_tried(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 16)
        edit(path)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_killed_recovery_is_repeated(path: Path, calls: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 9)
        with pytest.raises(Killed):
            edit(path)
    assert journal_of(path).exists()
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, calls)
        with pytest.raises(Killed):
            recover(path)
    recover(path)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("writes", range(5))
def test_a_full_disk_leaves_the_file_as_it_was(path: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [writes]
    write = os.pwrite

    def limited(descriptor: int, data: bytes, place: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", limited)
    with pytest.raises(OSError, match="No space left"):
        edit(path)
    assert path.read_bytes() == OLD
    assert not journal_of(path).exists()


def test_a_write_may_be_done_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: write(descriptor, data[:1000], place))
    edit(path)
    assert path.read_bytes() == NEW


def test_a_damaged_journal_is_thrown_away(path: Path) -> None:
    journal_of(path).write_bytes(atomic_file.MAGIC + b"half of it")
    recover(path)
    assert path.read_bytes() == OLD
    assert not journal_of(path).exists()


def test_a_journal_of_a_living_process_is_left_alone(path: Path) -> None:
    file = AtomicFile(path, append=True)
    journal_of(path).write_bytes(b"being written")
    recover(path)
    assert journal_of(path).exists()
    file.close()


def test_a_second_writer_is_refused(path: Path) -> None:
    file = AtomicFile(path, append=True)
    with pytest.raises(BlockingIOError):
        AtomicFile(path, append=False)
    file.close()
    assert path.read_bytes() == OLD


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.integers(0, 2 * PAGE), st.sampled_from("wtc")), max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_behaves_like_bytes_in_memory(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, str]]
) -> None:
    path, expected = tmp_path_factory.getbasetemp() / "bytes", bytearray()
    with closing(AtomicFile(path, append=False)) as file:
        for number, (place, size, action) in enumerate([*changes, (0, 0, "c")]):
            if action == "w" and size:
                data = random.Random(number).randbytes(size)
                file.seek(place)
                file.write(data)
                expected.extend(bytes(max(0, place - len(expected))))
                expected[place : place + size] = data
            elif action == "t":
                del expected[place:]
                file.truncate(len(expected))
            elif action == "c":
                file.commit()
            file.seek(0)
            assert file.read() == expected
    assert path.read_bytes() == expected
