"""Small networks of the original E2Former with random weights, and structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

Build = Callable[..., EnergyPotential]


@pytest.fixture(scope="session")
def config() -> E2FormerV1Config:
    """A small network with every part of the default one."""
    return E2FormerV1Config(
        variant="scitix",
        channels=8,
        lmax=2,
        conv_multiplicity=2,
        num_layers=2,
        num_heads=2,
        head_width=4,
        num_basis=8,
        max_radius=4.0,
        pbc_max_radius=4.0,
        max_neighbors=20,
        orders=("first", "first"),
        encoder_channels=8,
        encoder_hidden=12,
        encoder_heads=2,
        encoder_layers=2,
        energy_scale=30.0,
    )


@pytest.fixture(scope="session")
def build(config: E2FormerV1Config) -> Build:
    """Potential in float64 with random weights; keyword arguments change the configuration."""

    def build(cap: str = "none", forces: str = "gradient", **changes: Any) -> EnergyPotential:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = E2FormerV1(replace(config, **changes)).double().eval()
            for parameter in model.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
        return EnergyPotential(
            model.requires_grad_(False),
            head="energy",
            reference_energies={"energy": torch.zeros(119, dtype=torch.float64)},
            elements=frozenset(range(1, 119)),
            force_mode=forces,  # type: ignore[arg-type]
            neighbor_cap=cap,  # type: ignore[arg-type]
        )

    return build


@pytest.fixture(scope="session")
def chain() -> System:
    """Sixty atoms along a bent line, long enough for several clusters."""
    t = torch.arange(60, dtype=torch.float64)
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    positions = torch.stack([1.1 * t, 4.0 * torch.cos(0.11 * t), 0.6 * torch.sin(0.7 * t)], dim=1) + 0.1 * noise
    return System.single(positions.numpy(), [6, 1, 8, 7] * 15)
