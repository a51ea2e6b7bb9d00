"""Trajectories written in the background: all formats, full queues, full disks, torn files, many frames."""

from __future__ import annotations

import errno
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.md import trajectory_files
from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.h5md import H5MDError, H5MDReader, H5MDWriter
from e2former_calc.md.trajectory import TrajectoryWriter, replica_paths
from e2former_calc.md.trajectory_files import open_frame_file, topology_path, write_topology

WATER = molecule("H2O")
TOPOLOGY = Topology.from_atoms(WATER)
FORMATS = [".h5md", ".extxyz", ".traj"]


def frame(step: int) -> Frame:
    """A frame whose numbers all follow from its step."""
    random = np.random.default_rng(step)
    return Frame(
        step=step, time_fs=0.5 * step, positions=random.normal(size=(3, 3)), velocities=random.normal(size=(3, 3)),
        forces=random.normal(size=(3, 3)), energy=-1.0 * step, kinetic_energy=0.1, conserved_energy=2.0,
        temperature_K=300.0,
    )  # fmt: skip


def write(path: Path, steps: range, **options: Any) -> None:
    with TrajectoryWriter([path], [TOPOLOGY], **options) as trajectory:
        for step in steps:
            trajectory.append(0, frame(step))


def append_all(trajectory: TrajectoryWriter, steps: range) -> None:
    """Hand over frames and see to it that they are written now and then."""
    for step in steps:
        trajectory.append(0, frame(step))
        if step % 50 == 49:
            trajectory.commit()


def steps_in(path: Path) -> list[int]:
    return [atoms.info["step"] for atoms in ase.io.read(path, ":")]


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"run{request.param}"


@pytest.fixture
def h5md(tmp_path: Path) -> Path:
    return tmp_path / "run.h5md"


def test_ase_reads_all_that_was_written(path: Path) -> None:
    write(path, range(0, 50, 5))
    images = ase.io.read(path, index=":")
    assert [atoms.info["step"] for atoms in images] == list(range(0, 50, 5))
    expected = frame(45)
    np.testing.assert_allclose(images[-1].positions, expected.positions, atol=1e-8)
    np.testing.assert_allclose(images[-1].get_forces(), expected.forces, atol=1e-8)
    np.testing.assert_allclose(images[-1].get_velocities(), expected.to_atoms(TOPOLOGY).get_velocities(), atol=1e-8)
    assert images[-1].get_potential_energy() == -45.0
    assert images[-1].info["temperature_K"] == 300.0


def test_energies_and_temperature_are_h5md_observables(h5md: Path) -> None:
    write(h5md, range(3))
    with h5py.File(h5md) as file:
        observables = file["observables"]
        assert observables["kinetic_energy/value"][()].tolist() == [0.1] * 3
        assert observables["conserved_energy/value"][()].tolist() == [2.0] * 3
        assert observables["temperature/value"].attrs["unit"] == "K"
        assert observables["temperature/time"] == file["particles/trajectory/position/time"]


@pytest.mark.filterwarnings("ignore")
def test_mdanalysis_reads_the_trajectory_with_its_topology(h5md: Path) -> None:
    mdanalysis = pytest.importorskip("MDAnalysis")
    write(h5md, range(4))
    write_topology(topology_path(h5md, 3), WATER)
    universe = mdanalysis.Universe(str(h5md.with_suffix(".pdb")), str(h5md))
    found = [(step.time, universe.atoms.positions.copy(), universe.atoms.forces.copy()) for step in universe.trajectory]
    assert [time_ps for time_ps, _, _ in found] == pytest.approx([0.0, 0.0005, 0.001, 0.0015])
    np.testing.assert_allclose(found[3][1], frame(3).positions, rtol=1e-6)
    np.testing.assert_allclose(found[3][2], frame(3).forces * 96.48533212, rtol=1e-6)


