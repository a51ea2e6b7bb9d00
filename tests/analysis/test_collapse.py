"""Every detector finds its own disaster, and nothing in a sound run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from e2former_calc.analysis.collapse import CollapseLimits, detect_collapse, earliest_failure
from e2former_calc.analysis.stability import bond_stability
from e2former_calc.analysis.thermodynamics import kinetic_energies, temperatures
from e2former_calc.analysis.trajectory import Trajectory


@pytest.fixture
def warm(ethanol: Trajectory, rng: np.random.Generator) -> Trajectory:
    """Velocities of 300 K, small forces, constant total energy."""
    scale = np.sqrt(300.0 / temperatures(ethanol, 27).mean())
    moving = replace(ethanol, velocities=np.asarray(ethanol.velocities) * scale)
    energies = -kinetic_energies(moving) + 1e-4 * rng.normal(size=40)
    return replace(moving, energies=energies, forces=0.1 * rng.normal(size=ethanol.positions.shape))


def changed(trajectory: Trajectory, name: str, frame: int, value: np.ndarray | float) -> Trajectory:
    array = getattr(trajectory, name).copy()
    array[frame, ...] = value
    return replace(trajectory, **{name: array})


ALL = CollapseLimits(temperature_K=300.0, energy_jump_sigma=10.0)


def test_sound_run_is_sound(warm: Trajectory) -> None:
    assert detect_collapse(warm, ALL) == []


@pytest.mark.parametrize("name", ["positions", "velocities", "forces", "energies"])
def test_not_finite(warm: Trajectory, name: str) -> None:
    (found,) = detect_collapse(changed(warm, name, 11, np.nan), ALL)
    assert (found.detector, found.frame, found.time_fs) == ("not finite", 11, 110.0)
    assert found.reason == f"{name} are not finite"


def test_large_force_names_the_atom(warm: Trajectory) -> None:
    forces = np.zeros((9, 3))
    forces[6, 2] = -80.0
    (found,) = detect_collapse(changed(warm, "forces", 30, forces), ALL)
    assert (found.detector, found.frame) == ("force", 30)
    assert found.reason.startswith("force on atom 6 is 80 eV/Å")


@pytest.mark.parametrize("factor", [0.0, 9.0], ids=["frozen", "hot"])
def test_temperature_out_of_range(warm: Trajectory, factor: float) -> None:
    velocities = np.asarray(warm.velocities).copy()
    velocities[20:] *= factor
    limits = CollapseLimits(temperature_K=300.0)
    found = detect_collapse(replace(warm, velocities=velocities), limits)
    assert [violation.detector for violation in found] == ["temperature"]
    assert 20 <= found[0].frame < 25


def test_one_hot_frame_is_averaged_out(warm: Trajectory) -> None:
    hot = changed(warm, "velocities", 20, 2.0 * np.asarray(warm.velocities)[20])
    assert detect_collapse(hot, CollapseLimits(temperature_K=300.0)) == []


def test_logged_temperatures_serve_without_velocities(warm: Trajectory) -> None:
    logged = np.full(40, 300.0)
    logged[25:] = 1e5
    found = detect_collapse(replace(warm, velocities=None, temperatures_K=logged), CollapseLimits(temperature_K=300.0))
    assert [violation.frame for violation in found] == [25]


def test_atoms_that_run_into_each_other(warm: Trajectory) -> None:
    positions = warm.positions[15].copy()
    positions[8] = positions[3] + 0.1
    found = detect_collapse(changed(warm, "positions", 15, positions))
    contact = next(violation for violation in found if violation.detector == "contact")
    assert contact.frame == 15
    assert "without being bonded" in contact.reason


def test_lost_atom(warm: Trajectory) -> None:
    positions = warm.positions.copy()
    positions[18:, 3] += 4.0
    found = detect_collapse(replace(warm, positions=positions))
    assert {(violation.detector, violation.frame) for violation in found} == {("fragments", 18), ("free atom", 18)}


def test_energy_jump(warm: Trajectory) -> None:
    energies = np.asarray(warm.energies).copy()
    energies[33:] += 0.5
    (found,) = detect_collapse(replace(warm, energies=energies), ALL)
    assert (found.detector, found.frame) == ("energy jump", 33)


def test_energy_jump_between_two_parts_of_a_file(warm: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    energies = np.asarray(warm.energies).copy()
    energies[30:] += 0.5
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 9 * 10)
    (found,) = detect_collapse(replace(warm, energies=energies), ALL)
    assert (found.detector, found.frame) == ("energy jump", 30)


def test_streaming_changes_nothing(warm: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    velocities, energies = np.asarray(warm.velocities).copy(), np.asarray(warm.energies).copy()
    velocities[20:] *= 9.0
    energies[33:] += 50.0
    run = replace(warm, velocities=velocities, energies=energies)
    whole = [(violation.detector, violation.frame) for violation in detect_collapse(run, ALL)]
    monkeypatch.setattr("e2former_calc.analysis.trajectory.CHUNK_BYTES", 24 * 9 * 6)
    assert [(violation.detector, violation.frame) for violation in detect_collapse(run, ALL)] == whole


def test_collapse_before_the_bond_breaks_ends_the_stable_time(warm: Trajectory) -> None:
    verdict = bond_stability(warm, warm).verdict
    failed = earliest_failure(verdict, detect_collapse(changed(warm, "forces", 21, 100.0)))
    assert (failed.frame, failed.usable_frames, failed.survived) == (21, 21, False)
    assert failed.stable_ps == pytest.approx(0.2)
    assert str(failed.reason).startswith("force: force on atom")


def test_collapse_after_the_bond_breaks_changes_nothing(warm: Trajectory) -> None:
    positions = warm.positions.copy()
    positions[12:, 3] += 4.0
    run = replace(warm, positions=positions)
    verdict = bond_stability(run, warm).verdict
    assert earliest_failure(verdict, detect_collapse(changed(run, "forces", 21, 100.0))) is verdict


def test_earliest_violation_comes_first(warm: Trajectory) -> None:
    run = changed(changed(warm, "forces", 30, 100.0), "positions", 10, np.nan)
    assert [violation.frame for violation in detect_collapse(run)] == [10]
    run = changed(changed(warm, "forces", 5, 100.0), "positions", 10, np.nan)
    assert [violation.frame for violation in detect_collapse(run)] == [5, 10]
