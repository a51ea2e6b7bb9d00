"""`e2former train`."""

from __future__ import annotations

import csv
from pathlib import Path

import ase.io
import pytest
import yaml
from ase import Atoms
from click.testing import CliRunner, Result

from e2former_calc.cli import main

NETWORK = {"channels": 8, "lmax": 1, "num_layers": 1, "num_heads": 4, "head_width": 2, "num_basis": 8}


@pytest.fixture
def folder(labelled_water: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with data and a configuration of eight steps."""
    ase.io.write(tmp_path / "frames.extxyz", labelled_water[:12])
    content = {
        "data": {"training": "frames.extxyz", "validation": 4},
        "model": NETWORK,
        "training": {"steps": 8, "batch_size": 2, "validate_every": 4},
    }
    (tmp_path / "water.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*options: str) -> Result:
    return CliRunner().invoke(main, ["train", "water.yaml", *options])


def test_files_are_written_and_errors_shown(folder):
    result = train()
    assert result.exit_code == 0, result.output
    assert "all steps done" in result.output
    assert "meV/Å" in result.output
    for ending in (".safetensors", "-state.pt", "-log.csv", "-learning-curve.png", "-parity.png"):
        assert (folder / f"water{ending}").stat().st_size > 0


def test_a_stopped_run_is_resumed_and_its_log_continued(folder):
    assert "continue with --resume" in train("--max-minutes", "0").output
    result = train("--resume")
    assert result.exit_code == 0, result.output
    with open(folder / "water-log.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8


def test_outputs_are_not_overwritten_by_accident(folder):
    train()
    result = train()
    assert result.exit_code == 1
    assert "--overwrite" in result.output


def test_a_bad_configuration_is_one_line(folder):
    (folder / "water.yaml").write_text("data: {}")
    result = train()
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1].startswith("Error: ")


def test_a_loss_that_is_not_finite_is_one_line(folder):
    content = yaml.safe_load((folder / "water.yaml").read_text())
    content["training"] |= {"learning_rate": 1e30, "warmup_steps": 0}
    (folder / "water.yaml").write_text(yaml.safe_dump(content))
    result = train()
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1].startswith("Error: the loss or its gradient is ")


def test_resuming_nothing_is_one_line(folder):
    result = train("--resume")
    assert result.exit_code == 1
    assert "water-state.pt" in result.output
