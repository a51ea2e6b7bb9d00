"""Implementations side by side: paired rounds, memory, errors, steps of molecular dynamics, and the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.benchmark import (
    BenchmarkError,
    Case,
    ComparisonCase,
    ComparisonResult,
    ModelSpec,
    builtin_structure,
    run_comparison_in_subprocess,
)
from e2former_calc.benchmark import comparison as comparison_module
from e2former_calc.benchmark import precision as precision_module
from e2former_calc.benchmark.case import Quantiles
from e2former_calc.benchmark.comparison import Contender, measure_comparison
from e2former_calc.benchmark.figure import COLORS, draw_time_per_atom
from e2former_calc.benchmark.floor import Floor
from e2former_calc.benchmark.footprint import FootprintCase, measure_footprint
from e2former_calc.benchmark.implementations import BASELINE, OWN, PEERS, Contestant, build_potential, contestant
from e2former_calc.benchmark.peer import PEER_NAMES
from e2former_calc.benchmark.precision import measure_precision
from e2former_calc.benchmark.step import StepCase, measure_step

TINY = ModelSpec({"device": "cpu", "charge": 0, "spin": 1}, shape="8x1")
WATER = molecule("H2O")
WATER.positions += [0.3, 0.4, 0.5]


def case(**timing: Any) -> Case:
    return Case.of("water", WATER, TINY, **timing)


@pytest.fixture(scope="module")
def result() -> ComparisonResult:
    compared = ComparisonCase(case(repeats=3), ("reference", "baseline", "blocked"))
    return run_comparison_in_subprocess(compared, memory_of=("blocked",))


def test_every_implementation_is_measured_in_every_round(result: ComparisonResult) -> None:
    assert [one.implementation for one in result.contenders] == ["reference", "baseline", "blocked"]
    assert (result.rounds, result.atoms, result.neighbors, result.model) == (3, 3, 2.0, "8x1")
    assert all(one.energy_forces.minimum > 0 for one in result.contenders)


def test_ratios_are_to_the_baseline(result: ComparisonResult) -> None:
    baseline = result.of("baseline")
    assert baseline is not None
    assert (baseline.ratio, baseline.energy_ratio, baseline.force_difference) == (1.0, 1.0, None)
    assert result.of("fused") is None


def test_implementations_agree(result: ComparisonResult) -> None:
    """Float32 rounding of forces of some eV/Å."""
    differences = [one.force_difference for one in result.contenders if one.force_difference is not None]
    assert len(differences) == 2
    assert max(differences) < 1e-5


def test_memory_is_measured_where_it_is_asked_for(result: ComparisonResult) -> None:
    memory = {one.implementation: one.memory for one in result.contenders}
    assert memory["reference"] is None
    assert memory["blocked"] is not None
    assert memory["blocked"] > 0


def test_floor_is_below_what_was_measured(result: ComparisonResult) -> None:
    assert result.floor is not None
    fastest = min(one.energy_forces.minimum for one in result.contenders)
    assert 0 < result.floor.energy < result.floor.energy_forces < fastest


def test_result_survives_json(result: ComparisonResult) -> None:
    assert ComparisonResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_case_survives_json() -> None:
    compared = ComparisonCase(case(threads=2), ("baseline", "fused"))
    assert ComparisonCase.from_dict(json.loads(json.dumps(compared.to_dict()))) == compared


@pytest.mark.parametrize(("names", "message"), [
    (("fast",), "no implementation 'fast': choose from baseline, reference"),
    (("fused", "fused"), "must be different ones"),
    ((), "at least one"),
])  # fmt: skip
def test_senseless_lists_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComparisonCase(case(), names)


def test_peer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2former_calc.benchmark.implementations.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'gfn2' needs tblite: install it, or leave out gfn2"):
        ComparisonCase(case(), ("gfn2",))


def test_peers_alone_are_no_comparison() -> None:
    pytest.importorskip("tblite")
    with pytest.raises(ValueError, match="at least one implementation of this package"):
        measure_comparison(ComparisonCase(case(repeats=1), ("gfn2",)))


def test_implementation_that_does_not_cover_the_model_is_reported() -> None:
    model = ModelSpec({"device": "cpu", "dtype": "float64"}, shape="30x1")
    with pytest.raises(BenchmarkError, match=r"water: ValueError: a shape is CHANNELSxLAYERS"):
        run_comparison_in_subprocess(ComparisonCase(Case.of("water", WATER, model), ("baseline",)))


def test_rounds_are_interleaved_at_the_same_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    def listed(name: str, *arguments: Any) -> Contestant:
        own = contestant(name, *arguments)

        def forces(positions: Any) -> Any:
            calls.append((name, float(positions.sum())))
            return own.energy_forces(positions)

        return replace(own, energy_forces=forces)

    monkeypatch.setattr(comparison_module, "contestant", listed)
    monkeypatch.setattr(comparison_module, "SHORT_MS", 0.0)
    measure_comparison(ComparisonCase(case(repeats=2), ("baseline", "blocked")))
    timed = calls[2:]
    assert [name for name, _ in timed] == ["baseline", "blocked"] * 2
    assert timed[0][1] == timed[1][1] != timed[2][1] == timed[3][1]


def test_footprint_contains_the_loaded_model() -> None:
    found = measure_footprint(FootprintCase(case(), "reference"))
    assert found.peak >= 0
    assert found.device_peak is None


def test_baseline_is_what_is_built() -> None:
    assert "node-centric" in build_potential(TINY, "baseline").prepared.describe()
    assert build_potential(TINY, "reference").prepared is None


def test_errors_are_those_of_rounding_and_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another implementation in place of the fused one, which would have to be compiled, there are no tables."""
    monkeypatch.setattr(
        precision_module, "build_potential",
        lambda model, name: build_potential(model, name.replace("fused", "blocked")),
    )  # fmt: skip
    found = measure_precision(case())
    assert found.table_force < 1e-12 < found.force < 1e-5
    assert found.table_energy < 1e-12 < found.energy < 1e-5
    assert found.largest_force > 1e-3


