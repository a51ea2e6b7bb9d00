"""Laws of h(r)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from e2former_calc.analysis.distances import distance_distribution
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError


def test_trajectory_against_itself_is_zero(ethanol: Trajectory) -> None:
    curve = distance_distribution(ethanol).total
    assert curve.mae(curve) == 0.0


def test_normalised_over_the_range(ethanol: Trajectory) -> None:
    curve = distance_distribution(ethanol, r_max_A=2.5, n_bins=100).total
    assert curve.values().sum() * np.diff(curve.edges)[0] == pytest.approx(1.0)


def test_agrees_with_a_histogram_of_all_distances(ethanol: Trajectory) -> None:
    i, j = np.triu_indices(9, 1)
    distances = np.linalg.norm(ethanol.positions[:, i] - ethanol.positions[:, j], axis=-1).ravel()
    curve = distance_distribution(ethanol, r_max_A=4.0, n_bins=80).total
    np.testing.assert_allclose(curve.values(), np.histogram(distances, curve.edges, density=True)[0], atol=1e-12)


def test_partial_curves_add_up_to_the_total(ethanol: Trajectory) -> None:
    result = distance_distribution(ethanol)
    assert set(result.partial) == {"C-C", "C-H", "C-O", "H-H", "H-O"}
    total = sum(curve.numerators for curve in result.partial.values())
    np.testing.assert_allclose(total, result.total.numerators)


def test_invariant_under_rotation_and_translation(ethanol: Trajectory) -> None:
    turned = ethanol.positions @ Rotation.random(rng=np.random.default_rng(1)).as_matrix() + 5.0
    curve = distance_distribution(ethanol, n_bins=50).total
    assert curve.mae(distance_distribution(replace(ethanol, positions=turned), n_bins=50).total) < 2e-3


def test_invariant_under_permutation(ethanol: Trajectory, rng: np.random.Generator) -> None:
    order = rng.permutation(9)
    shuffled = Trajectory(ethanol.positions[:, order], ethanol.numbers[order])
    first, second = distance_distribution(ethanol), distance_distribution(shuffled)
    for label, curve in first.partial.items():
        np.testing.assert_allclose(curve.values(), second.partial[label].values(), atol=1e-9)


def test_streaming_changes_nothing(ethanol: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distance_distribution(ethanol).total.values()
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 9 * 3)
    np.testing.assert_array_equal(distance_distribution(ethanol).total.values(), whole)


def test_stretched_molecule_differs(ethanol: Trajectory) -> None:
    stretched = replace(ethanol, positions=1.1 * ethanol.positions)
    assert distance_distribution(stretched).total.mae(distance_distribution(ethanol).total) > 0.5


def test_later_frames_are_left_out(ethanol: Trajectory) -> None:
    positions = ethanol.positions.copy()
    positions[20:] = np.nan
    part = distance_distribution(replace(ethanol, positions=positions), stop=20).total
    np.testing.assert_allclose(part.values(), distance_distribution(ethanol.read(0, 20)).total.values())


def test_frame_that_is_not_finite_is_refused(ethanol: Trajectory) -> None:
    positions = ethanol.positions.copy()
    positions[23, 0] = np.nan
    with pytest.raises(TrajectoryError, match="frame 23 has positions"):
        distance_distribution(replace(ethanol, positions=positions))


def test_one_atom_has_no_distances() -> None:
    with pytest.raises(ValueError, match="needs two atoms"):
        distance_distribution(Trajectory(np.zeros((3, 1, 3)), np.array([1])))
