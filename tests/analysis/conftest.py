"""Small trajectories for tests of the analysis."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.analysis.trajectory import Trajectory


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(7)


@pytest.fixture
def ethanol(rng: np.random.Generator) -> Trajectory:
    """Ethanol whose atoms tremble independently, 40 frames 10 fs apart, with thermal velocities."""
    atoms = molecule("CH3CH2OH")
    shape = (40, len(atoms), 3)
    return Trajectory(
        positions=atoms.positions + 0.02 * rng.normal(size=shape),
        numbers=atoms.numbers,
        times_fs=10.0 * np.arange(40),
        velocities=0.01 * rng.normal(size=shape),
        energies=np.zeros(40),
        source="ethanol",
    )


@pytest.fixture
def gas(rng: np.random.Generator) -> Trajectory:
    """Ideal gas of two elements in a skewed cell."""
    cell = np.array([[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.0, 1.5, 10.0]])
    positions = rng.random((300, 30, 3)) @ cell
    return Trajectory(positions=positions, numbers=np.repeat([8, 1], [10, 20]), cell=cell)
