"""Files of every layout become the same trajectory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import units

from e2former_calc.analysis.constants import KCAL_PER_MOL_EV
from e2former_calc.analysis.readers import TrajectoryFile, open_trajectory, read_trajectory
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError, iterate_chunks
from e2former_calc.md.h5md import write_h5md


def write_plain(path: Path, trajectory: Trajectory, **attributes: float) -> None:
    with h5py.File(path, "w") as file:
        file["numbers"], file["positions"] = trajectory.numbers, trajectory.positions
        file["velocities"], file["energy"] = np.asarray(trajectory.velocities) * 1e3, trajectory.energies
        file.attrs.update(attributes)


@pytest.fixture
def h5md(ethanol: Trajectory, tmp_path: Path) -> Path:
    images = [ethanol.to_atoms(frame) for frame in range(len(ethanol))]
    for frame, atoms in enumerate(images):
        atoms.info.update(time_fs=10.0 * frame)
    write_h5md(tmp_path / "run.h5md", images)
    return tmp_path / "run.h5md"


def test_h5md_of_this_package_is_read_without_loss(ethanol: Trajectory, h5md: Path) -> None:
    read = read_trajectory(h5md)
    np.testing.assert_array_equal(read.positions, ethanol.positions)
    np.testing.assert_allclose(read.velocities, ethanol.velocities, rtol=1e-12)
    assert read.spacing_fs() == pytest.approx(10.0)
    assert not read.is_periodic


def test_torn_tail_of_a_killed_run_is_not_read(h5md: Path) -> None:
    with h5py.File(h5md, "r+") as file:
        file["parameters/committed_frames"][()] = 31
    assert len(read_trajectory(h5md)) == 31


def test_h5md_with_an_unknown_unit_is_refused(h5md: Path) -> None:
    with h5py.File(h5md, "r+") as file:
        file["particles/trajectory/position/value"].attrs["unit"] = "furlong"
    with pytest.raises(TrajectoryError, match="'furlong'; known are Angstrom"):
        open_trajectory(h5md)


def test_plain_layout_converts_units(ethanol: Trajectory, tmp_path: Path) -> None:
    write_plain(tmp_path / "gt.h5", ethanol, frame_spacing_fs=10.0)
    read = read_trajectory(tmp_path / "gt.h5")
    np.testing.assert_allclose(read.velocities, ethanol.velocities, rtol=1e-12)
    np.testing.assert_allclose(read.times_fs, ethanol.times_fs)


def test_shuffled_frames_have_no_times(ethanol: Trajectory, tmp_path: Path) -> None:
    write_plain(tmp_path / "gt.h5", ethanol, frame_spacing_fs=10.0)
    with h5py.File(tmp_path / "gt.h5", "r+") as file:
        file.attrs["order"] = "shuffled"
    assert read_trajectory(tmp_path / "gt.h5").times_fs is None


def test_interrupted_recording_is_not_equally_spaced(ethanol: Trajectory, tmp_path: Path) -> None:
    write_plain(tmp_path / "gt.h5", ethanol, frame_spacing_fs=10.0)
    with h5py.File(tmp_path / "gt.h5", "r+") as file:
        file["segment"] = np.repeat([0, 1], 20)
    with pytest.raises(TrajectoryError, match="frames 19 and 20"):
        read_trajectory(tmp_path / "gt.h5").spacing_fs()


def test_files_are_read_in_parts(ethanol: Trajectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plain(tmp_path / "gt.h5", ethanol)
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 9 * 6)
    with TrajectoryFile(tmp_path / "gt.h5") as file:
        chunks = list(iterate_chunks(file))
    assert [len(chunk) for chunk in chunks] == [6] * 6 + [4]
    np.testing.assert_array_equal(np.concatenate([chunk.positions for chunk in chunks]), ethanol.positions)


def test_reference_beside_the_rollout(ethanol: Trajectory, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["inputs/numbers"], file["inputs/positions"] = ethanol.numbers, ethanol.positions
        file["inputs/time_ps"] = np.arange(40) * 0.01
        file["inputs/reference_positions"] = ethanol.positions[:11] + 1.0
    reference = read_trajectory(tmp_path / "both.h5", part="reference")
    np.testing.assert_allclose(reference.positions, ethanol.positions[:11] + 1.0)
    assert reference.times_fs is None


@pytest.mark.parametrize("suffix", ["traj", "extxyz"])
def test_formats_of_ase(ethanol: Trajectory, tmp_path: Path, suffix: str) -> None:
    images = [ethanol.to_atoms(frame) for frame in range(5)]
    ase.io.write(tmp_path / f"run.{suffix}", images)
    read = read_trajectory(tmp_path / f"run.{suffix}")
    np.testing.assert_allclose(read.positions, ethanol.positions[:5], atol=1e-8)
    np.testing.assert_allclose(read.velocities, np.asarray(ethanol.velocities)[:5], atol=1e-8 / units.fs)


def test_sgdml_files_are_in_kcal_per_mol(ethanol: Trajectory, tmp_path: Path) -> None:
    np.savez(tmp_path / "md17.npz", R=ethanol.positions, z=ethanol.numbers, E=np.ones((40, 1)), F=ethanol.positions)
    read = read_trajectory(tmp_path / "md17.npz")
    np.testing.assert_allclose(read.energies, KCAL_PER_MOL_EV)
    np.testing.assert_allclose(read.forces, ethanol.positions * KCAL_PER_MOL_EV)


def test_stated_energy_unit_of_npz_is_honoured(ethanol: Trajectory, tmp_path: Path) -> None:
    np.savez(tmp_path / "md.npz", R=ethanol.positions, z=ethanol.numbers, E=np.ones(40), e_unit="eV")
    np.testing.assert_array_equal(read_trajectory(tmp_path / "md.npz").energies, 1.0)


def test_unknown_energy_unit_of_npz_is_refused(ethanol: Trajectory, tmp_path: Path) -> None:
    np.savez(tmp_path / "md.npz", R=ethanol.positions, z=ethanol.numbers, e_unit="Hartree")
    with pytest.raises(TrajectoryError, match="energies in 'Hartree'"):
        read_trajectory(tmp_path / "md.npz")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="there is no file"):
        open_trajectory(tmp_path / "none.h5")


def test_hdf5_without_positions_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["energy"] = np.zeros(3)
    with pytest.raises(TrajectoryError, match=r"needs datasets 'numbers' and 'positions', found \['energy'\]"):
        open_trajectory(tmp_path / "x.h5")


def test_ragged_sets_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["numbers"], file["positions"] = np.ones(8, dtype=int), np.zeros((8, 3))
    with pytest.raises(TrajectoryError, match="ragged sets are no trajectory"):
        open_trajectory(tmp_path / "x.h5")


def test_truncated_hdf5_is_refused(ethanol: Trajectory, tmp_path: Path) -> None:
    write_plain(tmp_path / "gt.h5", ethanol)
    content = (tmp_path / "gt.h5").read_bytes()
    (tmp_path / "gt.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(TrajectoryError, match="no HDF5 file, or it is truncated"):
        open_trajectory(tmp_path / "gt.h5")


def test_file_that_is_being_written_is_refused(h5md: Path) -> None:
    writer = "import h5py, sys, time; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", writer, str(h5md)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(TrajectoryError, match="being written by another process"):
            open_trajectory(h5md)
        process.communicate()


def test_text_that_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.dat").write_text("nothing here\n")
    with pytest.raises(TrajectoryError, match="no trajectory that ASE can read"):
        open_trajectory(tmp_path / "notes.dat")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "spacing_fs"), [("gt_gfn2_ethanol_nve", 1.0), ("gt_gfn2_ala3_nvt500", 5.0)])
def test_ground_truth_files(shared_dir: Path, name: str, spacing_fs: float) -> None:
    with TrajectoryFile(shared_dir / "datasets" / f"{name}.h5") as file:
        part = file.read(100, 120)
    assert part.spacing_fs() == pytest.approx(spacing_fs)
    assert part.first_frame == 100
    part.require("velocities", "forces", "energies")


@pytest.mark.shared
def test_ground_truth_water_is_periodic_and_interrupted_once(shared_dir: Path) -> None:
    water = read_trajectory(shared_dir / "datasets" / "gt_water_spcfw_doubled.h5")
    assert water.is_periodic
    assert len(water.continuous_parts()) == 2
