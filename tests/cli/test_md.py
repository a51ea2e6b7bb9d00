"""`e2former md`: files, replicas, restart, signals, warnings and exit codes."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from click.testing import CliRunner

from e2former_calc.cli import main, md_report
from e2former_calc.cli.md_protocol import BAROSTATS
from e2former_calc.md.forces import PotentialForces
from e2former_calc.md.restart import read_restart

from .conftest import Run, saved

PROGRAM = (sys.executable, "-m", "e2former_calc", "md")
LONG = 800
SHORT = ("--steps", 20, "--every", 5, "--log-every", 10, "--restart-every", 10, "--friction-per-ps", 10)

Md = Callable[..., Any]


@pytest.fixture
def md(run: Run, model: Path, water: Path) -> Md:
    """Call `e2former md` for the water molecule; options of SHORT unless others are given."""

    def call(*arguments: object) -> Any:
        return run("md", water, "--model", model, *SHORT, "--out", "run", *arguments)

    return call


def completed(folder: Path, model: Path, *arguments: object) -> Path:
    """The folder with a finished run of the water molecule."""
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=1)
    command = ["md", saved(folder / "water.extxyz", atoms), "--model", model, *SHORT, "--out", folder / "run"]
    result = CliRunner().invoke(main, [str(part) for part in (*command, *arguments)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def short(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as in SHORT, to be looked at or copied."""
    return completed(tmp_path_factory.mktemp("short"), model)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of LONG steps."""
    return completed(tmp_path_factory.mktemp("whole"), model, "--steps", LONG)


@pytest.fixture
def done(short: Path, folder: Path) -> Path:
    """The current folder with a finished run in it."""
    for path in short.glob("run*"):
        shutil.copy(path, folder)
    return folder


def summary() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("run-summary.json").read_text())
    return content


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("run.csv").read_text().splitlines()))


def positions(path: str | Path) -> list[np.ndarray]:
    return [atoms.positions for atoms in ase.io.read(path, ":")]


def same_run(one: Path, other: Path) -> bool:
    """Whether two folders hold the same trajectory, log and last structure to the last bit."""
    pairs = list(zip(positions(one / "run.h5md"), positions(other / "run.h5md"), strict=True))
    texts = all((one / name).read_bytes() == (other / name).read_bytes() for name in ("run.csv", "run-final.extxyz"))
    return texts and len(pairs) > 1 and all(np.array_equal(a, b) for a, b in pairs)


def test_a_run_writes_all_its_files(done: Path) -> None:
    names = {"run.h5md", "run.pdb", "run.csv", "run.restart", "run-final.extxyz", "run-summary.json"}
    assert names <= {path.name for path in Path().iterdir()}
    assert [atoms.info["step"] for atoms in ase.io.read("run.h5md", ":")] == [0, 5, 10, 15, 20]
    assert [row["step"] for row in rows()] == ["0", "10", "20"]


def test_reports_have_one_line_each(md: Md) -> None:
    lines = md().stdout.splitlines()
    for word in ("step", "ps", "E_pot/eV", "E_cons/eV", "T/K", "steps/s", "ns/day", "lists", "left"):
        assert word in lines[0].split()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "10", "20"]
    assert lines[4].startswith("complete  20 steps of 20")


def test_the_summary_tells_inputs_versions_and_timings(done: Path, short: Path) -> None:
    content = summary()
    assert content["inputs"][0]["path"] == str(short / "water.extxyz")
    assert content["options"]["temperature"] == 300.0
    assert content["versions"]["e2former_calc"]
    assert content["timings_s"]["run"] > 0.0
    assert (content["results"]["status"], content["results"]["step"]) == ("complete", 20)


def test_the_last_structure_is_that_of_the_trajectory(done: Path) -> None:
    final = ase.io.read("run-final.extxyz")
    assert final.positions == pytest.approx(positions("run.h5md")[-1], abs=1e-7)
    assert final.info["charge"] == 0


def test_a_replica_is_the_same_in_any_batch(md: Md, done: Path) -> None:
    alone = positions("run.h5md")
    result = md("--replicas", 3, "--overwrite")
    assert "3/3" in result.stdout
    together = [positions(f"run-{replica}.h5md") for replica in range(3)]
    assert alone == pytest.approx(np.array(together[0]), abs=1e-5)
    assert not np.allclose(together[0][0] - together[0][-1], together[1][0] - together[1][-1])


def test_time_may_be_given_instead_of_steps(run: Run, model: Path, water: Path) -> None:
    run("md", water, "--model", model, "--time-ps", 0.004, "--timestep-fs", 0.4, "--out", "run")
    assert summary()["results"]["step"] == 10


def test_one_length_must_be_given(run: Run, model: Path, water: Path) -> None:
    result = run("md", water, "--model", model)
    assert result.exit_code == 1
    assert "give the length of the run as --steps or as --time-ps" in result.output


@pytest.mark.parametrize("suffix", [".extxyz", ".traj"])
def test_the_file_name_chooses_the_format(md: Md, suffix: str) -> None:
    assert md("--trajectory", f"path{suffix}").exit_code == 0
    assert len(ase.io.read(f"path{suffix}", ":")) == 5


def test_pressure_and_volume_of_periodic_structures(run: Run, model: Path, salt: Path) -> None:
    result = run("md", salt, "--model", model, *SHORT, "--ensemble", "npt", "--out", "run")
    assert result.exit_code == 0, result.output
    assert {"P/bar", "V/Å^3"} <= set(result.stdout.splitlines()[0].split())
    volumes = [float(row["volume_A3"]) for row in rows()]
    assert volumes[0] == pytest.approx(abs(ase.io.read(salt).cell.volume))
    assert volumes[1] != volumes[0]
    assert rows()[0]["pressure_bar"]


def test_a_molecule_has_no_pressure(run: Run, model: Path, water: Path) -> None:
    result = run("md", water, "--model", model, *SHORT, "--ensemble", "npt")
    assert result.exit_code == 1
    assert "Error:" in result.output


def test_relaxation_comes_first(md: Md) -> None:
    result = md("--relax")
    assert "relaxed in" in result.stderr
    assert positions("run.h5md")[0] == pytest.approx(ase.io.read("run-relaxed.extxyz").positions, abs=1e-12)


def test_files_of_another_run_are_kept(md: Md, done: Path) -> None:
    before = Path("run.h5md").read_bytes()
    result = md("--seed", 1)
    assert result.exit_code == 1
    assert "add --overwrite" in result.output
    assert Path("run.h5md").read_bytes() == before


def test_a_longer_run_continues_a_shorter_one(md: Md, folder: Path) -> None:
    md("--relax", "--steps", 20)
    (folder / "whole").mkdir()
    for path in folder.glob("run*"):
        path.rename(folder / "whole" / path.name)
    md("--relax", "--steps", 13)
    result = md("--relax", "--steps", 20, "--resume")
    assert "continuing at step 13 of 20" in result.stderr
    assert same_run(folder, folder / "whole")


def test_resume_begins_where_nothing_is(md: Md) -> None:
    assert md("--resume").exit_code == 0
    assert summary()["results"]["steps_of_this_call"] == 20


def test_resume_of_a_complete_run_makes_no_step(md: Md, done: Path) -> None:
    before = Path("run.h5md").read_bytes()
    assert md("--resume").exit_code == 0
    assert summary()["results"]["steps_of_this_call"] == 0
    assert Path("run.h5md").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature-K", 200), "integrator: temperature_K was 300.0, is 200.0"),
        (("--thermostat", "bussi"), "integrator: class was Langevin, is Bussi"),
        (("--seed", 9), "options: seed was 0, is 9"),
        (("--dtype", "float64"), "model: dtype was torch.float32, is torch.float64"),
        (("--overwrite",), "--resume continues a run and --overwrite replaces it"),
    ],
)
def test_resume_refuses_another_run(md: Md, done: Path, arguments: tuple[object, ...], message: str) -> None:
    result = md("--resume", *arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_a_damaged_restart_file_is_refused(md: Md, done: Path) -> None:
    Path("run.restart").write_bytes(b"x" * 100)
    result = md("--resume")
    assert result.exit_code == 1
    assert "run.restart is damaged or not a restart file" in result.output


def test_a_torn_trajectory_is_refused_and_left_as_it_is(md: Md, done: Path) -> None:
    Path("run.h5md").write_bytes(Path("run.h5md").read_bytes()[:3000])
    before = Path("run.restart").read_bytes()
    result = md("--resume", "--steps", 30)
    assert result.exit_code == 1
    assert "run.h5md is truncated" in result.output
    assert Path("run.h5md").stat().st_size == 3000
    assert Path("run.restart").read_bytes() == before


@pytest.mark.parametrize("prefix", ["/proc/run", "/sys/run"])
def test_a_folder_of_a_read_only_file_system_is_one_error(md: Md, prefix: str) -> None:
    result = md("--out", prefix)
    assert result.exit_code == 1
    assert [line.startswith("Error: ") for line in result.stderr.splitlines()].count(True) == 1
    assert "writable" in result.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`failing(n)`: from the n-th evaluation of the simulation on the forces are NaN."""
    evaluate, made = PotentialForces.evaluate, [0]

    def install(first: int) -> None:
        def spoiled(self: PotentialForces, *arguments: Any, **options: Any) -> Any:
            result = evaluate(self, *arguments, **options)
            made[0] += 1
            return result if made[0] < first else replace(result, forces=result.forces * torch.nan)

        monkeypatch.setattr(PotentialForces, "evaluate", spoiled)

    return install


