"""`e2former rollout` with the folder and the simulation file of the original E2Former."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from ase.build import molecule
from click.testing import CliRunner, Result

from e2former_calc.cli import main
from e2former_calc.report import Report, analyze_rollouts
from e2former_calc.rollout import run as run_module

TRAINED = Path(__file__).resolve().parents[1] / "data" / "e2former_v1" / "checkpoint.pt"
BASE = {
    "steps": 20, "save_freq": 4, "seed": 123, "identifier": "10fs", "max_test_points": 10000, "kcal": False,
    "T_init": 500.0, "integrator": "Langevin",
    "integrator_config": {"timestep": 0.5, "temperature_K": 500.0, "friction": 0.5},
}  # fmt: skip


@pytest.fixture
def rollout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call the command for ethanol in a folder with a training run and simulation files."""
    monkeypatch.setattr(run_module, "analyze_rollouts", without_figures)
    (folder / "runs" / "dha").mkdir(parents=True)
    shutil.copy(TRAINED, folder / "runs" / "dha" / "best_checkpoint.pt")
    (folder / "runs" / "dha" / "normalizers.pt").touch()
    (folder / "base.yml").write_text(yaml.safe_dump(BASE))
    (folder / "simulation.yml").write_text("includes: [base.yml]\ndataset_src: data/val/\nmodel_dir: runs/dha\n")
    atoms = molecule("CH3CH2OH")
    noise = 0.02 * np.random.default_rng(1).normal(size=(100, 9, 3))
    with h5py.File(folder / "reference.h5", "w") as file:
        file.update({"numbers": atoms.numbers, "positions": atoms.positions + noise})
        file.attrs.update({"temperature_K": 300.0, "friction_per_fs": 0.01, "frame_spacing_fs": 10.0})
    shared = ["rollout", "--reference", "reference.h5", "--device", "cpu", "--out", "run", "--max-force", "1e4"]
    return lambda *more: CliRunner().invoke(main, [*shared, *map(str, more)])


def without_figures(*inputs: Any, **options: Any) -> Report:
    report = analyze_rollouts(*inputs, **options)
    return replace(report, sections=tuple(replace(section, drawings=()) for section in report.sections))


def plan(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "plan.json").read_text())["plan"]
    return found


def test_the_simulation_file_names_model_steps_and_thermostat(rollout, folder: Path):
    result = rollout("--official-config", "simulation.yml")
    assert result.exit_code in (0, 2), result.output
    made = plan(folder)
    assert (made["time_ps"], made["every_fs"], made["replicas"], made["seed"]) == (0.01, 2.0, 1, 123)
    assert made["friction_per_ps"] == pytest.approx(49.11, abs=0.01)
    assert "runs/dha" in json.loads((folder / "run" / "summary.json").read_text())["model"]["path"]


def test_what_has_no_effect_is_said_by_name(rollout):
    errors = rollout("--official-config", "simulation.yml").stderr
    assert "the original code ignores kcal, max_test_points" in errors
    assert "dataset_src (replicas start from frames of --reference, or from --structure)" in errors


def test_options_win_over_the_simulation_file(rollout, folder: Path):
    more = ("--replicas", 2, "--seed", 5, "--temperature-K", 200, "--time-ps", 0.004)
    result = rollout("--official-config", "simulation.yml", *more)
    assert result.exit_code in (0, 2), result.output
    made = plan(folder)
    assert (made["replicas"], made["seed"], made["temperature_K"], made["time_ps"]) == (2, 5, 200.0, 0.004)


def test_a_folder_of_the_trainer_is_a_model(rollout, folder: Path):
    result = rollout("--model", "runs/dha", "--time-ps", 0.002, "--every-fs", 1, "--replicas", 1)
    assert result.exit_code in (0, 2), result.output
    path = json.loads((folder / "run" / "summary.json").read_text())["model"]["path"]
    assert Path(path).name == "best_checkpoint.pt"


def test_a_preset_of_another_molecule_is_refused(rollout, folder: Path):
    result = rollout("--preset", "md22-dha", "--official-config", "simulation.yml")
    assert result.exit_code == 1
    assert "the preset md22-dha is for docosahexaenoic acid, C22H32O2, but the reference is C2H6O" in result.stderr
    assert not (folder / "run").exists()


def test_errors_of_the_simulation_file_are_one_line(rollout, folder: Path):
    (folder / "base.yml").write_text(yaml.safe_dump(BASE | {"stride": 3}))
    result = rollout("--official-config", "simulation.yml")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].endswith("official simulation file: it has unknown keys stride")