def test_engine_takes_a_part_of_a_step() -> None:
    found = measure_step(StepCase(case(repeats=2)))
    assert found.engine_us is not None
    assert 0 < found.engine_us < found.step_us
    assert found.engine_share == found.engine_us / found.step_us


def test_step_case_survives_json() -> None:
    step = StepCase(case(), replicas=3, execution="static")
    assert StepCase.from_dict(json.loads(json.dumps(step.to_dict()))) == step


@pytest.mark.parametrize("name", ["water-7", "water-0", "water-"])
def test_waters_that_fill_no_cube_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no built-in structure '{name}'"):
        builtin_structure(name)


def test_any_cube_of_waters_is_built_in() -> None:
    assert len(builtin_structure("water-27")) == 81


def test_figure_is_drawn(tmp_path: Path) -> None:
    times = Quantiles(2.0, 1.0, 1.5, 2.5)
    peers = tuple(Contender(name, times, None, 3.0, version="1.2") for name in (*PEERS, *PEER_NAMES))
    contenders = (Contender("baseline", times, times, 1.0), Contender("fused", times, None, 3.0), *peers)
    first = ComparisonResult("a", "64x3", 1, 9, 8.0, 3, "cpu", 90.0, Floor(0.1, 0.2, 0.3), contenders)
    draw_time_per_atom([first, replace(first, atoms=42), replace(first, threads=2, floor=None)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_every_implementation_has_a_colour() -> None:
    assert set(COLORS) == {BASELINE, *OWN, *PEERS, *PEER_NAMES}


def test_figure_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        draw_time_per_atom([], tmp_path / "x.png")


def test_contestant_returns_forces_at_the_given_positions() -> None:
    one = contestant("reference", WATER, TINY)
    moved = WATER.positions + np.array([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert np.abs(one.energy_forces(moved) - one.energy_forces(WATER.positions)).max() > 0
