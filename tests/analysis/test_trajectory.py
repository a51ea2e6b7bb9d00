"""The container refuses what observables could not use, and names the frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule

from e2former_calc.analysis.trajectory import (
    EveryNth,
    Trajectory,
    TrajectoryError,
    at_most,
    check_same_atoms,
    iterate_chunks,
    read_atoms,
)


def test_parts_name_frames_of_the_whole(ethanol: Trajectory) -> None:
    positions = ethanol.positions.copy()
    positions[17, 3, 1] = np.nan
    broken = replace(ethanol, positions=positions)
    with pytest.raises(TrajectoryError, match="frame 17 has positions that are not finite"):
        broken.read(10, 30).check_finite()


@pytest.mark.parametrize("name", ["velocities", "energies"])
def test_infinite_labels_are_refused(ethanol: Trajectory, name: str) -> None:
    values = getattr(ethanol, name).copy()
    values[5] = np.inf
    with pytest.raises(TrajectoryError, match=f"frame 5 has {name}"):
        replace(ethanol, **{name: values}).check_finite()


def test_spacing_is_that_of_the_times(ethanol: Trajectory) -> None:
    assert ethanol.spacing_fs() == pytest.approx(10.0)


@pytest.mark.parametrize(("frame", "change"), [(12, 5.0), (12, -10.0)], ids=["gap", "repeated frame"])
def test_unequal_spacing_is_refused(ethanol: Trajectory, frame: int, change: float) -> None:
    times = np.asarray(ethanol.times_fs).copy()
    times[frame:] += change
    with pytest.raises(TrajectoryError, match="frames 11 and 12 are"):
        replace(ethanol, times_fs=times).spacing_fs()


def test_times_rounded_to_single_precision_count_as_equal(ethanol: Trajectory) -> None:
    times = (1e5 + np.arange(40) * 0.1).astype(np.float32)
    assert replace(ethanol, times_fs=times).spacing_fs() == pytest.approx(0.1, rel=1e-2)


def test_continuous_parts_are_cut_at_gaps(ethanol: Trajectory) -> None:
    times = np.asarray(ethanol.times_fs).copy()
    times[15:] += 100.0
    parts = replace(ethanol, times_fs=times).continuous_parts()
    assert [(part.first_frame, len(part)) for part in parts] == [(0, 15), (15, 25)]


def test_missing_arrays_are_named(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="holds no forces"):
        ethanol.require("positions", "forces")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((4, 3, 3))}, "9 atomic numbers"),
        ({"positions": np.zeros((0, 9, 3))}, "not empty"),
        ({"times_fs": np.zeros(3)}, "times_fs of shape"),
        ({"pbc": np.array([True, False, False])}, "has no cell"),
        ({"cell": np.zeros((2, 3, 3))}, "cell of shape"),
    ],
)
def test_shapes_that_disagree_are_refused(ethanol: Trajectory, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        replace(ethanol, **change)


def test_frames_that_do_not_exist_are_refused(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="no frames 30 to 44"):
        ethanol.read(30, 45)


def test_chunks_cover_every_frame_once(ethanol: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 9 * 7)
    chunks = list(iterate_chunks(ethanol, start=3, stop=38))
    assert max(map(len, chunks)) == 7
    np.testing.assert_array_equal(np.concatenate([chunk.positions for chunk in chunks]), ethanol.positions[3:38])


def test_other_number_of_atoms_is_refused() -> None:
    with pytest.raises(TrajectoryError, match="the rollout has 2 atoms, the reference has 3"):
        check_same_atoms(np.array([8, 1, 1]), np.array([8, 1]))


def test_other_order_is_called_that() -> None:
    with pytest.raises(TrajectoryError, match=r"another order than the reference \(atom 0: H instead of O\)"):
        check_same_atoms(np.array([8, 1, 1]), np.array([1, 8, 1]))


def test_other_elements_are_called_that() -> None:
    with pytest.raises(TrajectoryError, match=r"other elements .* \(atom 1: F instead of H\)"):
        check_same_atoms(np.array([8, 1, 1]), np.array([8, 9, 1]))


def test_atoms_survive_a_round_trip() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_velocities(np.full((4, 3), 0.01 / units.fs))
    back = Trajectory.from_atoms([atoms, atoms]).to_atoms(1)
    np.testing.assert_allclose(back.get_velocities(), atoms.get_velocities())
    np.testing.assert_allclose(back.cell.array, atoms.cell.array)


def test_changing_cells_are_kept_frame_by_frame() -> None:
    small, large = bulk("Cu", cubic=True), bulk("Cu", a=4.0, cubic=True)
    trajectory = Trajectory.from_atoms([small, large])
    np.testing.assert_allclose(trajectory.volumes_A3, [small.get_volume(), large.get_volume()])


def test_frames_of_different_molecules_are_no_trajectory() -> None:
    with pytest.raises(TrajectoryError, match="frame 1 has 3 atoms"):
        Trajectory.from_atoms([molecule("CH4"), molecule("H2O")])


def test_volume_of_a_molecule_is_refused(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="has no cell"):
        _ = ethanol.volumes_A3


def test_every_second_frame(ethanol: Trajectory) -> None:
    assert ethanol.every(2).spacing_fs() == pytest.approx(20.0)


@pytest.mark.parametrize(("limit", "frames"), [(100, 40), (40, 40), (39, 20), (13, 10), (1, 1)])
def test_frames_are_thinned_to_a_limit(ethanol: Trajectory, limit: int, frames: int) -> None:
    thinned = at_most(ethanol, limit)
    assert len(thinned) == frames
    assert np.array_equal(thinned.numbers, ethanol.numbers)


def test_thinned_frames_are_those_of_the_whole(ethanol: Trajectory) -> None:
    part = EveryNth(ethanol, 7).read(1, 4)
    np.testing.assert_array_equal(part.positions, ethanol.positions[[7, 14, 21]])
    np.testing.assert_array_equal(part.times_fs, [70.0, 140.0, 210.0])
    with pytest.raises(TrajectoryError, match="no frames 2 to 6 in 6 frames"):
        EveryNth(ethanol, 7).read(2, 7)


@pytest.mark.parametrize("make", [lambda t: EveryNth(t, 0), lambda t: at_most(t, 0)])
def test_thinning_by_nothing_is_refused(ethanol: Trajectory, make: Callable[[Trajectory], object]) -> None:
    with pytest.raises(TrajectoryError, match="must be at least 1, got 0"):
        make(ethanol)


def test_some_atoms_are_read_in_parts(
    gas: Trajectory, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 30 * 7)
    swelling = replace(gas, cell=gas.cells() * np.linspace(1.0, 1.1, 300)[:, None, None])
    part = read_atoms(swelling, np.array([3, 1]), stop=50)
    np.testing.assert_array_equal(part.positions, gas.positions[:50, [3, 1]])
    np.testing.assert_array_equal(part.cells(), swelling.cells()[:50])
