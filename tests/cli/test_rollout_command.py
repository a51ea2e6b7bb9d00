"""`e2former rollout`: everything from a model to a report, killed, stopped, continued and refused."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import molecule
from click.testing import CliRunner, Result

from e2former_calc.cli import main, md_report
from e2former_calc.cli import rollout as command_module
from e2former_calc.cli.options import ModelOptions
from e2former_calc.report import Report, analyze_rollouts
from e2former_calc.rollout import run as run_module

from .conftest import Run

Rollout = Callable[..., Result]
TINY = ("--replicas", 2, "--time-ps", 0.01, "--every-fs", 1, "--log-every", 10, "--restart-every", 10)
LONG = ("--time-ps", 0.1)


def trembling(path: Path, symbols: str = "H2O") -> Path:
    """A reference of a molecule that trembles, 200 frames."""
    atoms = molecule(symbols)
    noise = 0.03 * np.random.default_rng(1).normal(size=(200, len(atoms), 3))
    with h5py.File(path, "w") as file:
        file.update({"numbers": atoms.numbers, "positions": atoms.positions + noise})
        file.attrs.update({"temperature_K": 300.0, "friction_per_fs": 0.01, "frame_spacing_fs": 10.0})
    return path


def arguments(folder: Path, model: Path, *more: object) -> list[str]:
    """A command for the water molecule; TINY unless others are given."""
    command = ("rollout", "--model", model, "--reference", folder / "reference.h5", "--charge", 0, "--spin", 1)
    return [str(part) for part in (*command, *TINY, "--out", folder / "run", *more)]


def without_figures(*inputs: Any, **options: Any) -> Report:
    """A report that is written quickly."""
    report = analyze_rollouts(*inputs, **options)
    return replace(report, sections=tuple(replace(section, drawings=()) for section in report.sections))


def completed(folder: Path, model: Path, *more: object) -> Path:
    """The folder with a finished rollout in it."""
    trembling(folder / "reference.h5")
    result = CliRunner().invoke(main, arguments(folder, model, *more))
    assert result.exit_code in (0, 2), result.output
    return folder


@pytest.fixture(scope="module")
def tiny_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished rollout as in TINY, to be looked at or copied."""
    return completed(tmp_path_factory.mktemp("tiny"), model)


@pytest.fixture(scope="module")
def long_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted rollout of 200 steps, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "analyze_rollouts", without_figures)
        return completed(tmp_path_factory.mktemp("long"), model, *LONG)


@pytest.fixture
def done(tiny_run: Path, folder: Path) -> Path:
    """The current folder with a finished rollout in it."""
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def rollout(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """Call the command in the current folder; reports are written without figures."""
    monkeypatch.setattr(run_module, "analyze_rollouts", without_figures)

    def call(*more: object) -> Result:
        if not (folder / "reference.h5").exists():
            trembling(folder / "reference.h5")
        return CliRunner().invoke(main, arguments(folder, model, *more))

    return call


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return content


def frames(folder: Path) -> list[np.ndarray]:
    """Positions and velocities of all replicas."""
    found = []
    for replica in range(2):
        for atoms in ase.io.read(folder / "run" / f"replica-{replica}.h5md", ":"):
            found += [atoms.positions, atoms.get_velocities()]
    return found


def same_rollout(one: Path, other: Path) -> bool:
    """Whether two folders hold the same trajectories, log and numbers to the last bit."""
    pairs = list(zip(frames(one), frames(other), strict=True))
    logs = [(folder / "run" / "log.csv").read_bytes() for folder in (one, other)]
    numbers = [[section["quantities"] for section in summary(folder)["sections"].values()] for folder in (one, other)]
    return logs[0] == logs[1] and numbers[0] == numbers[1] and all(np.array_equal(a, b) for a, b in pairs)


def test_one_command_writes_everything(tiny_run: Path) -> None:
    names = {path.name for path in (tiny_run / "run").iterdir()}
    assert names == {
        "report.html", "summary.json", "tables", "figures", "log.csv", "plan.json", "rollout.restart",
        "replica-0.h5md", "replica-0.pdb", "replica-1.h5md", "replica-1.pdb",
    }  # fmt: skip
    assert {path.suffix for path in (tiny_run / "run" / "figures").iterdir()} == {".png", ".svg"}
    assert [len(ase.io.read(tiny_run / "run" / f"replica-{i}.h5md", ":")) for i in range(2)] == [11, 11]


def test_the_page_begins_with_the_verdict_and_says_how_it_was_made(tiny_run: Path) -> None:
    page = (tiny_run / "run" / "report.html").read_text(encoding="utf-8")
    verdict = summary(tiny_run)["verdict"]["sentences"][0]
    assert 0 < page.index(verdict[:20]) < page.index("How the rollouts were made")
    assert summary(tiny_run)["model"]["sha256"] in page


def test_the_summary_tells_everything_that_a_repetition_needs(tiny_run: Path) -> None:
    content = summary(tiny_run)
    assert content["status"] == "complete"
    assert len(content["model"]["sha256"]) == 64
    assert {"e2former_calc", "torch", "ase", "numpy"} <= set(content["versions"])
    assert (content["plan"]["temperature_K"], content["plan"]["friction_per_ps"]) == (300.0, 10.0)
    assert [replica["start"] for replica in content["replicas"]] == [
        "frame 0 of reference.h5", "frame 100 of reference.h5"
    ]  # fmt: skip
    assert content["settings"]["expected_ps"] == 0.01


def test_every_number_has_a_unit_and_an_error_or_a_reason(tiny_run: Path) -> None:
    quantities = [q for section in summary(tiny_run)["sections"].values() for q in section["quantities"]]
    assert quantities
    assert all(q["unit"] and (q["error"] is not None or q["note"]) for q in quantities)


def test_tables_hold_the_run(tiny_run: Path) -> None:
    with open(tiny_run / "run" / "tables" / "run.csv", encoding="utf-8") as file:
        rows = {row["what"]: row["how"] for row in csv.DictReader(file)}
    assert rows["thermostat"] == "Langevin (BAOAB), friction 10 1/ps"
    assert rows["length"] == "0.01 ps, 20 steps, a frame every 1 fs"


def test_there_is_one_line_for_each_report_and_then_the_verdict(rollout: Rollout) -> None:
    lines = rollout().stdout.splitlines()
    assert lines[0].split()[:3] == ["step", "ps", "E_pot/eV"]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "10", "20"]
    assert lines[4].split()[0] in ("Stable:", "Not")


