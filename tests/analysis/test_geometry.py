"""Size and shape, and what they must not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from e2former_calc.analysis.geometry import chain_ends, end_to_end_distances, radii_of_gyration, rmsd
from e2former_calc.analysis.topology import bonds_of_frame
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError


def turned(trajectory: Trajectory) -> Trajectory:
    """Another rotation and translation in every frame."""
    rotations = Rotation.random(len(trajectory), rng=np.random.default_rng(2)).as_matrix()
    shifts = np.random.default_rng(3).normal(size=(len(trajectory), 1, 3))
    return replace(trajectory, positions=trajectory.positions @ rotations + 9.0 * shifts)


def test_radius_of_gyration_of_a_dumbbell() -> None:
    run = Trajectory(np.array([[[0.0, 0, 0], [3.0, 0, 0]]]), np.array([1, 1]), masses=np.array([1.0, 2.0]))
    np.testing.assert_allclose(radii_of_gyration(run), np.sqrt((4 + 2) / 3))


def test_shape_is_invariant_under_rotation(ethanol: Trajectory) -> None:
    np.testing.assert_allclose(radii_of_gyration(turned(ethanol)), radii_of_gyration(ethanol))
    np.testing.assert_allclose(end_to_end_distances(turned(ethanol), 1, 2), end_to_end_distances(ethanol, 1, 2))


def test_rmsd_is_invariant_under_rotation(ethanol: Trajectory) -> None:
    target = ethanol.positions.mean(axis=0)
    np.testing.assert_allclose(rmsd(turned(ethanol), target), rmsd(ethanol, target), atol=1e-7)


def test_rmsd_is_that_of_scipys_alignment(ethanol: Trajectory) -> None:
    target = ethanol.positions[0] - ethanol.positions[0].mean(axis=0)
    frame = turned(ethanol).positions[7]
    _, expected = Rotation.align_vectors(target, frame - frame.mean(axis=0))
    assert rmsd(turned(ethanol), ethanol.positions[0])[7] == pytest.approx(expected / 3.0, rel=1e-6)


def test_mirror_image_is_not_aligned(ethanol: Trajectory, rng: np.random.Generator) -> None:
    shape = rng.normal(size=(9, 3))
    mirrored = replace(ethanol, positions=np.broadcast_to(shape * [1, 1, -1], ethanol.positions.shape))
    assert rmsd(mirrored, shape).min() > 0.3


def test_rmsd_of_some_atoms(ethanol: Trajectory) -> None:
    positions = ethanol.positions.copy()
    positions[:, 8] += 3.0
    moved = replace(ethanol, positions=positions)
    assert rmsd(moved, ethanol.positions[0], atoms=np.arange(8)).max() < 0.1 < rmsd(moved, ethanol.positions[0]).min()


def test_ends_of_ethanol_are_oxygen_and_methyl(ethanol: Trajectory) -> None:
    assert sorted(ethanol.numbers[list(chain_ends(ethanol.numbers, bonds_of_frame(ethanol)))].tolist()) == [6, 8]


def test_other_number_of_atoms_is_refused(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="has 4 atoms, the trajectory 9"):
        rmsd(ethanol, np.zeros((4, 3)))


def test_atoms_that_do_not_exist_are_refused(ethanol: Trajectory) -> None:
    with pytest.raises(ValueError, match="no atoms 0 and 9"):
        end_to_end_distances(ethanol, 0, 9)