def test_a_model_that_returns_nan_loses_nothing_before(md: Md, failing: Callable[[int], None], whole: Path) -> None:
    failing(15)
    result = md("--every", 1)
    assert result.exit_code == 2
    stopped = summary()["results"]["replicas"][0]["stopped"]
    assert stopped["rule"] == "NOT_FINITE"
    assert "energy, forces or velocities were not finite" in result.stdout
    frames = ase.io.read("run.h5md", ":")
    assert [atoms.info["step"] for atoms in frames] == list(range(stopped["last_good_step"] + 1))
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in frames)
    expected = positions(whole / "run.h5md")
    assert all(np.array_equal(frames[5 * index].positions, expected[index]) for index in range(3))


def test_a_model_that_returns_nan_at_once_is_an_error(md: Md, failing: Callable[[int], None]) -> None:
    failing(1)
    result = md()
    assert result.exit_code == 1
    assert "energy or forces of replica 0 are not finite at the start" in result.output


def test_a_folder_that_cannot_be_written_is_refused(md: Md, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _path, mode: not mode & os.W_OK)
    result = md()
    assert result.exit_code == 1
    assert "is not writable: choose another one" in result.output


def test_a_stopped_replica_gives_exit_code_two(md: Md) -> None:
    result = md("--max-force", 1e-6)
    assert result.exit_code == 2
    assert "stopped at step 1: a force was larger than 1e-06 eV/Å" in result.stdout
    stopped = summary()["results"]["replicas"][0]["stopped"]
    assert (stopped["rule"], stopped["step"], stopped["last_good_step"]) == ("FORCE", 1, 0)
    assert "a force was larger" in ase.io.read("run-final.extxyz").info["stopped"]


