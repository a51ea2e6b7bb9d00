"""`e2former bench --suite original`."""

from __future__ import annotations

import json

import pytest

from e2former_calc.benchmark import BenchmarkError
from e2former_calc.benchmark.original import OriginalCase, OriginalResult


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[OriginalCase]:
    """Cases that were measured; nothing is."""
    cases: list[OriginalCase] = []

    def measure(case: OriginalCase) -> OriginalResult:
        cases.append(case)
        if case.order == "second":
            raise BenchmarkError("aspirin, second order: out of luck")
        return OriginalResult(case.structure, case.order, case.shape, case.threads, 21, 15.0, 3, 10.0, 25.0, 2.5, 1e-6)

    monkeypatch.setattr("e2former_calc.cli.bench_original.run_original_in_subprocess", measure)
    return cases


def test_every_order_has_a_line_and_an_entry_in_the_file(run, folder, measured):
    result = run("bench", "aspirin", "--suite", "original", "--shape", "32x1", "--out", "x")
    assert result.exit_code == 1
    assert "Error: aspirin, second order: out of luck" in result.output
    lines = [line.split() for line in result.output.splitlines() if line.startswith("aspirin")]
    assert lines[0] == ["aspirin", "first", "21", "15.0", "1", "10.0", "25.0", "2.50", "1.0e-06"]
    content = json.loads((folder / "x-bench.json").read_text())
    assert [case.get("ratio") for case in content["cases"]] == [2.5, None, 2.5]
    assert {case.shape for case in measured} == {"32x1"}


def test_options_of_other_suites_are_refused(run, measured):
    result = run("bench", "--suite", "original", "--training")
    assert result.exit_code == 1
    assert "--training has no meaning for --suite original" in result.output
