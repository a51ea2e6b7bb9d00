"""Fixtures for E2Former-V2: the official file layout, small networks with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.system import System

LAYOUT = Path(__file__).with_name("official_layout.py")
Build = Callable[..., E2FormerV2]


@pytest.fixture(scope="session")
def official() -> ModuleType:
    """The module official_layout.py of this folder."""
    spec = spec_from_file_location("official_layout", LAYOUT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def config() -> E2FormerV2Config:
    """A small network with every part of the default one."""
    return E2FormerV2Config(
        heads=("test",),
        channels=8,
        lmax=2,
        conv_multiplicity=3,
        num_layers=2,
        num_heads=4,
        head_width=3,
        num_basis=8,
        max_radius=4.0,
        orders=("first", "first"),
        max_neighbors=20,
    )


@pytest.fixture(scope="session")
def build(config: E2FormerV2Config) -> Build:
    """Network in float64 with random weights, norms and biases included; keyword arguments change the configuration."""

    def build(**changes: object) -> E2FormerV2:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = E2FormerV2(replace(config, **changes)).double().eval()  # type: ignore[arg-type]
            for parameter in model.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
        return model.requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def salt() -> System:
    """A rattled crystal with two atoms in the cell."""
    positions = [[0.1, 0.0, 0.2], [2.7, 0.1, -0.1]]
    return System.single(positions, [11, 17], cell=[[0, 2.9, 2.8], [2.8, 0.1, 2.9], [2.7, 2.8, 0]], pbc=True)
