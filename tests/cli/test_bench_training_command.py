from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import molecule
from ase.io import write
from click.testing import CliRunner
from click.testing import Result as CommandResult

from e2former_calc.benchmark import TRAINING_STRUCTURES, BenchmarkError, Quantiles, TrainingCase, TrainingResult
from e2former_calc.cli import bench_training, main

PLAIN, COMPILED = Quantiles(30.0, 28.0, 29.0, 31.0), Quantiles(10.0, 8.0, 9.0, 11.0)
MEASURED = TrainingResult(
    name="?", threads=1, batch_size=1, compiled=False, atoms=21, neighbors=12.0, repeats=3, load_ms=5.0,
    first_step_ms=60.0, compile_seconds=None, step=PLAIN, step_cpu=PLAIN, memory_loaded=100.0, memory_steps=123.0,
    memory_peak=150.0, device="cpu",
)  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[TrainingCase]:
    """Cases that the command asks for; plain steps take 30 ms, compiled ones 10 ms, bad.xyz fails if it is plain."""
    asked: list[TrainingCase] = []

    def answer(case: TrainingCase) -> TrainingResult:
        asked.append(case)
        if case.case.name == "bad.xyz" and not case.compiled:
            raise BenchmarkError("bad.xyz: elements Xe are not covered")
        result = replace(MEASURED, name=case.case.name, batch_size=case.batch_size, compiled=case.compiled)
        return replace(result, step=COMPILED, compile_seconds=90.0) if case.compiled else result

    monkeypatch.setattr(bench_training, "run_training_in_subprocess", answer)
    return asked


def run(*arguments: object) -> CommandResult:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_training_of_a_random_network_is_timed_and_written(tmp_path: Path) -> None:
    result = run("ethanol", "--training", "--shape", "8x1", "--batch-sizes", 2, "--repeats", 2, "--device", "cpu",
                 "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "frames/s" in result.output
    content = json.loads((tmp_path / "run-bench.json").read_text())
    assert content["model"]["options"]["neighbor_cap"] == "none"
    (case,) = content["cases"]
    assert (case["name"], case["batch_size"], case["compiled"]) == ("ethanol", 2, False)
    assert case["frames_per_second"] == pytest.approx(2000 / case["step"]["median"])


def test_two_molecules_and_five_batch_sizes_are_the_default(measured: list[TrainingCase]) -> None:
    assert run("--training", "--shape", "8x1").exit_code == 0
    expected = [(name, size, False) for name in TRAINING_STRUCTURES for size in (1, 2, 4, 8, 16)]
    assert [(case.case.name, case.batch_size, case.compiled) for case in measured] == expected


def test_plain_steps_follow_the_compiled_ones_that_they_are_compared_with(measured: list[TrainingCase]) -> None:
    arguments = ("aspirin", "--training", "--shape", "8x1", "--compile", "--batch-sizes", "1,4", "--threads", "1,2")
    assert run(*arguments).exit_code == 0
    expected = [(threads, size, compiled) for threads in (1, 2) for size in (1, 4) for compiled in (True, False)]
    assert [(case.threads, case.batch_size, case.compiled) for case in measured] == expected


def test_speedup_is_plain_time_over_compiled_time(measured: list[TrainingCase], tmp_path: Path) -> None:
    result = run("aspirin", "--training", "--shape", "8x1", "--compile", "--batch-sizes", 2, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    plain, compiled = json.loads((tmp_path / "run-bench.json").read_text())["cases"]
    assert (plain["speedup"], compiled["speedup"]) == (None, 3.0)
    ratio = compiled["frames_per_second"] / plain["frames_per_second"]
    assert ratio == pytest.approx(compiled["speedup"])


def test_without_plain_steps_there_is_no_speedup(measured: list[TrainingCase], tmp_path: Path) -> None:
    write(tmp_path / "bad.xyz", molecule("H2O"))
    result = run(tmp_path / "bad.xyz", "--training", "--shape", "8x1", "--compile", "--batch-sizes", 2,
                 "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 1
    assert "Error: bad.xyz: elements Xe are not covered" in result.output
    failed, compiled = json.loads((tmp_path / "run-bench.json").read_text())["cases"]
    assert failed == {"name": "bad.xyz", "threads": 1, "batch_size": 2, "compiled": False,
                      "error": "bad.xyz: elements Xe are not covered"}  # fmt: skip
    assert compiled["speedup"] is None


def test_line_of_the_table_has_throughput_and_memory(measured: list[TrainingCase]) -> None:
    result = run("aspirin", "--training", "--shape", "8x1", "--batch-sizes", 3)
    cells = result.output.splitlines()[-1].split()
    assert cells[4:9] == ["3", "plain", "30.0", "29.0-31.0", "30.0"]
    assert cells[9:] == ["100.0", "2100", "-", "-", "150", "23", "-"]


def test_fine_tuned_model_and_options_reach_the_case(measured: list[TrainingCase], tiny_checkpoint: Path) -> None:
    arguments = ("--model", tiny_checkpoint, "--dtype", "float64", "--seed", 5, "--no-strict", "--batch-sizes", 1)
    assert run("ethanol", "--training", *arguments).exit_code == 0
    (asked,) = measured
    chosen = {"model": str(tiny_checkpoint), "dtype": "float64", "forces": "gradient", "neighbor_cap": "none",
              "strict": False}  # fmt: skip
    assert {key: asked.case.model.options[key] for key in chosen} == chosen
    assert asked.case.model.seed == 5


@pytest.mark.parametrize(("arguments", "message"), [
    (["--batch-sizes", "1,2"], "--batch-sizes belongs to --training"),
    (["--compile"], "--compile belongs to --training"),
    (["--training", "--batch-sizes", "0,1"], "positive integers such as 1,2,4, got '0,1'"),
    (["--training", "--batch-sizes", "many"], "got 'many'"),
    (["--training", "--forces", "head"], "--forces head does not go with --training"),
    (["--training", "--neighbor-cap", "official"], "--neighbor-cap official does not go with --training"),
    (["--training", "--model", "m.pt"], "exclude each other"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    measured: list[TrainingCase], arguments: list[str], message: str
) -> None:
    result = run("aspirin", "--shape", "8x1", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert measured == []


@pytest.mark.parametrize("arguments", [["--forces", "gradient"], ["--forces", "auto"], ["--neighbor-cap", "none"]])
def test_options_that_say_what_training_does_anyway_are_accepted(
    measured: list[TrainingCase], arguments: list[str]
) -> None:
    assert run("aspirin", "--training", "--shape", "8x1", "--batch-sizes", 1, *arguments).exit_code == 0
    assert len(measured) == 1
