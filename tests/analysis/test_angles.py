"""Angle distributions of known structures."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule

from e2former_calc.analysis.angles import Triple, angle_distribution
from e2former_calc.analysis.trajectory import Trajectory


def test_angle_of_water() -> None:
    atoms = molecule("H2O")
    curve = angle_distribution(Trajectory.from_atoms([atoms]), Triple.neighbours("H", "O", "H", 1.2))
    assert curve.centers[np.argmax(curve.values())] == pytest.approx(atoms.get_angle(1, 0, 2), abs=0.5)


def test_normalised(ethanol: Trajectory) -> None:
    curve = angle_distribution(ethanol, Triple.neighbours("H", "C", "H", 1.4))
    assert curve.values().sum() == pytest.approx(1.0)


def test_every_angle_counts_once(ethanol: Trajectory) -> None:
    curve = angle_distribution(ethanol, Triple.neighbours("H", "C", "H", 1.4))
    assert curve.denominators.sum() == 40 * (3 + 1)


def test_angles_of_a_lattice_include_periodic_images() -> None:
    crystal = Trajectory.from_atoms([bulk("Cu", a=3.6)])
    curve = angle_distribution(crystal, Triple.neighbours("Cu", "Cu", "Cu", 2.6), n_bins=60)
    found = curve.numerators.sum(axis=0) * 3.0
    shares = {60: 24, 90: 12, 120: 24, 180: 6}
    for angle, expected in shares.items():
        near = np.abs(curve.centers - angle) < 3.1
        assert found[near].sum() == pytest.approx(expected)


def test_hydrogen_bond_is_nearly_straight() -> None:
    dimer = Trajectory(
        np.array([[[0.0, 0, 0], [0.97, 0, 0], [2.9, 0.1, 0], [3.4, 0.9, 0], [-0.3, 0.9, 0], [3.4, -0.8, 0]]]),
        np.array([8, 1, 8, 1, 1, 1]),
    )
    curve = angle_distribution(dimer, Triple.hydrogen_bond())
    assert curve.denominators.sum() == 1
    assert curve.centers[np.argmax(curve.values())] > 170


def test_empty_leg_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leg from 3\.0 to 2\.0 Å is empty"):
        Triple("O", ("H", 3.0, 2.0), ("H", 0.0, 1.0))


def test_a_slab_and_a_crystal_with_a_gap_have_the_same_angles(rng: np.random.Generator) -> None:
    cell = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [0.0, 0.0, 30.0]])
    positions = rng.random((4, 20, 3)) @ (cell * [1.0, 1.0, 0.3])
    slab, crystal = (
        Trajectory(positions, np.repeat([8, 1], 10), cell=cell, pbc=np.array([True, True, third]))
        for third in (False, True)
    )
    triple = Triple.neighbours("O", "H", "O", 4.0)
    first, second = (angle_distribution(source, triple, n_bins=20, n_blocks=2) for source in (slab, crystal))
    np.testing.assert_allclose(first.values(), second.values(), atol=1e-12)
