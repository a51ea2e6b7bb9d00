"""`e2former bench --suite md`."""

from __future__ import annotations

import json

import pytest

from e2former_calc.benchmark import BenchmarkError
from e2former_calc.benchmark.dynamics_case import DynamicsCase, Measurement, MemoryUse, StepPart, Timing

RESULTS: dict[str, Measurement] = {
    "loop": Timing("loop", "free atoms", None, 9, 16, 1, "Langevin", 160.0, 150.0, 155.0, 1e5, "ASE Langevin", 23.4),
    "step": StepPart("Ac-Ala3-NHMe", "ala3-gfn2", 42, "Langevin", "integrator", 44.0, 0.011),
    "memory": MemoryUse("free atoms", 42, 20_000, 2_001, 320.0, 0.25),
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[DynamicsCase]:
    """Cases that were measured; nothing is."""
    cases: list[DynamicsCase] = []

    def measure(case: DynamicsCase) -> list[Measurement]:
        cases.append(case)
        if case.part not in RESULTS:
            raise BenchmarkError(f"{case.name}: out of luck")
        return [RESULTS[case.part]]

    monkeypatch.setattr("e2former_calc.cli.bench_dynamics.run_dynamics_in_subprocess", measure)
    return cases


@pytest.mark.parametrize(
    ("part", "cells"),
    [
        ("loop", ["9", "-", "16", "1", "Langevin", "160.0", "150.0", "155.0", "100000", "23.4", "ASE", "Langevin"]),
        ("step", ["42", "ala3-gfn2", "Langevin", "integrator", "44.0", "1.1%"]),
        ("memory", ["42", "20000", "2001", "320", "0.2"]),
    ],
)
def test_numbers_stand_in_the_table(run, measured, part, cells):
    result = run("bench", part, "--suite", "md")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith(("free atoms", "Ac-Ala3")))
    assert line.removeprefix("free atoms").removeprefix("Ac-Ala3-NHMe").split() == cells


def test_numbers_stand_in_the_file(run, folder, measured):
    run("bench", "memory", "--suite", "md", "--out", "x")
    content = json.loads((folder / "x-bench.json").read_text())
    assert content["suite"] == "md"
    assert content["machine"]["torch"]
    assert [(case["part"], case["increase"]) for case in content["cases"]] == [("memory", 0.25)]


def test_a_case_that_fails_is_reported_and_the_others_run(run, folder, measured):
    result = run("bench", "--suite", "md", "--out", "x")
    assert result.exit_code == 1
    assert "Error: replicas, Ac-Ala3-NHMe: out of luck" in result.output
    assert {case.part for case in measured} == {"loop", "models", "replicas", "step", "memory"}
    failed = [case["model"] for case in json.loads((folder / "x-bench.json").read_text())["cases"] if "error" in case]
    assert failed == ["ethanol-rmd17", "ala3-gfn2", "64x3", "64x3", "ala3-gfn2"]


def test_options_change_the_cases(run, measured):
    run("bench", "loop", "--suite", "md", "--threads", "2,4", "--repeats", "3", "--seconds", "0.1", "--seed", "5")
    assert {(case.threads, case.repeats, case.seconds, case.seed) for case in measured} == {((2, 4), 3, 0.1, 5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "8x1"), "--shape has no meaning for --suite md"),
        (("--training",), "--training has no meaning for --suite md"),
        (("ethanol",), "knows loop, models, replicas, step, memory, not 'ethanol'"),
    ],
)
def test_options_of_the_other_suites_are_refused(run, measured, arguments, message):
    result = run("bench", "--suite", "md", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert measured == []
