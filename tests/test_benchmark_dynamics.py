"""The benchmark of molecular dynamics measures what it says."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from e2former_calc.benchmark import BenchmarkError
from e2former_calc.benchmark import dynamics as bench
from e2former_calc.benchmark.dynamics import (
    Competitor,
    ase_dynamics,
    measure_dynamics,
    race,
    run_dynamics_in_subprocess,
    simulation,
    steps_of,
    velocity_verlet,
    warm,
)
from e2former_calc.benchmark.dynamics_case import DEFAULT_CASES, DynamicsCase, StepPart, Timing, measurement
from e2former_calc.benchmark.free_atoms import FreeAtoms, gas
from e2former_calc.md.integrators import VelocityVerlet

OWN = ["VelocityVerlet", "Langevin", "Bussi", "NoseHooverChain", "StochasticCellRescaling"]


@pytest.fixture(autouse=True)
def same_threads():
    """Cases set the number of threads of their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(part: str, **values: Any) -> list[Any]:
    """A tiny case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure_dynamics(DynamicsCase(part, repeats=1, seconds=1e-3, **values))


def test_loops_of_both_engines_are_timed():
    results = measured("loop", atoms=3, replicas=(1, 2))
    assert [(r.what, r.replicas) for r in results if not r.what.startswith("ASE")] == [
        (name, n) for n in (1, 2) for name in OWN
    ]
    assert all(r.baseline.startswith("ASE ") and r.microseconds > 0 and r.atoms == 3 for r in results)


def test_models_run_in_both_engines():
    results = measured("models", structure="ethanol", model="8x1")
    assert [r.what for r in results] == ["ASE VelocityVerlet", "ASE VelocityVerlet, skin 0.5 Å", "VelocityVerlet"]
    assert {(r.atoms, r.baseline) for r in results} == {(9, "ASE VelocityVerlet")}


def test_replicas_are_compared_with_one():
    results = measured("replicas", structure="ethanol", model="8x1", replicas=(1, 2))
    assert [(r.replicas, r.threads) for r in results] == [(1, 1), (2, 1)]
    assert {r.baseline for r in results} == {"VelocityVerlet, 1 replica, 1 thread"}


def test_parts_of_a_step_add_up():
    results = measured("step", structure="ethanol", model="8x1")
    for integrator in ("VelocityVerlet", "Langevin"):
        parts = [r for r in results if r.integrator == integrator]
        assert sum(r.share for r in parts) == pytest.approx(1.0)
        assert max(parts, key=lambda r: r.share).what == "model"


def test_memory_is_read_where_the_case_says():
    results = measured("memory", atoms=3, lengths=(20, 40))
    assert [(r.steps, r.frames) for r in results] == [(20, 3), (40, 5)]
    assert results[0].increase == 0.0
    assert results[1].increase == pytest.approx(results[1].memory - results[0].memory)


def counted(calls: list[tuple[str, int]], name: str, milliseconds: float, **values: int) -> Competitor:
    """A competitor of known speed, in a clock of its own."""

    def run(steps: int) -> float:
        calls.append((name, steps))
        return milliseconds * steps

    return Competitor(name, run, baseline=("slow", 1, 1), **values)


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are what a run returns, in ms."""
    monkeypatch.setattr(bench, "timed", lambda call: (call(), None))


@pytest.mark.usefixtures("own_clock")
def test_ratios_count_the_steps_of_all_replicas():
    calls: list[tuple[str, int]] = []
    entrants = [counted(calls, "slow", 1.0), counted(calls, "batch", 2.0, replicas=8)]
    slow, batch = race(DynamicsCase("loop", repeats=3), entrants)
    assert (slow.ratio, batch.ratio) == (1.0, pytest.approx(4.0))
    assert (slow.steps_per_second, batch.steps_per_second) == (pytest.approx(1000.0), pytest.approx(4000.0))
    assert (batch.microseconds, batch.fastest) == (pytest.approx(2000.0), pytest.approx(2000.0))


@pytest.mark.usefixtures("own_clock")
def test_competitors_take_turns_with_runs_of_the_same_length():
    calls: list[tuple[str, int]] = []
    race(DynamicsCase("loop", repeats=2), [counted(calls, "slow", 50.0), counted(calls, "fast", 0.1)])
    assert calls[-4:] == [("slow", 5), ("fast", 256)] * 2


def test_a_stopped_replica_is_an_error():
    atoms = gas(2)
    atoms.set_velocities(np.full((2, 3), 1e300))
    run = steps_of(simulation(atoms, FreeAtoms(), VelocityVerlet(1e9), DynamicsCase("loop")))
    with pytest.raises(BenchmarkError, match="a replica was stopped at step 1: energy, forces or velocities"):
        run(3)


def test_both_engines_move_free_atoms_the_same_way():
    atoms = gas(5)
    warm(atoms, seed=1)
    other = ase_dynamics(atoms)["VelocityVerlet"]
    own = simulation(atoms, FreeAtoms(), velocity_verlet(), DynamicsCase("loop"))
    own.run(20)
    other.run(20)
    assert np.allclose(own.atoms().positions, other.atoms.positions, rtol=0, atol=1e-12)
    assert not np.allclose(own.atoms().positions, atoms.positions, atol=1e-2)


def test_warm_atoms_have_the_temperature_of_the_thermostat():
    atoms = gas(1000)
    warm(atoms, seed=0)
    assert atoms.get_temperature() == pytest.approx(bench.TEMPERATURE_K, rel=5 * (2 / 3000) ** 0.5)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=lambda case: f"{case.name}, {case.atoms}")
def test_cases_survive_the_way_to_another_process(case: DynamicsCase):
    assert DynamicsCase.from_dict(json.loads(json.dumps(case.to_dict()))) == case


@pytest.mark.parametrize(
    "result",
    [
        Timing("loop", "free atoms", None, 3, 1, 1, "Langevin", 2.0, 1.0, 1.5, 5e5, "ASE Langevin", 3.0),
        StepPart("ethanol", "8x1", 9, "Langevin", "model", 2.0, 0.5),
    ],
)
def test_results_survive_the_way_back(result: Timing | StepPart):
    part = "step" if isinstance(result, StepPart) else "loop"
    assert measurement(part, json.loads(json.dumps(asdict(result)))) == result


def test_the_cases_are_those_that_are_asked_for():
    sizes = {(case.part, case.atoms if case.model is None else case.structure) for case in DEFAULT_CASES}
    assert {("loop", n) for n in (9, 42, 192, 648)} <= sizes
    assert {("models", name) for name in ("ethanol", "Ac-Ala3-NHMe", "water-64", "water-216")} <= sizes
    assert next(case.replicas for case in DEFAULT_CASES if case.part == "replicas") == (1, 4, 16)


def test_failures_name_the_case():
    with pytest.raises(BenchmarkError, match=r"models, nothing: ValueError: no built-in structure 'nothing'"):
        run_dynamics_in_subprocess(DynamicsCase("models", "nothing", model="8x1"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"part": "loops"}, "`part` must be one of .*, got 'loops'"),
        ({"replicas": (1, 0)}, r"`replicas` must be at least 1, got \(1, 0\)"),
        ({"threads": ()}, r"`threads` must be at least 1, got \(\)"),
        ({"repeats": 0}, "`repeats` must be at least 1, got 0"),
        ({"seconds": 0.0}, r"`seconds` must be positive, got 0\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DynamicsCase(**{"part": "loop", **values})
