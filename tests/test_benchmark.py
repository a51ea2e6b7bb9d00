from __future__ import annotations

import json
import mmap
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule

import e2former_calc
from e2former_calc.benchmark import (
    BUILTIN_STRUCTURES,
    BenchmarkError,
    Case,
    ModelSpec,
    NetworkShape,
    Quantiles,
    Result,
    builtin_structure,
    machine_info,
    run_in_subprocess,
    shape_potential,
)
from e2former_calc.benchmark.implementations import build_calculator
from e2former_calc.benchmark.machine import source_commit
from e2former_calc.benchmark.memory import peak_memory, reset_peak_memory, resident_memory
from e2former_calc.benchmark.worker import measure
from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.potentials.system import System

TINY = ModelSpec({"device": "cpu"}, shape="8x1")
TIMES = ("energy", "energy_forces", "energy_forces_cpu", "neighbor_list", "model", "rest")


@pytest.fixture(scope="module")
def result() -> Result:
    return run_in_subprocess(Case.of("ethanol", builtin_structure("ethanol"), TINY, threads=1, repeats=3))


@pytest.mark.parametrize("name", TIMES)
def test_quantiles_are_ordered(result: Result, name: str) -> None:
    times: Quantiles = getattr(result, name)
    assert 0 <= times.minimum <= times.lower_quartile <= times.median <= times.upper_quartile


def test_measured_quantities_are_plausible(result: Result) -> None:
    assert (result.name, result.atoms, result.threads, result.repeats) == ("ethanol", 9, 1, 3)
    assert 7 < result.neighbors <= 8
    assert 0 < result.model.minimum <= result.energy_forces.upper_quartile
    assert 50 < result.memory_loaded <= result.memory_peak < 5000
    assert result.memory_increase == result.memory_peak - result.memory_loaded
    assert result.device == "cpu"


def test_result_survives_json(result: Result) -> None:
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_case_survives_json() -> None:
    atoms = molecule("H2O", vacuum=2.0, pbc=True)
    atoms.info = {"charge": 1, "spin": 2, "remark": object()}
    case = Case.of("water", atoms, TINY, threads=2)
    restored = Case.from_dict(json.loads(json.dumps(case.to_dict())))
    assert restored == case
    assert restored.to_atoms() == atoms
    assert restored.to_atoms().info == {"charge": 1, "spin": 2}


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"repeats": 0}, {"seconds": 0.0}])
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be .*, got 0"):
        Case.of("H", Atoms("H"), TINY, **wrong)


def test_repeats_end_with_the_time_but_two_are_made() -> None:
    case = Case.of("H2", molecule("H2"), TINY, repeats=50, seconds=1e-9)
    with pytest.warns(UserWarning, match="charge 0"):
        assert measure(case).repeats == 2


def test_measuring_leaves_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    run_in_subprocess(Case.of("H2", molecule("H2"), TINY, threads=threads + 1, repeats=1))
    assert torch.get_num_threads() == threads


def test_model_that_does_not_exist_is_reported_by_name() -> None:
    case = Case.of("H2", molecule("H2"), ModelSpec({"model": "missing.pt"}))
    with pytest.raises(BenchmarkError, match=r"H2: FileNotFoundError: .*'missing\.pt'"):
        run_in_subprocess(case)


def test_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: dead)
    with pytest.raises(BenchmarkError, match="killed by SIGKILL: probably out of memory"):
        run_in_subprocess(Case.of("H2", molecule("H2"), TINY))


@pytest.mark.parametrize(("stdout", "stderr", "code", "message"), [
    ("Segfault", "", 0, "wrote no result but 'Segfault'"),
    ("", "line\nModuleNotFoundError: torch", 1, "ended with code 1: ModuleNotFoundError: torch"),
])  # fmt: skip
def test_unusable_answers_are_reported(
    monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str, code: int, message: str
) -> None:
    answer = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    with pytest.raises(BenchmarkError, match=message):
        run_in_subprocess(Case.of("H2", molecule("H2"), TINY))


def test_quantiles_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        Quantiles.of([])


def test_quantiles_are_those_of_the_sample() -> None:
    assert Quantiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quantiles(3.0, 1.0, 2.0, 4.0)


def test_published_shape_has_the_published_number_of_parameters() -> None:
    """24.55 million of the published network less 0.62 million without influence."""
    model = shape_potential(NetworkShape.parse("256x4")).model
    assert isinstance(model, torch.nn.Module)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(23.93e6, rel=2e-3)


@pytest.mark.parametrize(("text", "heads", "basis"), [("256x4", 128, 256), ("64x3", 16, 64), ("8x1", 2, 8)])
def test_shape_fixes_the_hyperparameters(text: str, heads: int, basis: int) -> None:
    config = NetworkShape.parse(text).config()
    assert (config.num_heads, config.num_basis, config.head_width) == (heads, basis, 8)
    assert f"{config.channels}x{config.num_layers}" == text


@pytest.mark.parametrize("text", ["", "256", "256x", "x4", "256x0", "0x4", "30x2", "-4x1", "big"])
def test_malformed_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CHANNELSxLAYERS"):
        NetworkShape.parse(text)


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    state = torch.get_rng_state()
    system = System.single(*_arrays(molecule("H2O")))
    energies = [
        float(
            shape_potential(NetworkShape(8, 1), device="cpu", seed=seed)(
                system, properties=frozenset({"energy"})
            ).energy
        )
        for seed in (1, 1, 2)
    ]
    assert energies[0] == energies[1] != energies[2]
    assert torch.equal(state, torch.get_rng_state())


def _arrays(atoms: Atoms) -> tuple[Any, Any]:
    return atoms.positions, atoms.numbers


def test_file_of_a_model_is_loaded_with_its_options(tiny_checkpoint: Path) -> None:
    calculator = build_calculator(ModelSpec({"model": str(tiny_checkpoint), "dtype": "float64", "device": "cpu"}))
    assert isinstance(calculator, E2FormerCalculator)
    assert calculator.potential.dtype == torch.float64


@pytest.mark.parametrize(("name", "size"), list(zip(BUILTIN_STRUCTURES, (9, 21, 42, 192, 648), strict=True)))
def test_built_in_structures_have_their_size(name: str, size: int) -> None:
    assert len(builtin_structure(name)) == size


def test_unknown_built_in_structure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'water-7'.*water-216"):
        builtin_structure("water-7")


def test_machine_is_described_in_json() -> None:
    machine = json.loads(json.dumps(machine_info()))
    assert machine["torch"] == torch.__version__
    assert machine["logical_cores"] >= 1
    assert machine["cpu"]


def test_commit_is_unknown_outside_a_checkout(tmp_path: Path) -> None:
    assert source_commit(tmp_path) is None


def test_commit_of_another_project_is_not_taken(tmp_path: Path) -> None:
    """A package installed inside somebody's repository is not part of it."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package = tmp_path / "venv" / Path(e2former_calc.__file__).parent.name
    package.mkdir(parents=True)
    assert source_commit(package) is None


def test_peak_memory_is_at_least_what_is_resident() -> None:
    reset_peak_memory()
    before = resident_memory()
    with mmap.mmap(-1, 64_000_000) as fresh_pages:
        for page in range(0, len(fresh_pages), mmap.PAGESIZE):
            fresh_pages[page] = 1
        assert peak_memory() >= before + 50
