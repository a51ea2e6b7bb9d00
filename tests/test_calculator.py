"""The calculator keeps ASE's contract."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path

import ase.io
import ase.outputs
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator

from e2former_calc import E2FormerCalculator
from e2former_calc.potentials.potential import EnergyPotential

EPS32 = float(torch.finfo(torch.float32).eps)


@pytest.fixture
def calculator(tiny: EnergyPotential) -> E2FormerCalculator:
    return E2FormerCalculator(tiny, charge=0, spin=1)


@pytest.fixture
def ethanol(calculator: E2FormerCalculator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    return atoms


@pytest.fixture
def salt(calculator: E2FormerCalculator) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.05, seed=3)
    atoms.calc = calculator
    return atoms


def count_calls(calculator: E2FormerCalculator, monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """Record the properties of every network call."""
    calls: list[frozenset[str]] = []
    forward = type(calculator.potential).forward

    def recording(self, system, *, properties, neighbors=None, create_graph=False):
        calls.append(properties)
        return forward(self, system, properties=properties, neighbors=neighbors, create_graph=create_graph)

    monkeypatch.setattr(type(calculator.potential), "forward", recording)
    return calls


def test_one_network_call_serves_all_properties(salt, monkeypatch):
    calls = count_calls(salt.calc, monkeypatch)
    salt.get_forces(), salt.get_potential_energy(), salt.get_stress(), salt.get_potential_energies()
    salt.get_potential_energy(force_consistent=True)
    assert len(calls) == 1


def test_energy_alone_needs_no_backward_pass(ethanol, monkeypatch):
    calls = count_calls(ethanol.calc, monkeypatch)
    ethanol.get_potential_energy()
    assert calls == [frozenset({"energy"})]


def test_energy_without_and_with_forces_is_the_same(ethanol):
    alone = ethanol.get_potential_energy()
    ethanol.get_forces()
    assert ethanol.get_potential_energy() == alone


@pytest.mark.parametrize(("name", "shape"), [("forces", (2, 3)), ("stress", (6,)), ("energies", (2,))])
def test_arrays_are_contiguous_float64(salt, name, shape):
    value = salt.calc.get_property(name, salt)
    assert value.shape == shape
    assert value.dtype == np.float64
    assert value.flags.c_contiguous


def test_energy_is_a_python_float(ethanol):
    assert type(ethanol.get_potential_energy()) is float


def test_energies_sum_to_the_energy(salt):
    assert salt.get_potential_energies().sum() == pytest.approx(salt.get_potential_energy(), rel=1e-14)


def test_results_hold_only_names_that_ase_knows(salt):
    salt.get_stress()
    assert set(salt.calc.results) <= set(ase.outputs.all_outputs)
    salt.calc.export_properties()


def test_forces_are_the_negative_gradient(ethanol):
    numerical = calculate_numerical_forces(ethanol, eps=1e-4, iatoms=[0, 5])
    np.testing.assert_allclose(ethanol.get_forces()[[0, 5]], numerical, atol=1e-6)


def test_stress_is_the_strain_derivative(salt):
    analytic = salt.get_stress()
    np.testing.assert_allclose(analytic, calculate_numerical_stress(salt, eps=1e-5), atol=1e-8)


def test_returned_arrays_are_copies(ethanol):
    ethanol.get_forces()[:] = 0.0
    assert np.abs(ethanol.get_forces()).max() > 0


@pytest.mark.parametrize("key", ["charge", "spin", "spin_multiplicity"])
def test_changing_info_recalculates(tiny, key):
    atoms = molecule("O2")
    atoms.info.update(charge=0, spin=3)
    atoms.calc = E2FormerCalculator(tiny)
    before = atoms.get_potential_energy()
    atoms.info[key] = {"charge": 2, "spin": 1, "spin_multiplicity": 5}[key]
    assert atoms.get_potential_energy() != before


def test_unrelated_info_does_not_recalculate(ethanol, monkeypatch):
    calls = count_calls(ethanol.calc, monkeypatch)
    ethanol.get_potential_energy()
    ethanol.info["comment"] = "changed"
    ethanol.get_potential_energy()
    assert len(calls) == 1


def test_the_smallest_move_recalculates(ethanol):
    before = ethanol.get_potential_energy()
    ethanol.positions[0, 0] = np.nextafter(ethanol.positions[0, 0], np.inf)
    assert ethanol.calc.calculation_required(ethanol, ["energy"])
    ethanol.positions[0, 0] += 1e-3
    assert ethanol.get_potential_energy() != before


@pytest.mark.parametrize("change", ["positions", "numbers", "cell", "pbc"])
def test_check_state_names_what_changed(salt, change):
    salt.get_potential_energy()
    if change == "positions":
        salt.positions[0] += 0.1
    elif change == "numbers":
        salt.numbers[0] = 1
    elif change == "cell":
        salt.cell[0, 0] += 0.1
    else:
        salt.pbc[0] = False
    assert salt.calc.check_state(salt) == [change]


def test_atoms_are_not_modified(salt):
    salt.positions += [20.0, -35.0, 7.0]
    before = salt.copy()
    salt.get_stress()
    assert salt == before
    assert salt.info == before.info


def test_no_global_state_changes(tiny_checkpoint):
    def state():
        return (
            torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(), random.getstate(), torch.is_grad_enabled(), torch.get_num_threads(),
            list(warnings.filters),
        )  # fmt: skip

    before = state()
    atoms = molecule("H2O")
    atoms.calc = E2FormerCalculator(tiny_checkpoint, charge=0, spin=1)
    atoms.get_forces()
    assert state() == before


def test_deepcopy_shares_weights_and_nothing_else(ethanol):
    ethanol.get_forces()
    twin = copy.deepcopy(ethanol)
    twin.positions += np.linspace(0, 0.1, 27).reshape(9, 3)
    assert twin.get_potential_energy() != ethanol.get_potential_energy()
    assert twin.calc.potential is ethanol.calc.potential


def test_pickle_is_a_recipe(tiny_checkpoint):
    calculator = E2FormerCalculator(tiny_checkpoint, charge=1, spin=2, dtype="float64", skin=0.5)
    data = pickle.dumps(calculator)
    assert len(data) < 2000
    atoms = molecule("H2O")
    assert pickle.loads(data).get_potential_energy(atoms) == calculator.get_potential_energy(atoms)


def test_a_recipe_works_from_another_folder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint.parent)
    data = pickle.dumps(E2FormerCalculator("checkpoint.pt", "config.yaml", charge=0, spin=1))
    monkeypatch.chdir(tmp_path)
    assert np.isfinite(pickle.loads(data).get_potential_energy(molecule("H2O")))


def test_pickle_refuses_a_changed_file(tiny_checkpoint, tmp_path):
    for file in tiny_checkpoint.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = pickle.dumps(E2FormerCalculator(tmp_path / "checkpoint.pt", charge=0, spin=1))
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="has changed since this calculator was saved"):
        pickle.loads(data).get_potential_energy(molecule("H2O"))


@pytest.mark.slow
def test_another_process_gets_the_same_energy(tiny_checkpoint):
    calculator = E2FormerCalculator(tiny_checkpoint, charge=0, spin=1, dtype="float64")
    code = (
        "import pickle, sys; from ase.build import molecule;"
        "c = pickle.load(sys.stdin.buffer); print(repr(c.get_potential_energy(molecule('H2O'))))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(calculator), capture_output=True, check=True
    )
    assert float(child.stdout) == calculator.get_potential_energy(molecule("H2O"))


def test_todict_is_json(tiny_checkpoint):
    recipe = json.loads(json.dumps(E2FormerCalculator(tiny_checkpoint, charge=0, spin=1).todict()))
    assert Path(recipe["model"]) == tiny_checkpoint
    assert len(recipe["sha256"]) == 64


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_results_survive_a_file(ethanol, tmp_path, suffix):
    energy, forces = ethanol.get_potential_energy(), ethanol.get_forces()
    ase.io.write(tmp_path / f"a.{suffix}", ethanol)
    back = ase.io.read(tmp_path / f"a.{suffix}")
    assert back.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(back.get_forces(), forces, atol=1e-7)


def test_sum_calculator_keeps_all_properties(calculator, salt):
    salt.calc = SumCalculator([calculator, calculator])
    assert salt.get_stress() == pytest.approx(2 * calculator.get_property("stress", salt), rel=1e-12)


def test_evaluate_equals_one_by_one(tiny):
    calculator = E2FormerCalculator(tiny)
    images = [molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6), molecule("NH3"), Atoms("He")]
    for atoms, charge in zip(images, [0, 0, 1, 0], strict=True):
        atoms.info.update(charge=charge, spin=2 if charge else 1)
    together = calculator.evaluate(images, ["energy", "forces", "energies"])
    for atoms, result in zip(images, together, strict=True):
        assert result["energy"] == pytest.approx(calculator.get_property("energy", atoms), rel=1e-14)
        np.testing.assert_allclose(result["forces"], calculator.get_property("forces", atoms), atol=1e-12)


def test_evaluate_does_not_depend_on_batch_size(tiny):
    calculator = E2FormerCalculator(tiny, charge=0, spin=1)
    images = [molecule(name) for name in ("H2O", "NH3", "CH4", "CH3CH2OH")]
    small, large = (calculator.evaluate(images, ["forces"], atoms_per_batch=n) for n in (1, 1000))
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(a["forces"], b["forces"], atol=1e-12)


def test_evaluate_names_the_bad_structure(tiny):
    good, bad = molecule("H2O"), molecule("H2O")
    bad.positions[0] = np.nan
    with pytest.raises(ValueError, match="structure 1"):
        E2FormerCalculator(tiny, charge=0, spin=1).evaluate([good, bad])


def test_evaluate_refuses_unknown_properties(calculator):
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        calculator.evaluate([molecule("H2O")], ["dipole"])


def test_evaluate_stress_of_a_molecule_is_refused(calculator):
    with pytest.raises(PropertyNotImplementedError, match="periodic direction"):
        calculator.evaluate([molecule("H2O")], ["stress"])


def test_hessian_is_the_derivative_of_the_forces(calculator):
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=2)
    hessian = calculator.get_hessian(atoms)
    plus, minus = atoms.copy(), atoms.copy()
    plus.positions[1, 2] += 1e-4
    minus.positions[1, 2] -= 1e-4
    change = calculator.get_property("forces", minus) - calculator.get_property("forces", plus)
    np.testing.assert_allclose(hessian[5], change.ravel() / 2e-4, atol=1e-6)


def test_descriptors_are_rotation_invariant(calculator, ethanol):
    before = calculator.get_descriptors(ethanol)
    ethanol.rotate(35, (1, 2, 3))
    assert before.shape == (9, 32)
    np.testing.assert_allclose(calculator.get_descriptors(ethanol), before, atol=1e-12)


def test_a_skin_changes_nothing(tiny, salt):
    salt.calc = fresh = E2FormerCalculator(tiny, charge=0, spin=1)
    skinned = E2FormerCalculator(tiny, charge=0, spin=1, skin=1.0)
    rng = np.random.default_rng(5)
    for _ in range(10):
        salt.positions += rng.normal(scale=0.05, size=salt.positions.shape)
        assert skinned.get_property("energy", salt) == fresh.get_property("energy", salt)
    assert skinned._lists.rebuilds < fresh._lists.rebuilds


def test_stress_of_a_molecule_is_refused(ethanol):
    with pytest.raises(PropertyNotImplementedError, match="periodic direction"):
        ethanol.get_stress()


def test_stress_of_a_slab_is_warned_about(calculator):
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0, periodic=False)
    slab.calc = calculator
    with pytest.warns(UserWarning, match="vacuum included"):
        slab.get_stress()


def test_unknown_elements_are_refused_on_assignment(calculator):
    with pytest.raises(ValueError, match="Og are not covered"):
        Atoms("Og").calc = calculator


def test_not_strict_warns_about_unknown_elements(tiny_checkpoint):
    calculator = E2FormerCalculator(tiny_checkpoint, charge=0, spin=1, strict=False)
    with pytest.warns(UserWarning, match="Ra are not covered"):
        calculator.get_property("energy", Atoms("Ra"))


def test_a_model_of_one_molecule_refuses_others(tiny):
    narrow = EnergyPotential(
        tiny.model, head="omol25", reference_energies={"omol25": tiny.reference}, elements=tiny.elements,
        force_mode="gradient", compositions=frozenset({"C2H6O"}),
    )  # fmt: skip
    molecule("CH3CH2OH").calc = E2FormerCalculator(narrow)
    with pytest.raises(ValueError, match="trained on C2H6O only and says nothing about CH4"):
        molecule("CH4").calc = E2FormerCalculator(narrow)


def test_the_default_model_names_the_bundled_model_for_another_molecule():
    with pytest.raises(ValueError, match="says nothing about C2H6O: use 'ethanol-rmd17'"):
        molecule("CH3CH2OH").calc = E2FormerCalculator()


def test_pbc_without_a_cell_is_refused(calculator):
    with pytest.raises(ValueError, match=r"atoms\.pbc = False"):
        calculator.get_property("energy", Atoms("HF", positions=[[0, 0, 0], [0, 0, 0.9]], pbc=True))


def test_overlapping_atoms_are_refused(calculator):
    with pytest.raises(ValueError, match="atoms 0 and 1 overlap"):
        calculator.get_property("energy", Atoms("HF", positions=[[0, 0, 0], [0, 0, 1e-3]]))


def test_nan_positions_are_refused(calculator):
    with pytest.raises(ValueError, match="position of atom 1 is not finite"):
        calculator.get_property("energy", Atoms("HF", positions=[[0, 0, 0], [0, 0, np.nan]]))


def test_no_atoms_are_refused(calculator):
    with pytest.raises(ValueError, match="no atoms"):
        calculator.get_property("energy", Atoms())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "`dtype` must be 'float32' or 'float64'"),
        ({"device": "abacus"}, "is not a torch device"),
        ({"forces": "both"}, "`forces` must be"),
        ({"forces": "head"}, "no force head"),
        ({"neighbor_cap": "some"}, "neighbor_cap"),
        ({"implementation": "triton"}, "`implementation` must be"),
        ({"skin": -1.0}, "`skin` must not be negative"),
        ({"head": "spice"}, r"no head 'spice'; choose head=\.\.\. from \['omol25'\]"),
        ({"variant": "v9"}, "variant must be"),
        ({"charge": 0.5}, "`charge` must be an integer"),
    ],
)
def test_bad_options_are_named(tiny_checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        E2FormerCalculator(tiny_checkpoint, **options)


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"head": "omol25"}, {"neighbor_cap": "none"}, {"weights": "ema"}]
)
def test_options_of_a_file_are_refused_with_a_loaded_potential(tiny, options):
    with pytest.raises(ValueError, match=rf"\['{next(iter(options))}'\] say how to load a file"):
        E2FormerCalculator(tiny, **options)


def test_the_recipe_of_a_loaded_potential_is_short(calculator):
    assert json.loads(json.dumps(calculator.todict()))["model"] == "EnergyPotential"


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match="`model` must be a path"):
        E2FormerCalculator(42)


def test_results_say_where_forces_come_from(ethanol):
    ethanol.get_forces()
    assert ethanol.calc.additional_outputs == {"force_source": "gradient"}


def test_an_active_neighbor_cap_is_warned_about_once(tiny):
    dense = bulk("Cu", "fcc", a=3.0)
    calculator = E2FormerCalculator(tiny, charge=0, spin=2)
    with pytest.warns(UserWarning, match="for 1 of 1 atoms"):
        calculator.get_property("energy", dense)
    dense.rattle(0.01)
    calculator.get_property("energy", dense)


def test_without_cap_a_dense_crystal_does_not_depend_on_its_cell(tiny_checkpoint):
    calculator = E2FormerCalculator(tiny_checkpoint, neighbor_cap="none", charge=0, spin=1, dtype="float64")
    primitive, cubic = bulk("NaCl", "rocksalt", a=4.0), bulk("NaCl", "rocksalt", a=4.0, cubic=True)
    energies = [calculator.get_property("energy", a) / len(a) for a in (primitive, cubic)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)


def test_float32_follows_float64(tiny_checkpoint, calculator, ethanol):
    single = E2FormerCalculator(tiny_checkpoint, charge=0, spin=1)
    difference = single.get_property("forces", ethanol) - ethanol.get_forces()
    assert np.abs(difference).max() < 200 * EPS32 * np.abs(ethanol.get_forces()).max()


def test_a_nan_from_the_model_is_an_error(tiny):
    class Broken(EnergyPotential):
        def forward(self, system, **options):
            prediction = super().forward(system, **options)
            prediction.energy[:] = torch.nan
            return prediction

    broken = Broken(
        tiny.model, head="omol25", reference_energies={"omol25": tiny.reference}, elements=tiny.elements,
        force_mode="gradient",
    )  # fmt: skip
    with pytest.raises(ValueError, match="returned energy that is not finite"):
        E2FormerCalculator(broken, charge=0, spin=1).get_property("energy", molecule("H2O"))
