"""Fixtures for the tests of the command line: a folder to work in, a small model file, structures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from click.testing import CliRunner, Result

from e2former_calc.checkpoint import load_model, write_native
from e2former_calc.cli import main

Run = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in our format, with a licence."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    content = load_model(tiny_checkpoint).content()
    write_native(path, replace(content, card=replace(content.card, name="tiny", licence="CC0-1.0")))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Call `e2former` with arguments in the empty folder."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


def saved(path: Path, atoms: Atoms | list[Atoms]) -> Path:
    """Write structures with charge 0 and multiplicity 1."""
    for image in atoms if isinstance(atoms, list) else [atoms]:
        image.info.update(charge=0, spin=1)
    ase.io.write(path, atoms)
    return path


def labelled(path: Path) -> Path:
    """The structures of a file with energies and forces of EMT, in place."""
    images = ase.io.read(path, ":")
    for atoms in images:
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write(path, images)
    return path


@pytest.fixture
def water(folder: Path) -> Path:
    """A distorted water molecule."""
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=1)
    return saved(folder / "water.extxyz", atoms)


@pytest.fixture
def salt(folder: Path) -> Path:
    """A distorted periodic structure."""
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.1, seed=1)
    return saved(folder / "salt.extxyz", atoms)


@pytest.fixture
def frames(folder: Path) -> Path:
    """Four structures in one file, of two sizes, the last one periodic."""
    images = [molecule("H2O"), molecule("CH4"), molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    return saved(folder / "frames.extxyz", images)