def test_a_terminal_gets_a_bar_and_no_lines(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Bar(md_report.tqdm):  # type: ignore[type-arg, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(md_report, "tqdm", Bar)
    monkeypatch.setattr(md_report, "watched", lambda: True)
    assert "E_pot/eV" not in rollout().stdout
    assert made[0].n == 20


def test_a_finished_rollout_is_kept(rollout: Rollout, done: Path) -> None:
    before = (done / "run" / "replica-0.h5md").read_bytes()
    result = rollout("--seed", 1)
    assert result.exit_code == 1
    assert "is finished: add --resume to continue it or to write its report anew, --overwrite" in result.output
    assert (done / "run" / "replica-0.h5md").read_bytes() == before


def test_resume_of_a_finished_rollout_writes_the_report_anew(rollout: Rollout, done: Path, tiny_run: Path) -> None:
    (done / "run" / "report.html").unlink()
    assert rollout("--resume").exit_code in (0, 2)
    assert summary(done)["run"]["steps_of_this_call"] == 0
    assert (done / "run" / "report.html").exists()
    assert same_rollout(done, tiny_run)


def test_resume_makes_a_rollout_longer(rollout: Rollout, done: Path, long_run: Path) -> None:
    assert rollout("--resume", *LONG).exit_code in (0, 2)
    assert summary(done)["run"]["steps_of_this_call"] == 180
    assert same_rollout(done, long_run)


def test_overwriting_begins_anew(rollout: Rollout, done: Path) -> None:
    assert rollout("--overwrite", "--seed", 1).exit_code in (0, 2)
    assert summary(done)["plan"]["seed"] == 1
    assert summary(done)["run"]["steps_of_this_call"] == 20


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", 9), "is another one: seed was 0, is 9"),
        (("--temperature-K", 200), "is another one: temperature_K was 300.0, is 200.0"),
        (("--dtype", "float64"), "model: dtype was torch.float32, is torch.float64"),
        (("--overwrite",), "--resume continues a rollout and --overwrite replaces it"),
    ],
)
def test_resume_refuses_another_rollout(
    rollout: Rollout, done: Path, more: tuple[object, ...], message: str
) -> None:  # fmt: skip
    result = rollout("--resume", *more)
    assert result.exit_code == 1
    assert message in result.output
    assert frames(done)


def test_a_replica_that_a_rule_stops_in_the_very_last_step_is_not_stable(rollout: Rollout, folder: Path) -> None:
    result = rollout("--time-ps", 0.0005, "--every-fs", 0.5, "--max-force", 1e-6)
    assert result.exit_code == 2, result.output
    assert "replica-0 was stopped in step 1: a force was larger than 1e-06 eV/Å" in result.stdout
    content = summary(folder)
    assert content["verdict"]["stable_rollouts"] == 0
    assert [replica["stopped"]["rule"] for replica in content["replicas"]] == ["FORCE", "FORCE"]