def test_a_long_step_is_warned_of(md: Md) -> None:
    result = md("--timestep-fs", 1.5)
    assert "Warning: a time step of 1.5 fs is too long for 2 light hydrogen atoms" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--thermostat", "qtb"), "QuantumThermalBath"),
        (("--thermostat", "adqtb"), "AdaptiveQuantumThermalBath"),
        (("--thermostat", "bussi", "--fix-com"), "Bussi"),
    ],
)
def test_every_thermostat_runs_and_continues(md: Md, folder: Path, arguments: tuple[object, ...], rule: str) -> None:
    assert md(*arguments, "--steps", 20).exit_code == 0
    (folder / "whole").mkdir()
    for path in folder.glob("run*"):
        path.rename(folder / "whole" / path.name)
    md(*arguments, "--steps", 13)
    assert read_restart(folder / "run.restart").facts["integrator"]["class"] == rule
    assert md(*arguments, "--steps", 20, "--resume").exit_code == 0
    assert same_run(folder, folder / "whole")


def test_the_cell_may_change_its_shape(run: Run, model: Path, salt: Path) -> None:
    shape = ("--ensemble", "npt", "--barostat", "anisotropic-cell-rescaling")
    result = run("md", salt, "--model", model, *SHORT, *shape, "--out", "run")
    assert result.exit_code == 0, result.output
    first, last = (ase.io.read("run.h5md", index).cell.cellpar() for index in (0, -1))
    assert np.abs(last[:3] / first[:3] - last[0] / first[0]).max() > 1e-9


def test_the_center_of_mass_stays_on_request(md: Md) -> None:
    for arguments, stays in ((("--fix-com",), True), (("--overwrite",), False)):
        assert md(*arguments).exit_code == 0
        centers = [atoms.get_center_of_mass() for atoms in ase.io.read("run.h5md", ":")]
        assert np.allclose(centers, centers[0], rtol=0, atol=1e-12) == stays


def test_without_strictness_a_charge_that_the_model_ignores_is_a_warning(run: Run, water: Path) -> None:
    command = ("md", water, "--model", "ethanol-rmd17", "--charge", 1, *SHORT, "--steps", 2, "--out", "run")
    refused = run(*command)
    assert refused.exit_code == 1
    result = run(*command, "--no-strict")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Warning: charge 1 was given, but this model ignores charge") == 1


def test_an_active_neighbor_cap_is_warned_of(run: Run, model: Path, folder: Path) -> None:
    dense = saved(folder / "dense.extxyz", bulk("Cu", cubic=True))
    command = ("md", dense, "--model", model, *SHORT, "--steps", 1, "--out", "run")
    warned = "the official neighbour selection drops pairs within the cutoff for 4 of 4 atoms"
    assert warned in run(*command).stderr
    assert "neighbour selection" not in run(*command, "--overwrite", "--neighbor-cap", "none").stderr


