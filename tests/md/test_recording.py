"""Trajectory, log and restart file belong together, however a run ends."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from e2former_calc.md.h5md import H5MDError
from e2former_calc.md.integrators import (
    AdaptiveQuantumThermalBath,
    Bussi,
    Langevin,
    MonteCarloBarostat,
    NoseHooverChain,
    QuantumThermalBath,
    StochasticCellRescaling,
    VelocityVerlet,
)
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.recording import Recording, RecordingFiles
from e2former_calc.md.restart import RestartError
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities

LANGEVIN = Langevin(2.0, 60.0, 5.0)
STEPS = 36

Build = Callable[..., Simulation]


class Killed(BaseException):
    """The process is dead."""


@pytest.fixture
def build(potentials: Any) -> Build:
    """A new simulation, always the same one unless it is told otherwise."""

    def simulation(integrator: Any = LANGEVIN, replicas: int = 1, **options: Any) -> Simulation:
        small = bulk("Ar", "fcc", a=5.4, cubic=True)
        arguments = {"seed": 5, "velocities": InitialVelocities(60.0)} | options
        return Simulation([small] * replicas, potentials.LennardJones(), integrator, **arguments)

    return simulation


def files_in(folder: Path, suffix: str = ".h5md") -> RecordingFiles:
    folder.mkdir(exist_ok=True)
    return RecordingFiles(folder / f"run{suffix}", folder / "run.csv", folder / "run.restart")


def record(simulation: Simulation, files: RecordingFiles, *, resume: bool = False, killed_at: int = -1) -> None:
    """Run to step `STEPS`, or die without any farewell after a step."""

    def die(current: Simulation) -> None:
        if current.step == killed_at:
            raise Killed

    recording = Recording(simulation, files, every=3, log_every=4, restart_every=10, resume=resume)
    observers = [*recording.observers, Observer(die)]
    try:
        simulation.run(STEPS - simulation.step, observers=observers)
        recording.checkpoint()
    except Killed:
        if recording._trajectory is not None:
            recording._trajectory._jobs.put(None)
            recording._trajectory._thread.join()
        if recording._log is not None:
            recording._log._abandon()
        return
    recording.close()


def same_files(one: RecordingFiles, other: RecordingFiles) -> bool:
    """Whether all numbers are the same to the last bit."""
    assert one.log is not None
    assert other.log is not None
    pairs = zip(ase.io.read(one.trajectory, ":"), ase.io.read(other.trajectory, ":"), strict=True)
    equal = [
        np.array_equal(a.positions, b.positions)
        and np.array_equal(a.get_forces(), b.get_forces())
        and np.array_equal(a.get_momenta(), b.get_momenta())
        and a.info == b.info
        for a, b in pairs
    ]
    return all(equal) and len(equal) > 0 and one.log.read_bytes() == other.log.read_bytes()


@pytest.mark.parametrize("killed_at", [0, 9, 10, 25])
def test_a_killed_run_continues_bit_for_bit(build: Build, tmp_path: Path, killed_at: int) -> None:
    whole, torn = files_in(tmp_path / "whole"), files_in(tmp_path / "torn")
    uninterrupted, last = build(), build()
    record(uninterrupted, whole)
    record(build(), torn, killed_at=killed_at)
    record(last, torn, resume=True)
    assert same_files(whole, torn)
    expected, found = uninterrupted.state.tensors(), last.state.tensors()
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)


@pytest.mark.parametrize("suffix", [".extxyz", ".traj"])
def test_other_formats_continue_too(build: Build, tmp_path: Path, suffix: str) -> None:
    whole, torn = files_in(tmp_path / "whole", suffix), files_in(tmp_path / "torn", suffix)
    record(build(), whole)
    record(build(), torn, killed_at=25)
    record(build(), torn, resume=True)
    assert same_files(whole, torn)


@pytest.mark.parametrize(
    "integrator",
    [
        VelocityVerlet(2.0),
        Bussi(2.0, 60.0),
        NoseHooverChain(2.0, 60.0),
        QuantumThermalBath(2.0, 60.0, 5.0, segment_steps=64),
        AdaptiveQuantumThermalBath(2.0, 60.0, 5.0, segment_steps=64),
        StochasticCellRescaling(2.0, 60.0, 1.0),
        AnisotropicCellRescaling(2.0, 60.0, 1.0),
        MonteCarloBarostat(LANGEVIN, 1.0, every=7),
    ],
    ids=lambda integrator: type(integrator).__name__,
)
def test_every_ensemble_continues(build: Build, tmp_path: Path, integrator: Any) -> None:
    whole, torn = files_in(tmp_path / "whole"), files_in(tmp_path / "torn")
    record(build(integrator), whole)
    record(build(integrator), torn, killed_at=25)
    record(build(integrator), torn, resume=True)
    assert same_files(whole, torn)


def test_replicas_continue_each_in_its_file(build: Build, tmp_path: Path) -> None:
    whole, torn = files_in(tmp_path / "whole"), files_in(tmp_path / "torn")
    record(build(replicas=2), whole)
    record(build(replicas=2), torn, killed_at=25)
    record(build(replicas=2), torn, resume=True)
    for one, other in zip(whole.trajectories(2), torn.trajectories(2), strict=True):
        pairs = zip(ase.io.read(one, ":"), ase.io.read(other, ":"), strict=True)
        assert all(np.array_equal(a.positions, b.positions) for a, b in pairs)


def test_the_trajectory_is_never_behind_the_restart_file(build: Build, tmp_path: Path) -> None:
    files, simulation = files_in(tmp_path), build()
    seen: list[tuple[int, int]] = []
    save = simulation.save

    def look_and_save(path: Any) -> None:
        if simulation.step:
            seen.append((ase.io.read(files.trajectory, -1).info["step"], simulation.step))
        save(path)

    simulation.save = look_and_save  # type: ignore[method-assign]
    record(simulation, files)
    assert seen[:3] == [(9, 10), (18, 20), (30, 30)]


def test_a_run_that_starts_has_a_restart_file_at_once(build: Build, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    Recording(build(), files).close()
    record(build(), files, resume=True)
    assert ase.io.read(files.trajectory, 0).info["step"] == 0


def test_frames_hold_everything(build: Build, tmp_path: Path) -> None:
    files, simulation = files_in(tmp_path), build()
    record(simulation, files)
    last, now = ase.io.read(files.trajectory, -1), simulation.atoms()
    assert last.info["temperature_K"] == simulation.observables().temperature_K.item()
    assert np.array_equal(last.positions, now.positions)
    eps = np.finfo(np.float64).eps
    np.testing.assert_allclose(last.get_forces(), now.get_forces(apply_constraint=False), rtol=4 * eps)
    assert last.get_potential_energy() == now.get_potential_energy()
    assert np.array_equal(last.cell.array, now.cell.array)


def test_positions_are_not_wrapped(potentials: Any, tmp_path: Path) -> None:
    atoms = Atoms("Ar", cell=[3, 3, 3], pbc=True)
    atoms.set_velocities([[1.0, 0.0, 0.0]])
    options = SimulationOptions(external_field=True)
    simulation = Simulation(atoms, potentials.Free(), Bussi(5.0, 300.0, 1e9), seed=1, options=options)
    record(simulation, files_in(tmp_path))
    assert ase.io.read(tmp_path / "run.h5md", -1).positions[0, 0] > 10.0


def test_another_thermostat_is_refused_by_name(build: Build, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    record(build(), files)
    before = files.trajectory.read_bytes() if files.trajectory else b""
    with pytest.raises(RestartError, match=r"integrator: temperature_K was 60\.0, is 90\.0"):
        record(build(Langevin(2.0, 90.0, 5.0)), files, resume=True)
    assert files.trajectory is not None
    assert files.trajectory.read_bytes() == before


def test_a_damaged_restart_file_is_refused(build: Build, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    record(build(), files)
    assert files.restart is not None
    content = bytearray(files.restart.read_bytes())
    content[-3] ^= 1
    files.restart.write_bytes(content)
    with pytest.raises(RestartError, match=r"run\.restart is damaged: its checksum is wrong"):
        record(build(), files, resume=True)


def test_a_damaged_trajectory_is_refused(build: Build, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    record(build(), files)
    assert files.trajectory is not None
    files.trajectory.write_bytes(files.trajectory.read_bytes()[:3000])
    with pytest.raises(H5MDError, match=r"run\.h5md is truncated"):
        record(build(), files, resume=True)


def test_resuming_needs_a_restart_file(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`resume` needs `files\.restart`"):
        Recording(build(), RecordingFiles(tmp_path / "run.h5md"), resume=True)
    with pytest.raises(FileNotFoundError, match=r"no restart file .*run\.restart"):
        Recording(build(), files_in(tmp_path), resume=True)


def test_a_full_disk_names_the_restart_file(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, simulation = files_in(tmp_path), build()
    recording = Recording(simulation, files)
    before = files.restart.read_bytes() if files.restart else b""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write the .*no space left on device.*: make space") as caught:
        recording._save()
    monkeypatch.undo()
    recording.close()
    assert caught.value.filename == str(files.restart)
    assert files.restart is not None
    assert files.restart.read_bytes() == before


def test_a_folder_that_is_not_there_names_the_restart_file(build: Build, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no such file or directory.*: make space or choose a writable folder") as caught:
        Recording(build(), RecordingFiles(restart=tmp_path / "absent" / "run.restart"))
    assert "the one before stays" not in str(caught.value)


def test_a_stopped_replica_ends_its_trajectory(build: Build, potentials: Any, tmp_path: Path) -> None:
    failing = potentials.Failing(inner=potentials.LennardJones(), row=1, after=20, calls=([],))
    small = bulk("Ar", "fcc", a=5.4, cubic=True)
    simulation = Simulation([small] * 2, failing, LANGEVIN, seed=5)
    files = files_in(tmp_path)
    record(simulation, files)
    last = [ase.io.read(path, -1).info["step"] for path in files.trajectories(2)]
    assert last == [36, 18]
    assert simulation.stops()[1] is not None


@pytest.mark.physics
def test_memory_stays_constant_over_100_000_steps(potentials: Any, tmp_path: Path) -> None:
    atoms = Atoms("Ar8", positions=np.random.default_rng(1).normal(size=(8, 3), scale=20.0))
    simulation = Simulation(atoms, potentials.Free(), LANGEVIN, seed=1)
    with Recording(simulation, files_in(tmp_path), every=5, log_every=50, restart_every=1000) as recording:
        simulation.run(10_000, observers=recording.observers)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        simulation.run(90_000, observers=recording.observers)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 10_000
    assert len(ase.io.read(tmp_path / "run.h5md", "::1000")) == 21
