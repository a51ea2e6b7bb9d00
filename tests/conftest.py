"""Fixtures for all tests: the shared folder, small models with random weights, small structures."""

from __future__ import annotations

import os

# Small matrices, possibly several workers: one thread each. Must be set before numpy and torch are imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT

from e2former_calc.checkpoint import load_potential
from e2former_calc.potentials.potential import EnergyPotential

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(__file__).resolve().parent / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the shared folder where it is absent."""
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"the folder {SHARED.name} is not beside the project")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with official fixtures and data; only for tests marked `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """Official E2Former-V2 checkpoint with random weights, its YAML beside it."""
    return DATA / "tiny_32x2L" / "checkpoint.pt"


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> EnergyPotential:
    """Random-weight potential in float64."""
    return load_potential(tiny_checkpoint, dtype="float64")


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded random numbers that leave the global state alone."""
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def labelled_water() -> list[Atoms]:
    """Distorted water molecules with energies and forces of EMT."""
    images = []
    for seed in range(24):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        images.append(atoms)
    return images