def test_help_lists_options_under_headings(run: Run) -> None:
    text = run("md", "--help").output
    headings = ("What is simulated:", "When a replica is stopped:", "Output:", "Run:", "Model:", "Other options:")
    places = [text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
    assert places[1] < text.index("--stop-rule") < places[2]
    assert "STRUCTURE" not in text[places[-1] :]


def test_a_terminal_gets_a_bar(md: Md, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Bar(md_report.tqdm):  # type: ignore[type-arg, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(md_report, "tqdm", Bar)
    monkeypatch.setattr(md_report, "watched", lambda: True)
    assert md().exit_code == 0
    assert made[0].n == 20


def start(folder: Path, water: Path, model: Path, *arguments: object) -> subprocess.Popen[str]:
    """A run in a process of its own, long enough to be interrupted; it has begun when this returns."""
    command = [*PROGRAM, water, "--model", model, *SHORT, "--steps", LONG, "--out", "run", *arguments]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while not process.stdout.readline().lstrip().startswith("10 "):
        assert process.poll() is None
    return process


def test_a_run_killed_at_a_random_moment_continues_bit_for_bit(
    run: Run, model: Path, water: Path, folder: Path, whole: Path
) -> None:
    process = start(folder, water, model)
    time.sleep(random.uniform(0.0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = run("md", water, "--model", model, *SHORT, "--steps", LONG, "--out", "run", "--resume")
    assert result.exit_code == 0, result.output
    assert 0 < summary()["results"]["steps_of_this_call"] < LONG
    assert same_run(folder, whole)


@pytest.mark.physics
@pytest.mark.parametrize(
    "options",
    [
        ("--ensemble", "nve"),
        *(("--thermostat", name) for name in ("bussi", "nose-hoover", "qtb", "adqtb")),
        *(("--ensemble", "npt", "--barostat", name) for name in BAROSTATS),
    ],
    ids=lambda options: options[-1],
)
def test_every_integrator_survives_a_kill_at_a_random_moment(
    run: Run, model: Path, water: Path, salt: Path, folder: Path, options: tuple[str, ...]
) -> None:
    structure = salt if "npt" in options else water
    process = start(folder, structure, model, *options)
    time.sleep(random.uniform(0.0, 1.0))
    process.kill()
    process.communicate()
    (folder / "whole").mkdir()
    command = ("md", structure, "--model", model, *SHORT, "--steps", LONG, *options, "--out")
    assert run(*command, "whole/run").exit_code == 0
    assert run(*command, "run", "--resume").exit_code == 0
    assert 0 < summary()["results"]["steps_of_this_call"] < LONG
    assert same_run(folder, folder / "whole")


@pytest.mark.physics
def test_a_run_killed_again_and_again_continues_bit_for_bit(
    run: Run, model: Path, water: Path, folder: Path, whole: Path
) -> None:
    process = start(folder, water, model)
    process.kill()
    process.communicate()
    for _ in range(10):
        command = [*PROGRAM, water, "--model", model, *SHORT, "--steps", LONG, "--out", "run", "--resume"]
        again = subprocess.Popen([str(part) for part in command], cwd=folder, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(3.0, 12.0))
        again.kill()
        again.wait()
    result = run("md", water, "--model", model, *SHORT, "--steps", LONG, "--out", "run", "--resume")
    assert result.exit_code == 0, result.output
    assert same_run(folder, whole)


def test_sigterm_ends_a_run_in_good_order(run: Run, model: Path, water: Path, folder: Path, whole: Path) -> None:
    process = start(folder, water, model)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0
    assert "the same command with --resume continues, bit for bit" in errors
    stopped_at = summary()["results"]["step"]
    assert summary()["results"]["status"] == "interrupted"
    assert 0 < stopped_at < LONG
    result = run("md", water, "--model", model, *SHORT, "--steps", LONG, "--out", "run", "--resume")
    assert f"continuing at step {stopped_at}" in result.stderr
    assert same_run(folder, whole)


def limit_file_size() -> None:
    """From now on no file of the process grows beyond 150 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def test_a_disk_without_space_ends_a_run_with_one_error(model: Path, water: Path, folder: Path) -> None:
    command = [*PROGRAM, water, "--model", model, "--steps", 3000, "--every", 1, "--restart-every", 50]
    command += ["--log-every", 3000, "--out", "run"]
    result = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, preexec_fn=limit_file_size,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "cannot write the trajectory (file too large); what was written before is complete" in errors[0]
    assert "Traceback" not in result.stderr
    steps = [atoms.info["step"] for atoms in ase.io.read(folder / "run.h5md", ":")]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
