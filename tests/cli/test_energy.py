from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms

from e2former_calc import E2FormerCalculator

from .conftest import Run, saved


def numbers(text: str, label: str) -> list[float]:
    """Numbers on the line that begins with a label."""
    line = next(line for line in text.splitlines() if line.startswith(label))
    return [float(value) for value in re.findall(r"-?\d+\.\d+", line)]


def test_printed_energy_and_force_are_those_of_the_calculator(run: Run, model: Path, water: Path) -> None:
    result = run("energy", water, "--model", model)
    atoms = ase.io.read(water)
    atoms.calc = E2FormerCalculator(model)
    assert numbers(result.stdout, "energy") == pytest.approx([atoms.get_potential_energy()], abs=2e-6)
    assert numbers(result.stdout, "max force") == pytest.approx(
        [np.linalg.norm(atoms.get_forces(), axis=1).max()], abs=2e-6
    )
    assert "force source  gradient of the energy" in result.stdout
    assert "stress" not in result.stdout


def test_periodic_structure_has_stress_and_pressure_in_gpa(run: Run, model: Path, salt: Path) -> None:
    result = run("energy", salt, "--model", model)
    atoms = ase.io.read(salt)
    atoms.calc = E2FormerCalculator(model)
    stress = atoms.get_stress() / units.GPa
    assert numbers(result.stdout, "stress") == pytest.approx(stress, abs=1e-3)
    assert numbers(result.stdout, "pressure") == pytest.approx([-stress[:3].mean()], abs=1e-3)


def test_start_line_names_device_precision_size_model_and_licence(run: Run, model: Path, frames: Path) -> None:
    result = run("energy", frames, "--model", model, "--device", "cpu", "--dtype", "float64")
    first = result.stderr.splitlines()[0]
    assert first == f"device cpu, float64, plain torch, 4 structures, 13 atoms, model {model}, licence CC0-1.0"


def test_every_frame_of_every_file_has_a_line(run: Run, model: Path, frames: Path, water: Path) -> None:
    result = run("energy", frames, water, "--model", model)
    labels = [line.split()[-1] for line in result.stdout.splitlines()[2:]]
    assert labels == [f"frames.extxyz[{i}]" for i in range(4)] + ["water.extxyz"]


@pytest.mark.parametrize(
    ("index", "expected"), [("0", [0]), ("-1", [3]), ("1:3", [1, 2]), ("::2", [0, 2]), ("::-1", [3, 2, 1, 0])]
)
def test_index_chooses_frames(run: Run, model: Path, frames: Path, index: str, expected: list[int]) -> None:
    run("energy", frames, "--model", model, "--index", index, "--out", "run")
    summary = json.loads(Path("run-summary.json").read_text())
    assert [entry["index"] for entry in summary["results"]["structures"]] == expected


@pytest.mark.parametrize(
    ("index", "message"),
    [("7", "structures 0 to 3"), ("9:", "selects none of the 4"), ("first", "must be an integer or a slice")],
)
def test_impossible_index_is_refused(run: Run, model: Path, frames: Path, index: str, message: str) -> None:
    result = run("energy", frames, "--model", model, "--index", index)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("atoms_per_batch", [1, 7, 1000])
def test_batches_do_not_change_results(run: Run, model: Path, frames: Path, atoms_per_batch: int) -> None:
    arguments = ("--model", model, "--dtype", "float64", "--out", "run", "--atoms-per-batch", atoms_per_batch)
    run("energy", frames, *arguments)
    energies = [atoms.get_potential_energy() for atoms in ase.io.read("run.extxyz", ":")]
    calculator = E2FormerCalculator(model, dtype="float64")
    expected = [calculator.get_potential_energy(atoms) for atoms in ase.io.read(frames, ":")]
    assert energies == pytest.approx(expected, rel=100 * torch.finfo(torch.float64).eps)


def test_written_structures_carry_results_charge_and_spin(run: Run, model: Path, frames: Path) -> None:
    run("energy", frames, "--model", model, "--out", "run", "--charge", 1, "--spin", 2)
    images = ase.io.read("run.extxyz", ":")
    assert [(atoms.info["charge"], atoms.info["spin"]) for atoms in images] == [(1, 2)] * 4
    assert all({"energy", "free_energy", "energies", "forces"} <= set(atoms.calc.results) for atoms in images)
    assert ["stress" in atoms.calc.results for atoms in images] == [False, False, False, True]


def test_overridden_spin_replaces_both_spellings_in_the_output(run: Run, model: Path, folder: Path) -> None:
    atoms = molecule("H2O")
    atoms.info["spin_multiplicity"] = 1
    run("energy", saved(folder / "a.extxyz", atoms), "--model", model, "--out", "run", "--spin", 3)
    written = ase.io.read("run.extxyz")
    assert (written.info["spin"], written.info["spin_multiplicity"]) == (3, 3)


