"""Random networks that have a prepared form, and structures of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

Build = Callable[..., EnergyPotential]

BASE: dict[str, Any] = {
    "heads": ("test",), "channels": 8, "lmax": 2, "conv_multiplicity": 2, "num_layers": 2, "num_heads": 4,
    "head_width": 4, "num_basis": 12, "max_radius": 4.0, "orders": ("first", "first"), "avg_degree": 8.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def build() -> Build:
    """A potential with random weights from changes of a small configuration."""

    def build(dtype: torch.dtype = torch.float64, **changes: Any) -> EnergyPotential:
        torch_state = torch.get_rng_state()
        torch.manual_seed(5)
        model = E2FormerV2(E2FormerV2Config(**(BASE | changes)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim > 1 else 0.2)
        torch.set_rng_state(torch_state)
        energies = {"test": torch.linspace(-1.0, 1.0, 119, dtype=torch.float64)}
        potential = EnergyPotential(
            model, head="test", reference_energies=energies, elements=frozenset({1, 6, 8, 11, 17}),
            force_mode="gradient", neighbor_cap="official",
        )  # fmt: skip
        return potential.to(dtype).eval()

    return build


def molecule(n_atoms: int, seed: int) -> System:
    """Atoms at sensible distances; the last one alone, far away."""
    generator = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:n_atoms]
    positions = 1.6 * grid + generator.uniform(-0.25, 0.25, (n_atoms, 3))
    positions[-1] += 30.0 if n_atoms > 2 else 0.0
    return System.single(positions, generator.choice([1, 6, 8], n_atoms), charge=1, spin=2)


def salt() -> System:
    """Two atoms in a skewed cell smaller than the cutoff: many images of each pair, atoms that see themselves."""
    cell = np.array([[0.0, 2.8, 2.8], [2.8, 0.0, 2.9], [2.7, 2.8, 0.0]])
    return System.single([[0.1, 0.0, 0.0], [2.9, 2.7, 2.8]], [11, 17], cell=cell, pbc=True)


def slab() -> System:
    """Periodic in two directions."""
    generator = np.random.default_rng(3)
    return System.single(
        generator.uniform(0.0, 5.0, (9, 3)) + np.arange(9)[:, None] * 1.3, [1, 6, 8] * 3,
        cell=np.diag([5.0, 6.0, 40.0]), pbc=[True, True, False],
    )  # fmt: skip


SYSTEMS = {
    "one atom": lambda: molecule(1, 0),
    "two atoms": lambda: molecule(2, 1),
    "odd molecule": lambda: molecule(23, 2),
    "salt": salt,
    "slab": slab,
    "batch": lambda: System.stack([molecule(7, 4), salt(), molecule(1, 5), slab()]),
}


@pytest.fixture
def cluster() -> System:
    """An odd number of atoms, one of them alone."""
    return molecule(23, 2)


@pytest.fixture(params=list(SYSTEMS))
def system(request: pytest.FixtureRequest) -> System:
    """One structure or several."""
    return SYSTEMS[request.param]()
