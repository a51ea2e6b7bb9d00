"""Measured training steps: what is reported follows from what is timed, and the same case gives the same frames."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from e2former_calc.benchmark import (
    BenchmarkError,
    Case,
    ModelSpec,
    TrainingCase,
    TrainingResult,
    builtin_structure,
    run_training_in_subprocess,
)
from e2former_calc.benchmark import training as training_module
from e2former_calc.benchmark.training import (
    DISPLACEMENT,
    build_trainer,
    displaced_frames,
    measure_training,
    training_potential,
)
from e2former_calc.potentials.training.compiled import compiler_available

TINY = ModelSpec({"device": "cpu"}, shape="8x1")


def training_case(atoms: Atoms | None = None, *, repeats: int = 2, **of_step: Any) -> TrainingCase:
    structure = molecule("H2O") if atoms is None else atoms
    return TrainingCase(Case.of("water", structure, TINY, repeats=repeats), **of_step)


@pytest.fixture(scope="module")
def result() -> TrainingResult:
    case = Case.of("ethanol", builtin_structure("ethanol"), TINY, threads=1, repeats=3)
    return run_training_in_subprocess(TrainingCase(case, batch_size=2))


def test_throughput_is_that_of_the_median_step(result: TrainingResult) -> None:
    assert result.frames_per_second == pytest.approx(2 / (1e-3 * result.step.median))
    assert result.atoms_per_second == pytest.approx(9 * result.frames_per_second)


def test_case_is_named_in_the_result(result: TrainingResult) -> None:
    assert (result.name, result.threads, result.batch_size, result.compiled) == ("ethanol", 1, 2, False)
    assert (result.atoms, result.repeats, result.device) == (9, 3, "cpu")
    assert 7 < result.neighbors <= 8


def test_plain_steps_have_nothing_to_compile(result: TrainingResult) -> None:
    assert result.compile_seconds is None
    assert result.speedup is None


@pytest.mark.parametrize("name", ["step", "step_cpu"])
def test_quantiles_are_ordered(result: TrainingResult, name: str) -> None:
    times = getattr(result, name)
    assert 0 < times.minimum <= times.lower_quartile <= times.median <= times.upper_quartile


def test_memory_grows_from_loading_to_the_largest(result: TrainingResult) -> None:
    assert 50 < result.memory_loaded <= result.memory_steps <= result.memory_peak < 5000
    assert result.memory_increase == result.memory_steps - result.memory_loaded


def test_result_survives_json(result: TrainingResult) -> None:
    faster = replace(result, speedup=2.5)
    assert TrainingResult.from_dict(json.loads(json.dumps(faster.to_dict()))) == faster


def test_json_holds_the_derived_quantities(result: TrainingResult) -> None:
    written = result.to_dict()
    for name in ("frames_per_second", "atoms_per_second", "memory_increase"):
        assert written[name] == getattr(result, name)


def test_case_survives_json() -> None:
    case = training_case(batch_size=4, compiled=True)
    assert TrainingCase.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        training_case(batch_size=0)


def test_repeats_end_with_the_time_but_two_are_made() -> None:
    case = training_case(repeats=50)
    assert measure_training(replace(case, case=replace(case.case, seconds=1e-9))).repeats == 2


def test_every_step_sees_the_same_frames() -> None:
    batches = build_trainer(training_case(batch_size=3)).training
    for step in range(3):
        assert sorted(batches.indices(step, 3, seed=0)) == [0, 1, 2]


def test_frames_follow_the_seed() -> None:
    first, same, other = (displaced_frames(molecule("H2O"), 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.forces[1], same.forces[1])
    assert torch.equal(first.systems[1].positions, same.systems[1].positions)
    assert not torch.equal(first.systems[1].positions, other.systems[1].positions)


def test_frames_are_different_but_close_to_the_structure() -> None:
    atoms = molecule("H2O")
    shifts = [s.positions - torch.from_numpy(atoms.positions) for s in displaced_frames(atoms, 50).systems]
    assert len({float(shift.sum()) for shift in shifts}) == 50
    assert float(torch.stack(shifts).std()) == pytest.approx(DISPLACEMENT, rel=0.2)


def test_random_numbers_outside_are_left_alone() -> None:
    state = torch.get_rng_state()
    displaced_frames(molecule("H2O"), 2)
    assert torch.equal(state, torch.get_rng_state())


def test_frames_have_the_charge_and_the_cell_of_the_structure() -> None:
    atoms = molecule("H2O", vacuum=2.0, pbc=True)
    atoms.info = {"charge": 1}
    system = displaced_frames(atoms, 1, spin=2).systems[0]
    assert (int(system.charge), int(system.spin), bool(system.pbc.all())) == (1, 2, True)
    assert torch.equal(system.cell[0], torch.from_numpy(atoms.cell.array))


@pytest.mark.parametrize("shape", ["8x1", None])
def test_potential_is_the_one_that_is_trained(tiny_checkpoint: Path, shape: str | None) -> None:
    ignored = {"forces": "head", "neighbor_cap": "official", "charge": 1}
    options = {"model": str(tiny_checkpoint), "device": "cpu", **ignored}
    potential = training_potential(ModelSpec(options, shape=shape))
    assert (potential.force_mode, potential.neighbor_cap) == ("gradient", "none")


def test_periodic_boxes_can_be_trained_on() -> None:
    water = molecule("H2O", vacuum=2.0, pbc=True)
    assert measure_training(training_case(water, batch_size=2)).neighbors > 2


def test_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "compiler_available", lambda device: False)
    with pytest.raises(ValueError, match=r"compiling for cpu needs a C\+\+ compiler .*measure plain steps only"):
        build_trainer(training_case(compiled=True))


def test_random_network_can_be_compiled() -> None:
    """Dropout, which would stand against it, is off."""
    assert TINY.shape is not None
    assert training_potential(TINY).model.config.alpha_dropout == 0


@pytest.mark.parametrize(("code", "stdout", "message"), [
    (-9, "", r"water, batch size 2, compiled: .* killed by SIGKILL: probably out of memory"),
    (0, '{"error": "ValueError: no compiler"}', r"water, batch size 2, compiled: ValueError: no compiler"),
])  # fmt: skip
def test_failure_is_reported_with_the_case(
    monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, message: str
) -> None:
    answer = subprocess.CompletedProcess([], code, stdout, "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    with pytest.raises(BenchmarkError, match=message):
        run_training_in_subprocess(training_case(batch_size=2, compiled=True))


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiling_is_told_from_the_later_steps() -> None:
    result = run_training_in_subprocess(training_case(batch_size=2, compiled=True, repeats=5))
    assert result.compile_seconds == pytest.approx(1e-3 * (result.first_step_ms - result.step.median))
    assert result.compile_seconds > result.step.median / 1e3
    assert result.compiled
