from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import molecule
from ase.io import write
from click.testing import CliRunner
from click.testing import Result as CommandResult

from e2former_calc.benchmark import BUILTIN_STRUCTURES, BenchmarkError, Case, Quantiles, Result
from e2former_calc.cli import bench as bench_module
from e2former_calc.cli import main

TIMES = Quantiles(2.0, 1.0, 1.5, 2.5)
MEASURED = Result(
    name="?", threads=1, atoms=9, neighbors=8.0, repeats=3, load_ms=5.0, first_call_ms=9.0, energy=TIMES,
    energy_forces=TIMES, energy_forces_cpu=TIMES, neighbor_list=TIMES, model=TIMES, rest=TIMES,
    memory_loaded=100.0, memory_peak=123.0, device="cpu",
)  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Cases that the command asks for; each gets the same answer, a structure called bad.xyz an error."""
    asked: list[Case] = []

    def answer(case: Case) -> Result:
        asked.append(case)
        if case.name == "bad.xyz":
            raise BenchmarkError("bad.xyz: elements Xe are not covered")
        return replace(MEASURED, name=case.name, threads=case.threads)

    monkeypatch.setattr(bench_module, "run_in_subprocess", answer)
    return asked


def run(*arguments: object) -> CommandResult:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_random_network_is_timed_and_written(tmp_path: Path) -> None:
    result = run("ethanol", "--shape", "8x1", "--repeats", 2, "--device", "cpu", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "E+forces" in result.output
    content = json.loads((tmp_path / "run-bench.json").read_text())
    assert content["model"]["shape"] == "8x1"
    assert content["machine"]["torch"]
    (case,) = content["cases"]
    assert case["name"] == "ethanol"
    assert case["energy_forces"]["median"] > 0


def test_all_built_in_structures_are_the_default(measured: list[Case]) -> None:
    assert run("--shape", "8x1").exit_code == 0
    assert [case.name for case in measured] == list(BUILTIN_STRUCTURES)


def test_every_number_of_threads_is_a_case(measured: list[Case]) -> None:
    assert run("--shape", "8x1", "ethanol", "--threads", "1,2,4").exit_code == 0
    assert [case.threads for case in measured] == [1, 2, 4]


def test_model_file_and_options_reach_the_case(measured: list[Case], tiny_checkpoint: Path, tmp_path: Path) -> None:
    structure = tmp_path / "water.xyz"
    write(structure, molecule("H2O"))
    result = run(structure, "--model", tiny_checkpoint, "--dtype", "float64", "--charge", 1, "--neighbor-cap", "none")
    assert result.exit_code == 0, result.output
    (case,) = measured
    assert (case.name, len(case.to_atoms())) == ("water.xyz", 3)
    chosen = {"model": str(tiny_checkpoint), "dtype": "float64", "charge": 1, "neighbor_cap": "none"}
    assert {key: case.model.options[key] for key in chosen} == chosen


def test_failed_case_is_reported_and_the_others_run(measured: list[Case], tmp_path: Path) -> None:
    write(tmp_path / "bad.xyz", molecule("H2O"))
    result = run(tmp_path / "bad.xyz", "ethanol", "--shape", "8x1", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "elements Xe are not covered" in result.output
    cases = json.loads((tmp_path / "run-bench.json").read_text())["cases"]
    assert cases[0]["error"] == "bad.xyz: elements Xe are not covered"
    assert cases[1]["name"] == "ethanol"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--shape", "8x1", "--threads", "0"], "positive integers such as 1,2,4, got '0'"),
    (["--shape", "8x1", "--threads", "two"], "got 'two'"),
    (["--shape", "huge"], "a shape is CHANNELSxLAYERS"),
    (["--shape", "8x1", "--model", "m.pt"], "exclude each other"),
    (["--model", "missing.pt"], "no model file 'missing.pt'"),
    (["--shape", "8x1", "missing.xyz"], "no structure file"),
])  # fmt: skip
def test_wrong_input_is_refused_before_measuring(measured: list[Case], arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert measured == []
