"""`e2former bench --compare`."""

from __future__ import annotations

import json

import pytest

from e2former_calc.benchmark import BenchmarkError, ComparisonCase, ComparisonResult
from e2former_calc.benchmark.case import Quantiles
from e2former_calc.benchmark.comparison import Contender
from e2former_calc.benchmark.floor import Floor
from e2former_calc.benchmark.peer import PeerSpec

TIMES = Quantiles(2.0, 1.0, 1.5, 2.5)


def answer(case: ComparisonCase) -> ComparisonResult:
    contenders = [
        Contender(name, TIMES, None if name == "gfn2" else TIMES, 1.0 + rank, 3.0, 1e-6, 250.0)
        for rank, name in enumerate(case.implementations)
    ]
    missing = {peer.name: f"{peer.name}: out of luck" for peer in case.peers if peer.python == "bad"}
    contenders += [
        Contender(peer.name, TIMES, None, 0.25, version="1.2", description="a fake")
        for peer in case.peers
        if peer.name not in missing
    ]
    return ComparisonResult(
        case.name, "8x1", case.threads, 9, 8.0, 3, "cpu", 90.0, Floor(0.25, 0.5, 1.0), tuple(contenders), missing
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


def test_peers_stand_beside_the_implementation_of_the_model(run, folder, measured):
    result = run("bench", "ethanol", "--shape", "8x1", "--peer", "mace=good", "--implementation", "fused", "--out", "x")
    assert result.exit_code == 0, result.output
    assert measured[0].implementations == ("fused",)
    assert measured[0].peers == (PeerSpec("mace", "good"),)
    line = next(line for line in result.output.splitlines() if " mace 1.2 " in line)
    assert line.split()[-3:] == ["-", "-", "-"]
    (case,) = json.loads((folder / "x-bench.json").read_text())["cases"]
    assert (case["contenders"][1]["version"], case["contenders"][1]["description"]) == ("1.2", "a fake")


def test_notes_on_peers_appear_once_and_a_missing_one_is_no_failure(run, measured):
    peers = ("--peer", "mace=good", "--peer", "nequip=bad")
    result = run("bench", "ethanol", "Ac-Ala3-NHMe", "--shape", "8x1", "--compare", "fused", *peers)
    assert result.exit_code == 0, result.output
    assert result.output.count("mace 1.2: a fake") == 1
    assert result.output.count("not measured: nequip: out of luck") == 1
    assert len(measured) == 2


def test_peers_may_come_from_a_file(run, folder, measured):
    (folder / "bench.yaml").write_text("peer: [mace=good, nequip=bad]\nshape: 8x1\n")
    assert run("bench", "ethanol", "--config", "bench.yaml").exit_code == 0
    assert [peer.name for peer in measured[0].peers] == ["mace", "nequip"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--compare", "fast"), "no implementation 'fast'"),
    (("--compare", "fused,fused"), "must be different ones"),
    (("--compare", "fused", "--training"), "--compare and --training exclude each other"),
    (("--peer", "mace"), "a peer is NAME=PYTHON"),
    (("--peer", "gap=python"), "no peer 'gap': choose from mace, nequip, torchani"),
    (("--peer", "mace=a", "--peer", "mace=b"), "peers must be different ones"),
    (("--peer", "mace=a", "--training"), "--peer and --training exclude each other"),
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
