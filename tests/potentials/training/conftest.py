"""A small network and a few structures whose labels belong together."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset

CONFIG = E2FormerV2Config(
    heads=("default",), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=4, head_width=2, num_basis=8,
    max_radius=4.0, orders=("first",), normalization="softplus", avg_degree=3.0, alpha_dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="session")
def dataset(labelled_water: list[Atoms]) -> Dataset:
    """Twelve distorted water molecules labelled by EMT."""
    images = labelled_water[:12]
    return Dataset(
        systems=tuple(System.single(atoms.positions, atoms.numbers) for atoms in images),
        energy=torch.tensor([atoms.get_potential_energy() for atoms in images], dtype=torch.float64),
        forces=tuple(torch.from_numpy(atoms.get_forces()) for atoms in images),
        stress=(None,) * len(images),
        source="water, EMT",
    )


@pytest.fixture
def potential() -> EnergyPotential:
    """Random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = E2FormerV2(CONFIG)
    return EnergyPotential(
        model, head="default", reference_energies={"default": torch.zeros(119)}, elements=frozenset({1, 8}),
        force_mode="gradient",
    )  # fmt: skip
