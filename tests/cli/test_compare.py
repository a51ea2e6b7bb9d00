"""`e2former compare`."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.cli.compare import named_runs
from e2former_calc.report import analyze_rollouts
from e2former_calc.report.tables import summary
from e2former_calc.report.writing import write_folder


def saved(path: Path, seed: int, *, width_A: float = 0.03, symbols: str = "CH3CH2OH") -> Path:
    """A file of 60 frames of a trembling molecule."""
    atoms, rng = molecule(symbols), np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update({"frame_spacing_fs": 10.0, "temperature_K": 300.0})
        file["numbers"] = atoms.numbers
        file["positions"] = atoms.positions + width_A * rng.normal(size=(60, len(atoms), 3))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories of two models, two references, and reports without figures."""
    home = tmp_path_factory.mktemp("runs")
    saved(home / "water.h5", 3, symbols="H2O")
    for name, seed, width in (("reference", 1, 0.03), ("other", 9, 0.03), ("a-0", 2, 0.03), ("b-0", 4, 0.06)):
        saved(home / f"{name}.h5", seed, width_A=width)
    for name, rollout, reference in (("A", "a-0", "reference"), ("B", "b-0", "reference"), ("C", "b-0", "other")):
        report = analyze_rollouts([home / f"{rollout}.h5"], home / f"{reference}.h5")
        tables = [table for section in report.sections for table in section.tables]
        write_folder(home / name, tables, [], overwrite=False, content=summary(report), page=lambda _: "")
    return home


@pytest.fixture
def files(prepared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is that of the prepared files."""
    monkeypatch.chdir(prepared)
    return prepared


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn."""
    monkeypatch.setattr("e2former_calc.report.lineup_page.write_lineup", lambda *_, **__: [Path("report.html")])


def test_trajectories_are_judged_and_compared(run, folder, files):
    out = folder / "comparison"
    result = run("compare", "good=a-0.h5", "b-0.h5", "--reference", "reference.h5", "--out", out)
    assert result.exit_code == 0, result.output
    assert "Rollouts stable to the end: good 1 of 1, b-0 1 of 1." in result.output
    head = next(line for line in result.output.splitlines() if "noise floor" in line and "unit" in line)
    assert head.split() == ["good", "b-0", "noise", "floor", "reference", "unit"]
    content = json.loads((out / "summary.json").read_text())
    assert [entry["name"] for entry in content["runs"]] == ["good", "b-0"]
    assert content["options"]["reference"] == "reference.h5"
    assert (out / "report.html").exists()


def test_folders_and_trajectories_go_together(run, folder, files, no_figures):
    result = run("compare", "A", "b-0.h5", "--reference", "reference.h5", "--out", folder / "both")
    assert result.exit_code == 0, result.output
    assert "h(r) MAE" in result.output


def test_folders_need_no_reference(run, folder, files, no_figures):
    result = run("compare", "A", "B", "--out", folder / "both")
    assert result.exit_code == 0, result.output
    assert "A is closer to the reference than B by more than their errors" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A",), "a comparison needs two runs or more, got 1"),
        (("A", "b-0.h5"), "the run b-0 is no folder of a report: give --reference"),
        (("A", "A"), "two runs are called 'A': give names, NAME=RUN"),
        (("A", "B", "--out", "A", "--overwrite"), "A is one of the runs and would be replaced"),
        (("A", "B", "--reference", "b-0.h5"), "reference.h5, not against b-0.h5"),
        (("A", "C"), "the run C cannot be compared with A: its reference is"),
        (("A", "none.h5", "--reference", "reference.h5"), "there is no file none.h5"),
        (("A", "b-0.h5", "--reference", "other.h5"), "cannot be compared with A: its reference is other.h5"),
        (("A", "b-0.h5", "--reference", "reference.h5", "--preset", "md22"), "r_max_A is 15.0, not 10.0"),
        (("A", "water.h5", "--reference", "reference.h5"), "the rollout water has 3 atoms, the reference has 9"),
        (("A", "x="), "names no folder and no trajectory"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run, folder, files, arguments, message):
    result = run("compare", "--out", folder / "comparison", *arguments)
    assert result.exit_code == 1
    assert message in result.output.strip().splitlines()[-1]
    assert not (folder / "comparison").exists()


def test_names_come_from_files_unless_given(folder):
    (folder / "odd=name.h5").touch()
    assert named_runs(["odd=name.h5", "x=a.h5,b.h5", "runs/c.h5"]) == [
        ("odd=name", ["odd=name.h5"]), ("x", ["a.h5", "b.h5"]), ("c", ["runs/c.h5"])
    ]  # fmt: skip
