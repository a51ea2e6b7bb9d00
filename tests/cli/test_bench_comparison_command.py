"""`e2former bench --compare`."""

from __future__ import annotations

import json

import pytest

from e2former_calc.benchmark import BenchmarkError, ComparisonCase, ComparisonResult
from e2former_calc.benchmark.case import Quantiles
from e2former_calc.benchmark.comparison import Contender
from e2former_calc.benchmark.floor import Floor

TIMES = Quantiles(2.0, 1.0, 1.5, 2.5)


def answer(case: ComparisonCase) -> ComparisonResult:
    contenders = [
        Contender(name, TIMES, None if name == "gfn2" else TIMES, 1.0 + rank, 3.0, 1e-6, 250.0)
        for rank, name in enumerate(case.implementations)
    ]
    return ComparisonResult(
        case.name, "8x1", case.threads, 9, 8.0, 3, "cpu", 90.0, Floor(0.25, 0.5, 1.0), tuple(contenders)
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[ComparisonCase]:
    """Comparisons that the command asks for; aspirin fails."""
    asked: list[ComparisonCase] = []

    def measure(case: ComparisonCase) -> ComparisonResult:
        asked.append(case)
        if case.name == "aspirin":
            raise BenchmarkError("aspirin: out of luck")
        return answer(case)

    monkeypatch.setattr("e2former_calc.cli.bench_comparison.run_comparison_in_subprocess", measure)
    return asked


def test_implementations_stand_below_each_other(run, folder, measured):
    result = run("bench", "ethanol", "--shape", "8x1", "--compare", "baseline,fused", "--out", "x")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if line.startswith("ethanol")]
    assert lines[1] == [
        "ethanol", "8x1", "9", "1", "fused", "2.00", "3.00", "2.00", "1.50-2.50", "2.00", "222.2", "25", "%",
        "1.0e-06", "250",
    ]  # fmt: skip
    (case,) = json.loads((folder / "x-bench.json").read_text())["cases"]
    assert [one["implementation"] for one in case["contenders"]] == ["baseline", "fused"]
    assert (folder / "x-bench.png").exists()


def test_all_means_the_baseline_and_our_own(run, measured):
    assert run("bench", "ethanol", "--shape", "8x1", "--compare", "all").exit_code == 0
    assert measured[0].implementations == ("baseline", "reference", "blocked", "fused")


def test_a_case_that_fails_is_reported_and_nothing_is_drawn(run, folder, measured):
    result = run("bench", "aspirin", "--shape", "8x1", "--compare", "fused", "--out", "x")
    assert result.exit_code == 1
    assert "Error: aspirin: out of luck" in result.output
    assert not (folder / "x-bench.png").exists()


def test_a_peer_has_no_floor(run, measured):
    pytest.importorskip("tblite")
    result = run("bench", "ethanol", "--shape", "8x1", "--compare", "fused,gfn2")
    line = next(line for line in result.output.splitlines() if " gfn2 " in line)
    assert "%" not in line


@pytest.mark.parametrize(("arguments", "message"), [
    (("--compare", "fast"), "no implementation 'fast'"),
    (("--compare", "fused,fused"), "must be different ones"),
    (("--compare", "fused", "--training"), "--compare and --training exclude each other"),
    (("--compare", "fused", "--implementation", "blocked"), "--compare and --implementation exclude each other"),
])  # fmt: skip
def test_senseless_comparisons_are_refused(run, measured, arguments, message):
    result = run("bench", "ethanol", "--shape", "8x1", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert measured == []


def test_any_cube_of_waters_may_be_named(run, measured):
    assert run("bench", "water-8", "--shape", "8x1", "--compare", "fused").exit_code == 0
    assert len(measured[0].case.to_atoms()) == 24
