from __future__ import annotations

import errno
from pathlib import Path

import ase.io
import pytest
from ase.build import molecule

from e2former_calc.cli.frames import _hdf5_errors, trajectory_writer


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".xyz", ".h5md"])
def test_frames_are_on_disk_while_the_run_goes_on(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with trajectory_writer(path) as write:
        for step in range(3):
            write(step, molecule("H2O"))
        size = path.stat().st_size
    assert size >= 0.9 * path.stat().st_size


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5md"])
def test_frames_stay_if_the_run_fails(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"

    def failing_run() -> None:
        with trajectory_writer(path) as write:
            write(0, molecule("H2O"))
            write(10, molecule("H2O"))
            raise ValueError("exploded")

    with pytest.raises(ValueError, match="exploded"):
        failing_run()
    assert len(ase.io.read(path, ":")) == 2


def test_step_in_info_of_the_start_does_not_disturb(tmp_path: Path) -> None:
    water = molecule("H2O")
    water.info["step"] = 5
    with trajectory_writer(tmp_path / "a.h5md") as write:
        write(0, water)
        write(1, water)
    assert len(ase.io.read(tmp_path / "a.h5md", ":")) == 2


def test_failed_write_of_hdf5_is_an_ordinary_error() -> None:
    text = "Can't flush (file write failed: filename = 'x', errno = 28, error message = 'No space left on device')"
    with pytest.raises(OSError, match="No space left on device") as caught, _hdf5_errors(Path("a.h5md")):
        raise RuntimeError(text)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a.h5md")


def test_other_error_beside_hdf5_passes() -> None:
    with pytest.raises(RuntimeError, match=r"^bug$"), _hdf5_errors(Path("a.h5md")):
        raise RuntimeError("bug")
