from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.constraints import FixAtoms
from click.testing import Result

from e2former_calc import E2FormerCalculator
from e2former_calc.cli import relax as relax_module
from e2former_calc.cli.relaxation import OPTIMIZERS

from .conftest import Run, saved


def summary(name: str = "water-relaxed") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(f"{name}-summary.json").read_text())
    return content


@pytest.fixture
def converged(run: Run, model: Path, water: Path) -> Result:
    """A relaxation with all defaults but the precision."""
    return run("relax", water, "--model", model, "--dtype", "float64")


def test_converged_run_ends_with_code_zero(converged: Result) -> None:
    assert converged.exit_code == 0
    assert "converged" in converged.stdout


def test_final_structure_has_small_forces_and_lower_energy(converged: Result, model: Path, water: Path) -> None:
    final, start = ase.io.read("water-relaxed.extxyz"), ase.io.read(water)
    calculator = E2FormerCalculator(model, dtype="float64")
    forces = calculator.get_forces(final)
    assert np.linalg.norm(forces, axis=1).max() < 0.05
    assert final.get_forces() == pytest.approx(forces, abs=1e-7)
    assert final.get_potential_energy() < calculator.get_potential_energy(start)


def test_trajectory_leads_from_the_file_to_the_final_structure(converged: Result, water: Path) -> None:
    images = ase.io.read("water-relaxed.traj", ":")
    assert len(images) == summary()["results"]["steps"] + 1
    assert images[0].positions == pytest.approx(ase.io.read(water).positions)
    assert images[-1].positions == pytest.approx(ase.io.read("water-relaxed.extxyz").positions, abs=1e-7)
    assert all({"energy", "forces"} <= set(image.calc.results) for image in images)
    assert images[0].info["spin"] == 1


def test_summary_tells_before_and_after(converged: Result, model: Path) -> None:
    content = summary()
    results = content["results"]
    assert (results["status"], results["converged"]) == ("converged", True)
    assert results["after"]["energy_eV"] < results["before"]["energy_eV"]
    assert results["after"]["fmax_eV_per_A"] < 0.05 <= results["before"]["fmax_eV_per_A"]
    assert content["options"]["fmax"] == 0.05
    assert content["model"]["path"] == str(model)
    assert set(content["timings_s"]) == {"load", "relax", "total"}


def test_lines_appear_every_log_interval_and_at_the_end(run: Run, model: Path, water: Path) -> None:
    arguments = ("--optimizer", "FIRE", "--fmax", "1e-6", "--steps", 5, "--log-every", 2)
    result = run("relax", water, "--model", model, *arguments)
    lines = [line.split()[0] for line in result.stdout.splitlines()[:5]]
    assert lines == ["step", "0", "2", "4", "5"]


def test_step_limit_ends_with_code_two_and_writes_everything(run: Run, model: Path, water: Path) -> None:
    result = run("relax", water, "--model", model, "--steps", 1, "--fmax", "1e-3")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last == "not converged within 1 step; water-relaxed.extxyz is a structure to continue from"
    assert summary()["results"]["converged"] is False
    assert len(ase.io.read("water-relaxed.traj", ":")) == 2
    assert Path("water-relaxed.extxyz").exists()


def test_constraints_of_the_file_are_kept(run: Run, model: Path, folder: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.rattle(0.1, seed=2)
    atoms.set_constraint(FixAtoms([0, 3]))
    run("relax", saved(folder / "fixed.extxyz", atoms), "--model", model, "--steps", 3)
    final = ase.io.read("fixed-relaxed.extxyz")
    moved = np.linalg.norm(final.positions - ase.io.read("fixed.extxyz").positions, axis=1) > 1e-6
    assert moved.tolist() == [False, True, True, False, True, True]
    assert final.constraints[0].index.tolist() == [0, 3]
    assert np.abs(final.get_forces(apply_constraint=False)[0]).max() > 0.0


def test_cell_relaxation_reports_volume_and_pressure(run: Run, model: Path, salt: Path) -> None:
    result = run("relax", salt, "--model", model, "--cell", "--pressure-gpa", 1.0, "--steps", 3, "--fmax", 1e-3)
    header = result.stdout.splitlines()[0]
    assert "enthalpy [eV]" in header
    assert "volume [Å^3]" in header
    results = summary("salt-relaxed")["results"]
    assert results["after"]["volume_A3"] != results["before"]["volume_A3"]
    assert ase.io.read("salt-relaxed.extxyz").cell.volume == pytest.approx(results["after"]["volume_A3"])


def test_cell_stays_without_the_option(run: Run, model: Path, salt: Path) -> None:
    run("relax", salt, "--model", model, "--steps", 2)
    assert ase.io.read("salt-relaxed.extxyz").cell.array == pytest.approx(ase.io.read(salt).cell.array)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".xyz", ".h5md"])
def test_trajectory_format_follows_the_suffix(run: Run, model: Path, salt: Path, suffix: str) -> None:
    run("relax", salt, "--model", model, "--cell", "--steps", 2, "--fmax", 1e-4, "--trajectory", f"path{suffix}")
    images = ase.io.read(f"path{suffix}", ":")
    final = ase.io.read("salt-relaxed.extxyz")
    assert len(images) == 3
    assert images[-1].cell.array == pytest.approx(final.cell.array, abs=1e-6)
    assert images[-1].get_forces() == pytest.approx(final.get_forces(), abs=1e-6)


