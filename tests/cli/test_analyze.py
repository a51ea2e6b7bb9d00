"""`e2former analyze`."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.cli import main


def saved(path: Path, seed: int, *, broken_at: int | None = None, symbols: str = "CH3CH2OH") -> Path:
    """A file of 60 frames of a trembling molecule."""
    atoms, rng = molecule(symbols), np.random.default_rng(seed)
    positions = atoms.positions + 0.03 * rng.normal(size=(60, len(atoms), 3))
    if broken_at is not None:
        positions[broken_at:, 0] += 3.0
    with h5py.File(path, "w") as file:
        file.attrs.update({"frame_spacing_fs": 10.0, "temperature_K": 300.0, "ensemble": "NVT"})
        file.update({"numbers": atoms.numbers, "positions": positions, "energy": rng.normal(size=60)})
        file["forces"] = rng.normal(size=positions.shape)
    return path


@pytest.fixture
def reference(folder: Path) -> Path:
    return saved(folder / "reference.h5", 1)


def test_a_stable_rollout_gives_a_report_and_exit_code_0(run, folder, reference):
    result = run("analyze", saved(folder / "a.h5", 2), "--reference", reference, "--preset", "md17")
    assert result.exit_code == 0, result.output
    assert "Stable: the rollout to the end (0.59 ps)." in result.output
    assert "h(r) MAE" in result.output
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert summary["settings"]["temperature_K"] == 500.0
    assert summary["options"]["preset"] == "md17"
    assert len(summary["reference"]["sha256"]) == 64
    assert (folder / "report" / "report.html").exists()


def test_a_single_frame_is_not_called_stable(run, folder, reference):
    result = run("analyze", f"{saved(folder / 'a.h5', 2)}@:1", "--reference", reference)
    assert result.exit_code == 1
    assert "no rollout has more than one frame (a@:1)" in result.output


def test_a_broken_rollout_gives_exit_code_2(run, folder, reference, monkeypatch):
    monkeypatch.setattr("e2former_calc.report.write_report", lambda *_, **__: [folder / "report.html"])
    result = run("analyze", saved(folder / "a.h5", 2, broken_at=30), "--reference", reference)
    assert result.exit_code == 2
    assert "Not stable: the rollout fails after 0.29 ps, in frame 30" in result.output


def test_truth_is_any_calculator(run, folder, reference, monkeypatch):
    reports = []
    monkeypatch.setattr(
        "e2former_calc.report.write_report", lambda report, *_, **__: reports.append(report) or [folder]
    )
    arguments = ("--reference", reference, "--truth", "emt", "--truth-samples", "3")
    result = run("analyze", saved(folder / "a.h5", 2), *arguments)
    assert result.exit_code == 0, result.output
    assert len(reports[0].section("truth").tables[0].columns["frame"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("none.h5",), "there is no file none.h5"),
        (("water.h5",), "the rollout water has 3 atoms, the reference has 9"),
        (("reference.h5", "--bond-threshold-A", "-1"), "`bond_threshold_A` must be positive"),
        (("reference.h5", "--charge", "1"), "--charge belongs to --truth"),
        (("reference.h5", "--truth", "nonsense"), "there is no calculator 'nonsense'"),
        (("reference.h5@70:",), "takes none of them: write FILE@START:STOP"),
        ((), "Missing argument 'ROLLOUT...'"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run, folder, reference, options, message):
    saved(folder / "water.h5", 3, symbols="H2O")
    result = run("analyze", *options, "--reference", reference)
    assert result.exit_code == 1
    assert message in result.output.strip().splitlines()[-1]
    assert not (folder / "report").exists()


def test_a_folder_that_holds_something_is_refused_before_anything_is_read(run, folder):
    (folder / "report").mkdir()
    (folder / "report" / "notes.txt").touch()
    result = run("analyze", "none.h5", "--reference", "none.h5")
    assert result.exit_code == 1
    assert "holds no report" in result.output


def test_presets_of_the_help_are_those_of_the_package():
    from e2former_calc.report import PRESETS

    option = next(p for p in main.get_command(None, "analyze").params if p.name == "preset")
    assert set(option.type.choices) == set(PRESETS)


def test_the_model_is_evaluated_on_the_reference(run, folder, reference, model, monkeypatch):
    reports = []
    monkeypatch.setattr(
        "e2former_calc.report.write_report", lambda report, *_, **__: reports.append(report) or [folder]
    )
    arguments = ("--reference", reference, "--model", model, "--truth-samples", "3", "--charge", 0)
    result = run("analyze", saved(folder / "a.h5", 2), *arguments)
    assert result.exit_code == 0, result.output
    errors = [quantity.name for quantity in reports[0].section("truth").quantities]
    assert errors == ["force MAE, the reference's frames", "energy MAE, the reference's frames"]


def test_a_model_that_does_not_exist_is_refused(run, folder, reference):
    result = run("analyze", saved(folder / "a.h5", 2), "--reference", reference, "--model", "none.pt")
    assert result.exit_code == 1
    assert "none.pt" in result.output.strip().splitlines()[-1]