def test_a_continued_trajectory_equals_one_in_one_go(path: Path, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{path.suffix}"
    write(whole, range(40))
    write(path, range(30))
    write(path, range(21, 40), keep_until=20)
    assert steps_in(path) == steps_in(whole)
    for one, other in zip(ase.io.read(path, ":"), ase.io.read(whole, ":"), strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.get_forces(), other.get_forces())


def test_an_extxyz_file_is_continued_byte_for_byte(tmp_path: Path) -> None:
    one, other = tmp_path / "a.extxyz", tmp_path / "b.extxyz"
    write(one, range(10))
    write(other, range(8))
    with other.open("ab") as file:
        file.write(one.read_bytes()[-40:])
    write(other, range(6, 10), keep_until=5)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("lost", [1, 7, 60, 300])
def test_a_torn_extxyz_frame_is_written_again(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "run.extxyz"
    write(path, range(4))
    complete = path.read_bytes()
    path.write_bytes(complete[:-lost])
    write(path, range(3, 4), keep_until=2)
    assert path.read_bytes() == complete


def test_all_frames_may_be_removed(path: Path) -> None:
    write(path, range(5, 9))
    write(path, range(3), keep_until=4)
    assert steps_in(path) == [0, 1, 2]


def test_a_trajectory_to_be_continued_must_be_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"run{path.suffix} of the run to be continued is not there"):
        write(path, range(3), keep_until=2)


@pytest.mark.parametrize("suffix", [".h5md", ".traj"])
def test_a_damaged_trajectory_is_refused_and_left_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    path.write_bytes(b"no trajectory at all" * 20)
    with pytest.raises(H5MDError, match=r"is damaged|is not an H5MD file"):
        write(path, range(3), keep_until=2)
    assert path.read_bytes() == b"no trajectory at all" * 20


def test_a_frame_kept_open_by_another_writer_is_refused(h5md: Path) -> None:
    with (
        TrajectoryWriter([h5md], [TOPOLOGY]),
        pytest.raises(OSError, match="another process has this trajectory open"),
    ):
        TrajectoryWriter([h5md], [TOPOLOGY])


def test_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.h5md, \.extxyz, \.xyz, \.traj, got '.*run\.dcd'"):
        replica_paths(tmp_path / "run.dcd", 1)


def test_each_replica_has_its_own_file(tmp_path: Path) -> None:
    paths = replica_paths(tmp_path / "run.h5md", 2)
    assert [path.name for path in paths] == ["run-0.h5md", "run-1.h5md"]
    with TrajectoryWriter(paths, [TOPOLOGY] * 2) as trajectory:
        for step in range(4):
            trajectory.append(step % 2, frame(step))
    assert [steps_in(path) for path in paths] == [[0, 2], [1, 3]]


class Gate:
    """A file that writes a frame only when the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.written: list[int] = []

    def append(self, added: Frame) -> None:
        self.open.wait(30)
        self.written.append(added.step)

    def commit(self) -> None:
        self.open.wait(30)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    found = Gate()
    monkeypatch.setattr("e2former_calc.md.trajectory.open_frame_file", lambda *_, **__: found)
    return found


def test_a_full_queue_blocks_and_drops_nothing(gate: Gate) -> None:
    handed_over: list[int] = []
    trajectory = TrajectoryWriter([Path("run.h5md")], [TOPOLOGY], waiting=3)

    def simulate() -> None:
        for step in range(20):
            trajectory.append(0, frame(step))
            handed_over.append(step)

    simulation = threading.Thread(target=simulate)
    simulation.start()
    time.sleep(0.3)
    assert len(handed_over) == 4
    assert simulation.is_alive()
    gate.open.set()
    simulation.join(30)
    trajectory.close()
    assert gate.written == list(range(20))


def test_commit_waits_for_the_disk(gate: Gate) -> None:
    trajectory = TrajectoryWriter([Path("run.h5md")], [TOPOLOGY])
    trajectory.append(0, frame(0))
    threading.Timer(0.2, gate.open.set).start()
    trajectory.commit()
    assert gate.written == [0]
    trajectory.close()


def test_an_error_of_the_thread_reaches_the_simulation_once(gate: Gate) -> None:
    def fail(added: Frame) -> None:
        raise OSError(errno.ENOSPC, "no space")

    gate.append = fail  # type: ignore[method-assign]
    gate.open.set()
    trajectory = TrajectoryWriter([Path("run.h5md")], [TOPOLOGY], waiting=2)
    with pytest.raises(OSError, match="no space"):
        append_all(trajectory, range(100))
    trajectory.close()


def test_a_closed_trajectory_takes_no_frames(path: Path) -> None:
    trajectory = TrajectoryWriter([path], [TOPOLOGY])
    trajectory.close()
    trajectory.close()
    with pytest.raises(ValueError, match="the trajectory is closed"):
        trajectory.append(0, frame(0))


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`small_disk(n)`: files cannot grow beyond n bytes."""

    def limit(size: int) -> None:
        write = os.pwrite

        def limited(descriptor: int, data: bytes, place: int) -> int:
            if place + len(data) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data, place)

        monkeypatch.setattr(os, "pwrite", limited)

    return limit