def test_trajectory_interval_is_kept(run: Run, model: Path, water: Path) -> None:
    run("relax", water, "--model", model, "--steps", 5, "--fmax", "1e-6", "--traj-every", 2)
    assert len(ase.io.read("water-relaxed.traj", ":")) == 3


def test_last_frame_is_the_default_of_many(run: Run, model: Path, frames: Path) -> None:
    run("relax", frames, "--model", model, "--steps", 0)
    assert summary("frames-relaxed")["results"]["frame"] == 3


def test_optimizer_is_found_in_any_case(run: Run, model: Path, water: Path) -> None:
    run("relax", water, "--model", model, "--steps", 1, "--optimizer", "fire2")
    assert summary()["options"]["optimizer"] == "FIRE2"


def test_unknown_optimizer_lists_the_names(run: Run, water: Path) -> None:
    result = run("relax", water, "--optimizer", "Newton")
    assert result.exit_code == 1
    assert f"ASE has no optimiser 'Newton'; choose from {', '.join(OPTIMIZERS)}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell"], "periodic in three directions"),
        (["--hydrostatic"], "need --cell"),
        (["--fmax", "-1"], "--fmax must be positive"),
        (["--steps", "-1"], "not in the range x>=0"),
        (["--trajectory", "a.dcd"], "must end in .traj, .extxyz, .xyz, .h5md, got 'a.dcd'"),
        (["--trajectory", "water-relaxed.extxyz"], "is also the final structure"),
        (["--out", "no/such/prefix"], "the folder no/such does not exist: create it first"),
        (["--out", "water.extxyz/prefix"], "the folder water.extxyz is not a folder"),
        (["--out", "."], "is a folder: add the beginning of a file name"),
        (["--spin", "0"], "must be at least 1, got 0"),
    ],
)
def test_impossible_request_is_one_line_and_writes_nothing(
    run: Run, model: Path, water: Path, arguments: list[str], message: str
) -> None:
    before = sorted(Path().iterdir())
    result = run("relax", water, "--model", model, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert sorted(Path().iterdir()) == before


def test_slice_of_several_structures_is_refused(run: Run, model: Path, frames: Path) -> None:
    result = run("relax", frames, "--model", model, "--index", ":2")
    assert "selects 2 structures" in result.stderr
    assert "give one integer" in result.stderr


def test_existing_outputs_are_refused_together(converged: Result, run: Run, model: Path) -> None:
    result = run("relax", "water.extxyz", "--model", model)
    names = "water-relaxed.extxyz, water-relaxed.traj, water-relaxed-summary.json"
    assert result.stderr == f"Error: {names} would be replaced: add --overwrite, or choose another name\n"


def test_explosion_keeps_the_trajectory_and_removes_an_older_result(
    converged: Result, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2former_calc.cli.relaxation.MAX_DROP", 1e-9)
    result = run("relax", "water.extxyz", "--model", model, "--overwrite")
    assert result.exit_code == 1
    assert "Error: the energy exploded" in result.stderr.splitlines()[-1]
    assert len(ase.io.read("water-relaxed.traj", ":")) == 2
    assert summary()["results"]["status"] == "failed"
    assert not Path("water-relaxed.extxyz").exists()


@pytest.mark.parametrize(("dtype", "advised"), [("float32", True), ("float64", False)])
def test_float64_is_advised_at_the_noise_floor_of_float32(
    run: Run, model: Path, water: Path, dtype: str, advised: bool
) -> None:
    result = run("relax", water, "--model", model, "--fmax", "1e-9", "--steps", 2, "--dtype", dtype)
    assert ("try --dtype float64" in result.stderr) is advised
    assert (summary()["results"]["advice"] is not None) is advised


def test_no_advice_far_above_the_noise(run: Run, model: Path, water: Path) -> None:
    result = run("relax", water, "--model", model, "--steps", 1, "--fmax", "0.01")
    assert result.exit_code == 2
    assert "float64" not in result.stderr


def test_terminal_shows_a_bar_instead_of_lines(
    run: Run, model: Path, water: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relax_module, "is_terminal", lambda: True)
    result = run("relax", water, "--model", model, "--steps", 2, "--fmax", "1e-6")
    assert "/2 [" in result.stderr
    assert "fmax [eV/Å]" not in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_interrupted_process_writes_what_there_is(model: Path, water: Path, folder: Path) -> None:
    arguments = ["relax", str(water), "--model", str(model), "--optimizer", "MDMin", "--fmax", "1e-12"]
    program = "import torch; torch.set_num_threads(1); from e2former_calc.cli import main; main()"
    command = [sys.executable, "-c", program, *arguments, "--steps", "1000000", "--log-every", "1"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert lines[3].split()[0] == "2"
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted after" in errors
    results = summary()["results"]
    assert (results["status"], results["signal"]) == ("interrupted", signal.SIGTERM)
    assert len(ase.io.read("water-relaxed.traj", ":")) == results["steps"] + 1
    assert ase.io.read("water-relaxed.extxyz").get_potential_energy() == results["after"]["energy_eV"]
