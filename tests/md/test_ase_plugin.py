"""ASE finds the H5MD format through the installed entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io.formats import filetype, ioformats

from e2former_calc.md import ase_plugin, h5md

seen_by_ase = pytest.mark.skipif(
    hasattr(h5md.write_h5md, "__wrapped__"), reason="ASE looks for `append` in the code object; a type checker hides it"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5md"


@pytest.fixture
def images() -> list[Atoms]:
    water = molecule("H2O", cell=[8.0, 9.0, 10.0], pbc=True)
    return [Atoms(water, positions=water.positions + i, info={"step": i}) for i in range(4)]


@seen_by_ase
def test_the_format_is_registered_for_reading_and_writing() -> None:
    h5md_format = ioformats["h5md"]
    assert (h5md_format.can_read, h5md_format.can_write, h5md_format.can_append) == (True, True, True)
    assert h5md_format.extensions == ["h5md"]


def test_all_frames_are_written_and_read(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images)
    assert ase.io.read(path, index=":") == images


@pytest.mark.parametrize("index", [0, 2, -1, -4])
def test_one_frame_is_read_by_number(path: Path, images: list[Atoms], index: int) -> None:
    ase.io.write(path, images)
    assert ase.io.read(path, index=index) == images[index]


@pytest.mark.parametrize("index", ["1:", "::2", "::-1", "-3:-1"])
def test_slices_are_read(path: Path, images: list[Atoms], index: str) -> None:
    ase.io.write(path, images)
    chosen = slice(*(int(part) if part else None for part in index.split(":")))
    assert ase.io.read(path, index=index) == images[chosen]
    assert ase.io.read(f"{path}@{index}") == images[chosen]


def test_the_last_frame_is_the_default(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images)
    assert ase.io.read(path) == images[-1]


def test_frames_are_read_one_after_the_other(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images)
    frames = ase.io.iread(path)
    assert next(frames) == images[0]
    frames.close()
    path.unlink()


def test_a_frame_that_is_not_there_is_named(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images)
    with pytest.raises(IndexError, match="holds 4 complete frames: there is no frame 4"):
        ase.io.read(path, index=4)


@seen_by_ase
def test_frames_are_appended(path: Path, images: list[Atoms]) -> None:
    for atoms in images:
        ase.io.write(path, atoms, append=True)
    assert ase.io.read(path, index=":") == images


def test_options_are_passed_on(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images, precision="float32")
    difference = ase.io.read(path).positions - images[-1].positions
    assert 0 < np.abs(difference).max() < 1e-6


def test_the_format_is_recognised_by_its_content(path: Path, images: list[Atoms]) -> None:
    ase.io.write(path, images)
    renamed = path.rename(path.with_suffix(".trajectory"))
    assert filetype(str(renamed)) == "h5md"


def test_frames_of_other_atoms_are_refused(path: Path, images: list[Atoms]) -> None:
    with pytest.raises(h5md.H5MDError, match="frame 4 has 2 atoms instead of 3"):
        ase.io.write(path, [*images, molecule("H2")])


@pytest.mark.parametrize("name", ["read_h5md", "write_h5md"])
def test_the_functions_are_found_in_the_plugin_module(name: str) -> None:
    assert getattr(ase_plugin, name) is getattr(h5md, name)


def test_other_names_are_not_found_in_the_plugin_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'read_xyz'"):
        ase_plugin.read_xyz  # noqa: B018


def test_importing_ase_does_not_import_h5py() -> None:
    code = "import sys, ase.io; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