@pytest.mark.parametrize("suffix", [".h5md", ".extxyz"])
def test_a_full_disk_keeps_every_committed_frame(
    tmp_path: Path, suffix: str, small_disk: Callable[[int], None]
) -> None:
    path = tmp_path / f"run{suffix}"
    trajectory = TrajectoryWriter([path], [TOPOLOGY])
    for step in range(20):
        trajectory.append(0, frame(step))
    trajectory.commit()
    small_disk(path.stat().st_size)
    with pytest.raises(OSError, match=r"no space left on device\); what was written before is .*: make space"):
        append_all(trajectory, range(20, 4000))
    trajectory.close()
    kept = steps_in(path)
    assert kept == list(range(len(kept)))
    assert len(kept) >= 20


class Killed(BaseException):
    """The process is dead."""


def dying(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the process die in system call number `calls` of those that change files."""
    count = [0]

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] >= calls:
                raise Killed
            return function(*arguments, **options)

        return call

    for name in ("pwrite", "ftruncate"):
        patch.setattr(os, name, mortal(getattr(os, name)))
    patch.setattr(Path, "unlink", mortal(Path.unlink))


@pytest.mark.parametrize("calls", range(1, 40, 2))
def test_a_killed_writer_leaves_whole_blocks(h5md: Path, calls: int) -> None:
    writer = H5MDWriter(h5md, flush_every=4, compression="gzip")
    for step in range(8):
        writer.append_frame(TOPOLOGY, frame(step))
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        dying(patch, calls)
        for step in range(8, 16):
            writer.append_frame(TOPOLOGY, frame(step))
    writer._disk.abandon()
    with H5MDReader(h5md) as reader:
        found = list(reader.frames())
    assert len(found) in (8, 12, 16)
    assert all(np.array_equal(one.positions, frame(step).positions) for step, one in enumerate(found))


def test_memory_does_not_grow_with_frames(h5md: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_files, "BLOCK_BYTES", 2**14)
    one = frame(1)
    with TrajectoryWriter([h5md], [TOPOLOGY], waiting=16) as trajectory:
        peaks = []
        tracemalloc.start()
        for part in range(4):
            tracemalloc.reset_peak()
            for step in range(250 * part, 250 * part + 250):
                trajectory.append(0, Frame(step=step, positions=one.positions, velocities=one.velocities))
            trajectory.commit()
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[3] < 1.25 * peaks[1]


def test_the_pdb_topology_has_the_elements(tmp_path: Path) -> None:
    path = topology_path(tmp_path / "run.h5md", len(WATER))
    write_topology(path, WATER)
    assert path.name == "run.pdb"
    assert ase.io.read(path).get_chemical_symbols() == ["O", "H", "H"]


def test_large_systems_get_an_extxyz_topology(tmp_path: Path) -> None:
    assert topology_path(tmp_path / "run.h5md", 100_000).name == "run.extxyz"


def test_single_precision_is_passed_on(h5md: Path) -> None:
    file = open_frame_file(h5md, TOPOLOGY, precision="float32", compression="lzf")
    file.append(frame(0))
    file.close()
    with h5py.File(h5md) as stored:
        value = stored["particles/trajectory/position/value"]
        assert (value.dtype, value.compression) == (np.float32, "lzf")
