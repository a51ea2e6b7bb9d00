"""`e2former bench --suite cpu` and `--suite gpu`, with made-up measurements."""

from __future__ import annotations

import json

import pytest
import torch

from e2former_calc.benchmark import BenchmarkError, ComparisonCase, ComparisonResult
from e2former_calc.benchmark import suite as suite_module
from e2former_calc.benchmark.case import Quantiles
from e2former_calc.benchmark.comparison import Contender
from e2former_calc.benchmark.precision import PrecisionResult
from e2former_calc.benchmark.step import StepResult

PRECISION = PrecisionResult("m", "x", 42, 2e-6, 1e-8, 1e-8, 1e-12, 3.0)


def quantiles(median: float) -> Quantiles:
    return Quantiles(median, median, median, median)


def compared(case: ComparisonCase, *, memory_of: object) -> ComparisonResult:
    """The last implementation but peers takes 5 ms on one thread, every other one 40 ms."""
    own = [name for name in case.implementations if name != "gfn2"]
    contenders = []
    for name in case.implementations:
        median = 5.0 / case.threads if name == own[-1] else 40.0
        samples = (median, median)
        contenders.append(Contender(name, quantiles(median), None, 40.0 / median, memory=700.0, samples=samples))
    missing = {peer.name: f"{peer.name}: out of luck" for peer in case.peers if peer.python == "bad"}
    contenders += [
        Contender(peer.name, quantiles(50.0), None, 0.8, samples=(50.0, 50.0), version="1.2", description="a fake")
        for peer in case.peers
        if peer.name not in missing
    ]
    model = case.case.model.label
    return ComparisonResult(case.name, model, case.threads, 42, 20.0, 3, "cpu", 90.0, None, tuple(contenders), missing)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, a GPU, and no measurements."""
    monkeypatch.setattr(suite_module, "run_comparison_in_subprocess", compared)
    monkeypatch.setattr(suite_module, "run_precision_in_subprocess", lambda case: PRECISION)
    monkeypatch.setattr(
        suite_module, "run_step_in_subprocess",
        lambda step: StepResult("m", "x", 42, step.replicas, step.execution, "?", 500.0, 60.0),
    )  # fmt: skip
    monkeypatch.setattr(suite_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def findings(folder) -> dict[tuple[str, str], dict]:
    content = json.loads((folder / "x-bench.json").read_text())
    return {(entry["work"], entry["quantity"]): entry for entry in content["findings"]}


def test_numbers_are_judged_by_their_aims(run, folder, machine):
    result = run("bench", "--suite", "cpu", "--out", "x")
    assert result.exit_code == 0, result.output
    found = findings(folder)
    aspirin = found["256x4, aspirin", "faster than the baseline"]
    assert (aspirin["value"], aspirin["limit"], aspirin["reached"]) == (8.0, 3.2, True)
    assert found["256x4, 216 waters", "memory"]["reached"] is False
    assert found["64x3, 216 waters, 2 threads", "faster than 1 thread"]["value"] == 2.0
    assert found["ala3-gfn2, Ac-Ala3-NHMe, MD", "share of a step"]["value"] == pytest.approx(12.0)
    assert found["ala3-gfn2, Ac-Ala3-NHMe, against float64", "force error"]["reached"] is True
    assert (folder / "x-bench.png").exists()


def test_gpu_suite_counts_per_atom_and_per_second(run, folder, machine):
    assert run("bench", "--suite", "gpu", "--out", "x").exit_code == 0
    found = findings(folder)
    assert found["256x4, water-3375", "time per atom and step"]["value"] == pytest.approx(1e3 * 5.0 / 42)
    assert found["ala3-gfn2, Ac-Ala3-NHMe, MD", "steps per second"]["value"] == 2000.0
    assert found["ala3-gfn2, Ac-Ala3-NHMe, MD, 64 replicas", "throughput of one replica"]["value"] == 64.0


def test_one_core_leaves_the_scaling_open(run, folder, machine, monkeypatch):
    monkeypatch.setattr(suite_module, "usable_cores", lambda: 1)
    result = run("bench", "--suite", "cpu", "--out", "x")
    assert result.exit_code == 1
    assert "2 threads need 2 cores, this process may use 1" in result.output
    entry = findings(folder)["64x3, 216 waters, 2 threads", "faster than 1 thread"]
    assert (entry["value"], entry["reached"]) == (None, None)


def test_measurement_that_fails_leaves_the_others(run, folder, machine, monkeypatch):
    def fail(case: ComparisonCase, *, memory_of: object) -> ComparisonResult:
        raise BenchmarkError(f"{case.name}: out of luck")

    monkeypatch.setattr(suite_module, "run_comparison_in_subprocess", fail)
    result = run("bench", "--suite", "cpu", "--out", "x")
    assert result.exit_code == 1
    assert "aspirin: out of luck" in result.output
    assert findings(folder)["ala3-gfn2, Ac-Ala3-NHMe, MD", "list and integrator"]["value"] == 60.0
    assert not (folder / "x-bench.png").exists()


def test_suite_without_peers_leaves_their_row_open(run, folder, machine, monkeypatch):
    monkeypatch.setattr(suite_module, "is_installed", lambda peer: False)
    assert run("bench", "--suite", "cpu", "--out", "x").exit_code == 0
    entry = findings(folder)["ala3-gfn2, Ac-Ala3-NHMe", "faster than GFN2-xTB"]
    assert (entry["value"], entry["remark"]) == (None, "not measured here")


def test_peers_are_measured_beside_the_compact_network(run, folder, machine):
    result = run("bench", "--suite", "cpu", "--peer", "mace=good", "--out", "x")
    assert result.exit_code == 0, result.output
    assert result.output.count(" mace 1.2 ") == 2
    found = {work: entry for (work, quantity), entry in findings(folder).items() if quantity == "faster than mace"}
    assert set(found) == {"64x3, Ac-Ala3-NHMe", "64x3, 216 waters"}
    assert all((entry["value"], entry["reached"]) == (10.0, True) for entry in found.values())


def test_a_peer_that_is_missing_is_one_line(run, folder, machine):
    result = run("bench", "--suite", "cpu", "--peer", "mace=bad", "--out", "x")
    assert result.exit_code == 0, result.output
    assert result.output.count("mace: out of luck") == 1
    entry = findings(folder)["64x3, 216 waters", "faster than mace"]
    assert (entry["value"], entry["remark"]) == (None, "mace: out of luck")


def test_peers_have_no_meaning_for_the_gpu_suite(run, machine):
    result = run("bench", "--suite", "gpu", "--peer", "mace=good")
    assert result.exit_code != 0
    assert "--peer has no meaning for --suite gpu" in result.output


def test_gpu_suite_needs_a_device(run, machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("bench", "--suite", "gpu")
    assert result.exit_code != 0
    assert "--suite gpu needs a CUDA device, and torch sees none" in result.output


@pytest.mark.parametrize(("arguments", "message"), [
    (("--shape", "8x1"), "--shape has no meaning for --suite cpu"),
    (("--compare", "fused"), "--compare has no meaning for --suite cpu"),
    (("ethanol",), "structures has no meaning for --suite cpu"),
])  # fmt: skip
def test_options_of_other_suites_are_refused(run, machine, arguments, message):
    result = run("bench", "--suite", "cpu", *arguments)
    assert result.exit_code != 0
    assert message in result.output