def test_what_a_rule_stopped_is_stopped_after_a_restart_too(rollout: Rollout, folder: Path) -> None:
    rollout("--max-force", 1e-6)
    result = rollout("--max-force", 1e-6, "--resume")
    assert result.exit_code == 2
    assert "replica 1 was stopped in step 1" in result.stderr
    assert summary(folder)["run"]["steps_of_this_call"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "ethanol-rmd17"), "this model was trained on C2H6O only and says nothing about H2O"),
        (("--model", "ethanol-rmd17", "--preset", "md22-dha"), "C22H32O2, and the model ethanol-rmd17 only for C2H6O"),
        (("--preset", "md17-aspirin"), "the preset md17-aspirin is for aspirin, C9H8O4, but the reference is H2O"),
        (("--reference", "none.h5"), "there is no file none.h5"),
        (("--structure", "ethanol"), "the rollout from ethanol has 9 atoms, the reference has 3"),
        (("--time-ps", 0.0001), "`time_ps` = 0.0001 is shorter than the time between two frames, 1 fs"),
        (("--temperature-K", -3), "`temperature_K` must be positive, got -3"),
        (("--preset", "md22-dna"), "is not one of"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    rollout: Rollout, folder: Path, more: tuple[object, ...], message: str
) -> None:
    result = rollout(*more)
    assert result.exit_code == 1
    assert message in result.stderr.strip().splitlines()[-1]
    assert not (folder / "run").exists()


def test_frames_of_the_rollout_are_held_against_the_ground_truth(rollout: Rollout, folder: Path) -> None:
    result = rollout("--truth", "emt", "--truth-samples", 3)
    assert result.exit_code in (0, 2), result.output
    content = summary(folder)
    assert content["settings"]["truth_samples"] == 3
    names = {quantity["name"] for quantity in content["sections"]["truth"]["quantities"]}
    assert {"force MAE, replica-0", "energy MAE, replica-1", "force MAE, the reference's frames"} <= names


@pytest.mark.parametrize(
    ("more", "message"),
    [(("--truth", "nonsense"), "nonsense"), (("--truth-options", "a=1"), "--truth-options belongs to --truth")],
)
def test_a_ground_truth_that_does_not_exist_is_refused_before_anything_is_simulated(
    rollout: Rollout, folder: Path, more: tuple[object, ...], message: str
) -> None:
    result = rollout(*more)
    assert result.exit_code == 1
    assert message in result.stderr.strip().splitlines()[-1]
    assert not (folder / "run").exists()


def test_one_calculator_serves_simulation_and_report(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = ModelOptions.calculator
    monkeypatch.setattr(ModelOptions, "calculator", lambda *args, **more: made.append(1) or original(*args, **more))
    assert rollout().exit_code in (0, 2)
    assert len(made) == 1


def test_a_model_without_bundled_reference_needs_one(run: Run) -> None:
    result = run("rollout", "--model", "ethanol-rmd17")
    assert result.exit_code == 1
    assert "there are ['ala3-gfn2']: give your own with --reference" in result.output


def test_a_folder_with_other_files_is_refused_before_a_model_is_loaded(rollout: Rollout, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").touch()
    result = rollout("--overwrite", "--model", "no-such-model")
    assert result.exit_code == 1
    assert "is not empty and holds no rollout" in result.output


def test_other_conditions_than_published_are_said_to_be_so(rollout: Rollout, folder: Path) -> None:
    trembling(folder / "reference.h5", "CH3CH2OH")
    shared = ("--model", "ethanol-rmd17", "--preset", "md17-ethanol")
    result = rollout(*shared, "--replicas", 1, "--every-fs", 50, "--time-ps", 0.1)
    assert result.exit_code in (0, 2), result.output
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Published numbers of md17-ethanol are of other conditions (length 300 ps)" in page
    assert summary(folder)["settings"]["temperature_K"] == 500.0


def test_presets_of_the_help_are_those_of_the_package() -> None:
    from e2former_calc.rollout import PRESETS

    assert tuple(PRESETS) == command_module.NAMES


def start(folder: Path, model: Path) -> subprocess.Popen[str]:
    """A long rollout in a process of its own; it has been under way for some steps when this returns."""
    trembling(folder / "reference.h5")
    process = subprocess.Popen(
        [sys.executable, "-m", "e2former_calc", *arguments(folder, model, *LONG)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().lstrip().startswith("20 "):
        assert process.poll() is None
    return process


def test_a_killed_rollout_continues_bit_for_bit(rollout: Rollout, model: Path, folder: Path, long_run: Path) -> None:
    process = start(folder, model)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "is not finished: add --resume" in rollout(*LONG).output
    assert rollout(*LONG, "--resume").exit_code in (0, 2)
    assert 0 < summary(folder)["run"]["steps_of_this_call"] < 200
    assert same_rollout(folder, long_run)


def test_sigterm_ends_a_rollout_in_good_order(rollout: Rollout, model: Path, folder: Path, long_run: Path) -> None:
    process = start(folder, model)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "the same command with --resume continues, bit for bit" in errors
    content = summary(folder)
    assert (content["status"], content["steps"]) == ("interrupted", 200)
    assert not (folder / "run" / "report.html").exists()
    result = rollout(*LONG, "--resume")
    assert f"continuing at step {content['step']} of 200" in result.stderr
    assert same_rollout(folder, long_run)