def test_labels_in_the_file_are_replaced_by_predictions(run: Run, model: Path, water: Path) -> None:
    run("energy", water, "--model", model, "--out", "first")
    run("energy", "first.extxyz", "--model", model, "--forces", "gradient", "--out", "second", "--dtype", "float64")
    first, second = (ase.io.read(f"{name}.extxyz").get_potential_energy() for name in ("first", "second"))
    assert first == pytest.approx(second, rel=1e-6)
    assert first != second


def test_summary_holds_everything_needed_to_repeat(run: Run, model: Path, water: Path) -> None:
    run("energy", water, "--model", model, "--out", "run", "--dtype", "float64")
    summary = json.loads(Path("run-summary.json").read_text())
    assert summary["command"].endswith("energy")
    assert summary["options"]["dtype"] == "float64"
    assert {"e2former_calc", "torch", "ase", "numpy", "python"} <= set(summary["versions"])
    assert re.fullmatch("[0-9a-f]{64}", summary["model"]["sha256"])
    assert re.fullmatch("[0-9a-f]{64}", summary["inputs"][0]["sha256"])
    assert (summary["model"]["device"], summary["model"]["dtype"]) == ("cpu", "float64")
    assert summary["model"]["card"]["licence"] == "CC0-1.0"
    assert summary["timings_s"]["total"] > 0.0


def test_constrained_force_is_printed_beside_the_full_one(run: Run, model: Path, folder: Path) -> None:
    atoms = molecule("H2O")
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    result = run("energy", saved(folder / "fixed.extxyz", atoms), "--model", model)
    assert numbers(result.stdout, "  constrained") == [0.0]
    assert numbers(result.stdout, "max force")[0] > 0.0


def test_unknown_element_is_one_line_with_the_name_of_the_frame(run: Run, model: Path, folder: Path) -> None:
    path = saved(folder / "mixed.extxyz", [molecule("H2O"), Atoms("UO", [[0, 0, 0], [0, 0, 2]])])
    result = run("energy", path, "--model", model)
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: mixed.extxyz[1]: elements U are not covered by this model; it knows H He")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.extxyz", "3\nProperties=species:S:1:pos:R:3\nO 0 0 0\nH 0 0 1\n", "may be truncated.*expected 3"),
        ("text.xyz", "hello\n", "cannot be read as a structure"),
        ("empty.extxyz", "", "no format that ASE recognises.*Empty file"),
        ("a.foo", "?", "no format that ASE recognises"),
        ("none.cif", "data_x\n", "holds no structure"),
        ("cut.traj", "- of Ulm", "cannot be read as a structure"),
    ],
)
def test_damaged_structure_file_is_one_line(run: Run, model: Path, name: str, content: str, message: str) -> None:
    Path(name).write_text(content)
    result = run("energy", name, "--model", model)
    assert result.exit_code == 1
    assert re.search(f"^Error: .*{message}", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr


def test_missing_structure_file_is_one_line(run: Run, model: Path) -> None:
    assert run("energy", "no.xyz", "--model", model).stderr == "Error: no structure file 'no.xyz'\n"


@pytest.mark.parametrize("existing", ["run.extxyz", "run-summary.json"])
def test_existing_output_is_refused_before_the_model_is_loaded(run: Run, water: Path, existing: str) -> None:
    Path(existing).write_text("keep")
    result = run("energy", water, "--model", "absent.pt", "--out", "run")
    assert result.stderr == f"Error: {existing} would be replaced: add --overwrite, or choose another name\n"
    assert Path(existing).read_text() == "keep"


def test_overwrite_replaces_outputs(run: Run, model: Path, water: Path) -> None:
    Path("run.extxyz").write_text("old")
    assert run("energy", water, "--model", model, "--out", "run", "--overwrite").exit_code == 0
    assert ase.io.read("run.extxyz").calc is not None


def test_input_is_never_replaced(run: Run, model: Path, water: Path) -> None:
    result = run("energy", water, "--model", model, "--out", "water", "--overwrite")
    assert "is an input and would be replaced" in result.stderr


def test_warning_of_the_calculator_is_one_line_on_stderr(run: Run, model: Path) -> None:
    ase.io.write("bare.xyz", molecule("H2O"))
    result = run("energy", "bare.xyz", "--model", model)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(lines) == 1
    assert "or --charge ... and --spin ..." in lines[0]
    assert result.exit_code == 0


def test_warning_filters_are_left_alone(run: Run, model: Path) -> None:
    ase.io.write("bare.xyz", molecule("H2O"))
    filters, show = list(warnings.filters), warnings.showwarning
    run("energy", "bare.xyz", "--model", model)
    assert list(warnings.filters) == filters
    assert warnings.showwarning is show


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_full_disk_is_one_line_and_leaves_no_partial_file(model: Path, water: Path, folder: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200));"
        "from e2former_calc.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-B", "-c", program, "energy", str(water), "--model", str(model), "--out", "run"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Error: File too large: run.extxyz")
    assert sorted(path.name for path in folder.iterdir()) == ["water.extxyz"]
