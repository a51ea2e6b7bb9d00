"""Mutated trajectories are found at the frame where they were mutated."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.stability import RdfCriterion, bond_reference, bond_stability, rdf_stability
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

CRITERION = RdfCriterion(
    pairs=(("*", "*"),), window_frames=10, threshold_A=1.0, settings=RdfSettings(r_max_A=3.8, n_bins=19)
)


@pytest.fixture
def liquid(rng: np.random.Generator) -> Trajectory:
    """Atoms that tremble about a cubic lattice, 60 frames 100 fs apart."""
    sites = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 2.5
    positions = sites + 0.15 * rng.normal(size=(60, 64, 3))
    return Trajectory(positions, np.full(64, 18), cell=10.0 * np.eye(3), times_fs=100.0 * np.arange(60))


def stretched(trajectory: Trajectory, frame: int, length_A: float = 1.0) -> Trajectory:
    """The O-H bond is longer from a frame on."""
    positions = trajectory.positions.copy()
    bond = positions[frame:, 3] - positions[frame:, 2]
    positions[frame:, 3] += length_A * bond / np.linalg.norm(bond, axis=-1, keepdims=True)
    return replace(trajectory, positions=positions)


def with_nan(trajectory: Trajectory, frame: int) -> Trajectory:
    positions = trajectory.positions.copy()
    positions[frame:] = np.nan
    return replace(trajectory, positions=positions)


def melted(liquid: Trajectory, frame: int) -> Trajectory:
    rng = np.random.default_rng(3)
    positions = liquid.positions.copy()
    positions[frame:] = 10.0 * rng.random(positions[frame:].shape)
    return replace(liquid, positions=positions)


@pytest.mark.parametrize("frame", [0, 1, 17, 39])
def test_stretched_bond_is_found_at_its_frame(ethanol: Trajectory, frame: int) -> None:
    result = bond_stability(stretched(ethanol, frame), ethanol)
    assert result.verdict.frame == frame
    assert result.verdict.stable_ps == pytest.approx(max(0, frame - 1) * 0.01)
    assert result.verdict.usable_frames == frame
    assert "bond 2-3 deviates" in str(result.verdict.reason)


@pytest.mark.parametrize("frame", [1, 17, 38])
def test_published_count_includes_the_broken_frame(ethanol: Trajectory, frame: int) -> None:
    verdict = bond_stability(stretched(ethanol, frame), ethanol, compat="mdsim").verdict
    assert verdict.usable_frames == frame + 1
    assert verdict.stable_frames == frame


def test_published_count_never_looks_at_the_last_frame(ethanol: Trajectory) -> None:
    assert bond_stability(stretched(ethanol, 39), ethanol, compat="mdsim").verdict.survived
    assert not bond_stability(stretched(ethanol, 39), ethanol).verdict.survived


@pytest.mark.parametrize("compat", [None, "mdsim"])
def test_stable_run_lasts_to_its_end(ethanol: Trajectory, compat: str | None) -> None:
    verdict = bond_stability(ethanol, ethanol, compat=compat).verdict
    assert verdict.survived
    assert verdict.stable_ps == pytest.approx(0.39)


@pytest.mark.parametrize("compat", [None, "mdsim"])
def test_missing_frames_are_a_failure(ethanol: Trajectory, compat: str | None) -> None:
    verdict = bond_stability(ethanol, ethanol, expected_frames=100, compat=compat).verdict
    assert not verdict.survived
    assert verdict.frame == 40
    assert verdict.stable_ps == pytest.approx(0.39)
    assert verdict.reason == "the trajectory ends after 40 of 100 frames"


@pytest.mark.parametrize("compat", [None, "mdsim"])
def test_frame_that_is_not_finite_is_broken(ethanol: Trajectory, compat: str | None) -> None:
    verdict = bond_stability(with_nan(ethanol, 21), ethanol, compat=compat).verdict
    assert (verdict.frame, verdict.reason) == (21, "positions are not finite")


def test_compressed_bond_is_broken_too(ethanol: Trajectory) -> None:
    assert bond_stability(stretched(ethanol, 9, -0.7), ethanol).verdict.frame == 9


def test_stretched_start_keeps_its_bond(ethanol: Trajectory) -> None:
    start = stretched(ethanol, 0)
    assert len(bond_stability(start, ethanol).reference.bonds) == 8
    assert len(bond_stability(start, ethanol, compat="mdsim").reference.bonds) == 7


def test_threshold_is_the_readers_choice(ethanol: Trajectory) -> None:
    run = stretched(ethanol, 12, 0.35)
    assert bond_stability(run, ethanol, threshold_A=0.25).verdict.frame == 12
    assert bond_stability(run, ethanol).verdict.survived


def test_bonds_across_the_cell_boundary(ethanol: Trajectory) -> None:
    cell = 7.0 * np.eye(3)
    wrapped = replace(ethanol, positions=ethanol.positions % 7.0, cell=cell, pbc=np.ones(3, dtype=bool))
    result = bond_stability(wrapped, ethanol)
    assert result.verdict.survived
    assert result.worst_deviation_A.max() < 0.2


def test_one_reference_serves_many_replicas(ethanol: Trajectory) -> None:
    known = bond_reference(ethanol)
    assert bond_stability(stretched(ethanol, 8), known).verdict.frame == 8


def test_other_molecule_is_refused(ethanol: Trajectory) -> None:
    other = Trajectory(ethanol.positions[:, ::-1], ethanol.numbers[::-1], times_fs=ethanol.times_fs)
    with pytest.raises(TrajectoryError, match="another order"):
        bond_stability(other, ethanol)


def test_repeated_frames_are_refused(ethanol: Trajectory) -> None:
    times = np.asarray(ethanol.times_fs).copy()
    times[20:] -= 50.0
    with pytest.raises(TrajectoryError, match="frames 19 and 20"):
        bond_stability(replace(ethanol, times_fs=times), ethanol)


def test_unknown_mode_is_refused(ethanol: Trajectory) -> None:
    with pytest.raises(ValueError, match="'mdsim' or None, got 'lammps'"):
        bond_stability(ethanol, ethanol, compat="lammps")


def test_atoms_without_bonds_need_another_criterion(liquid: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="no bond in this system"):
        bond_reference(replace(liquid, positions=liquid.positions * 3, cell=30.0 * np.eye(3)))


def test_lattice_that_stays_is_stable(liquid: Trajectory) -> None:
    result = rdf_stability(liquid, liquid, CRITERION)
    assert result.verdict.survived
    assert len(result.starts) == 51


def test_melting_is_found_within_a_window(liquid: Trajectory) -> None:
    result = rdf_stability(melted(liquid, 33), liquid, CRITERION)
    assert result.verdict.frame is not None
    assert 33 - CRITERION.window_frames < result.verdict.frame <= 33
    assert "g(r) of *-* deviates" in str(result.verdict.reason)


def test_published_windows_start_one_frame_later(liquid: Trajectory) -> None:
    clean = rdf_stability(melted(liquid, 33), liquid, CRITERION)
    published = rdf_stability(melted(liquid, 33), liquid, CRITERION, compat="mdsim")
    np.testing.assert_allclose(published.errors_A, clean.errors_A[1:-1])
    assert published.verdict.usable_frames == clean.verdict.frame


def test_liquid_that_explodes_is_stable_until_then(liquid: Trajectory) -> None:
    verdict = rdf_stability(with_nan(liquid, 42), liquid, CRITERION).verdict
    assert (verdict.frame, verdict.reason) == (42, "positions are not finite")


def test_missing_frames_of_a_liquid_are_a_failure(liquid: Trajectory) -> None:
    assert rdf_stability(liquid, liquid, CRITERION, expected_frames=500).verdict.frame == 60


def test_windows_need_frames(liquid: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="5 frames are too few for windows of 10"):
        rdf_stability(liquid.read(0, 5), liquid, CRITERION)


def test_window_errors_do_not_depend_on_batches(liquid: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rdf_stability(liquid, liquid, CRITERION).errors_A
    monkeypatch.setattr("e2former_calc.analysis.stability.WINDOW_CHUNK", 7)
    np.testing.assert_allclose(rdf_stability(liquid, liquid, CRITERION).errors_A, whole, atol=1e-12)


def test_memory_does_not_grow_with_the_vectors_of_all_bonds(ethanol: Trajectory) -> None:
    many = Trajectory(np.tile(ethanol.positions, (2500, 1, 1)), ethanol.numbers, times_fs=np.arange(100_000.0))
    known = bond_reference(ethanol)
    tracemalloc.start()
    try:
        bond_stability(many, known)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    vectors = 24 * len(many) * len(known.bonds)
    assert peak < 0.5 * vectors
