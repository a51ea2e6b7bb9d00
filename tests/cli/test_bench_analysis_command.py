"""`e2former bench --suite analysis`."""

from __future__ import annotations

import json

import pytest

from e2former_calc.benchmark import BenchmarkError
from e2former_calc.benchmark.analysis import AnalysisCase, AnalysisResult


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[AnalysisCase]:
    """Cases that were measured; nothing is."""
    cases: list[AnalysisCase] = []

    def measure(case: AnalysisCase) -> list[AnalysisResult]:
        cases.append(case)
        if case.structure == "water-216":
            raise BenchmarkError("water-216: out of luck")
        return [AnalysisResult(case.structure, case.frames, 42, "h(r)", 1.5, 20.0, 6.0, 30.0, 4.0, 1e-6)]

    monkeypatch.setattr("e2former_calc.cli.bench_analysis.run_analysis_in_subprocess", measure)
    return cases


def test_numbers_stand_in_the_table_and_in_the_file(run, folder, measured):
    result = run("bench", "Ac-Ala3-NHMe", "--suite", "analysis", "--frames", "50", "--out", "x")
    assert result.exit_code == 0, result.output
    assert measured == [AnalysisCase("Ac-Ala3-NHMe", 50)]
    line = next(line for line in result.output.splitlines() if line.startswith("Ac-Ala3-NHMe"))
    assert line.split() == ["Ac-Ala3-NHMe", "42", "50", "h(r)", "1.50", "20", "6.00", "30", "4.00", "1.0e-06"]
    content = json.loads((folder / "x-bench.json").read_text())
    assert content["suite"] == "analysis"
    assert content["cases"][0]["speedup"] == 4.0


def test_a_case_that_fails_is_reported_and_the_others_run(run, measured):
    result = run("bench", "--suite", "analysis", "--repeats", "2")
    assert result.exit_code == 1
    assert "Error: water-216: out of luck" in result.output
    assert [(case.structure, case.frames, case.repeats) for case in measured] == [
        ("Ac-Ala3-NHMe", 100_000, 2), ("water-216", 1_000, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "analysis", "--shape", "8x1"), "--shape has no meaning for --suite analysis"),
        (("--suite", "analysis", "--training"), "--training has no meaning for --suite analysis"),
        (("--suite", "analysis", "ethanol"), "knows Ac-Ala3-NHMe, water-216, not 'ethanol'"),
        (("--frames", "50"), "--frames belongs to --suite analysis"),
    ],
)
def test_options_of_the_other_suite_are_refused(run, measured, arguments, message):
    result = run("bench", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert measured == []
