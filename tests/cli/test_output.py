from __future__ import annotations

import os
from pathlib import Path

import pytest

from e2former_calc.cli.output import check_outputs, replacing, with_suffix


def test_dots_in_a_prefix_stay() -> None:
    assert with_suffix(Path("a/run.300K"), ".extxyz") == Path("a/run.300K.extxyz")


def test_file_appears_complete(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("all")
        assert not (tmp_path / "a.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_failed_write_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match="full") as caught, replacing(path):
        raise OSError(28, "full")
    assert caught.value.filename == str(path)


def test_message_of_a_failed_write_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^no number$"), replacing(tmp_path / "a.txt"):
        raise OSError("no number")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="is not writable"):
        check_outputs([tmp_path / "a"], overwrite=True)


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="is not writable"):
        check_outputs([tmp_path / "a"], overwrite=True)


def test_all_existing_files_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths[:2]:
        path.touch()
    with pytest.raises(FileExistsError, match=r"a, .*b would be replaced"):
        check_outputs(paths, overwrite=False)
    check_outputs(paths, overwrite=True)


def test_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_outputs([tmp_path], overwrite=True)


def test_link_to_an_input_is_an_input(tmp_path: Path) -> None:
    source, link = tmp_path / "a", tmp_path / "b"
    source.touch()
    link.symlink_to(source)
    with pytest.raises(ValueError, match="is an input"):
        check_outputs([link], inputs=[source], overwrite=True)
