"""What the calculator does with structures far from the training data."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from e2former_calc import E2FormerCalculator
from e2former_calc.checkpoint import load_model, load_potential, write_native
from e2former_calc.potentials.applicability import FOREIGN, UNUSUAL
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset, split
from e2former_calc.potentials.training.domain import measure_domain
from e2former_calc.potentials.training.readers import read_dataset

MESSAGE = r"atom \d \([HO]\) is in surroundings unlike the training data of this model: distance \d+\.\d, usual are"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, labelled_water: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with the domain of water molecules."""
    loaded = load_model(tiny_checkpoint)
    (head,) = loaded.card.heads
    potential = EnergyPotential(
        loaded.model, head=head, reference_energies=loaded.reference_energies, elements=loaded.elements[head],
        force_mode="gradient",
    )  # fmt: skip
    frames = Dataset(
        systems=tuple(System.single(atoms.positions, atoms.numbers) for atoms in labelled_water),
        energy=torch.zeros(len(labelled_water)),
        forces=tuple(torch.zeros(3, 3) for _ in labelled_water),
        stress=(None,) * len(labelled_water),
        source="water",
    )
    path = tmp_path_factory.mktemp("model") / "water.safetensors"
    write_native(path, replace(loaded, domains={head: measure_domain(potential, frames, None)}).content())
    return path


@pytest.fixture
def refusing(model: Path, tmp_path: Path) -> Path:
    """The same model, whose card asks to refuse what is far away."""
    loaded, path = load_model(model), tmp_path / "refusing.safetensors"
    write_native(path, replace(loaded, card=replace(loaded.card, refuse_outside=True)).content())
    return path


def calculator(path: Path, **options) -> E2FormerCalculator:
    return E2FormerCalculator(path, charge=0, spin=1, device="cpu", **options)


@pytest.fixture
def inside(labelled_water: list[Atoms]) -> Atoms:
    return labelled_water[3].copy()


@pytest.fixture
def outside() -> Atoms:
    """Water with a broken bond."""
    atoms = molecule("H2O")
    atoms.positions[1] *= 2.5
    return atoms


def test_the_structures_are_what_their_names_say(model, inside, outside):
    calc = calculator(model)
    assert calc.get_extrapolation(inside).max() < UNUSUAL
    assert calc.get_extrapolation(outside).max() > FOREIGN


@pytest.mark.parametrize("mode", ["auto", "warn", "error", "ignore"])
def test_nothing_is_said_about_training_structures(model, inside, mode):
    inside.calc = calculator(model, outside=mode)
    assert np.isfinite(inside.get_forces()).all()


@pytest.mark.parametrize("mode", ["auto", "warn"])
def test_a_warning_comes_once(model, outside, mode):
    outside.calc = calculator(model, outside=mode)
    with pytest.warns(UserWarning, match=MESSAGE):
        outside.get_forces()
    outside.rattle(0.01, seed=1)
    outside.get_forces()


def test_an_error_names_the_atom_and_the_remedy(model, outside):
    outside.calc = calculator(model, outside="error")
    with pytest.raises(ValueError, match=MESSAGE + r" up to 1; beyond 3 it is refused \(outside='warn' evaluates"):
        outside.get_potential_energy()
    assert outside.calc.results == {}


def test_unusual_structures_are_a_warning_even_where_foreign_ones_are_refused(model, inside):
    calc = calculator(model, outside="error")
    for step in np.arange(0.0, 2.0, 0.01):
        inside.positions[1] *= 1 + 0.01 * step
        if UNUSUAL < calc.get_extrapolation(inside).max() < FOREIGN:
            break
    with pytest.warns(UserWarning, match="energies and forces cannot be trusted there"):
        calc.get_potential_energy(inside)


def test_ignore_is_silent(model, outside):
    outside.calc = calculator(model, outside="ignore")
    assert np.isfinite(outside.get_forces()).all()


def test_the_model_can_ask_to_refuse(refusing, outside):
    with pytest.raises(ValueError, match="it is refused"):
        calculator(refusing).get_potential_energy(outside)


@pytest.mark.parametrize("options", [{"outside": "warn"}, {"strict": False}])
def test_a_refusal_can_be_turned_into_a_warning(refusing, outside, options):
    with pytest.warns(UserWarning, match=MESSAGE):
        calculator(refusing, **options).get_potential_energy(outside)


def test_evaluate_refuses_with_the_number_of_the_structure(model, inside, outside):
    with pytest.raises(ValueError, match="structure 1: atom "):
        calculator(model, outside="error").evaluate([inside, outside])


def test_evaluate_warns_once(model, inside, outside):
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        calculator(model).evaluate([inside, outside, outside])
    assert len(caught) == 1


def test_the_distances_are_those_of_the_last_calculation(model, inside, outside):
    calc = calculator(model, outside="ignore")
    for atoms in (outside, inside):
        calc.get_forces(atoms)
        np.testing.assert_allclose(calc.additional_outputs["extrapolation"], calc.get_extrapolation(atoms), rtol=1e-4)


def test_distances_survive_no_writer_but_hinder_none(model, inside, tmp_path):
    inside.calc = calculator(model)
    inside.get_forces()
    inside.calc.export_properties()
    for name in ("frame.extxyz", "frame.traj"):
        ase.io.write(tmp_path / name, inside)
        assert ase.io.read(tmp_path / name).get_potential_energy() == pytest.approx(inside.get_potential_energy())


def test_a_model_without_a_domain_says_nothing(tiny, outside):
    calc = E2FormerCalculator(tiny, charge=0, spin=1, outside="error")
    assert np.isfinite(calc.get_forces(outside)).all()
    assert calc.additional_outputs == {"force_source": "gradient"}
    with pytest.raises(NotImplementedError, match="does not know where it was trained: 'e2former convert --training-"):
        calc.get_extrapolation(outside)


def test_elements_that_the_network_was_not_trained_on_are_far_away(model):
    with pytest.warns(UserWarning, match=r"atom 0 \(C\) .* distance inf"):
        calculator(model).get_potential_energy(molecule("CH4"))


def test_one_network_call_gives_predictions_and_distances(model, inside, monkeypatch):
    calc, calls = calculator(model), []
    forward = type(calc.potential.model).forward
    monkeypatch.setattr(
        type(calc.potential.model), "forward", lambda *args, **options: calls.append(1) or forward(*args, **options)
    )
    calc.get_forces(inside)
    assert calls == [1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_copies_do_the_same(model, outside, copied):
    with pytest.raises(ValueError, match="it is refused"):
        copied(calculator(model, outside="error")).get_potential_energy(outside)


def test_the_recipe_names_the_choice(model):
    assert json.loads(json.dumps(calculator(model, outside="ignore").todict()))["outside"] == "ignore"


def test_an_unknown_choice_is_refused(model):
    with pytest.raises(ValueError, match=r"`outside` must be one of \['auto', .*\], got 'raise'"):
        calculator(model, outside="raise")


def shared_ethanol(shared_dir: Path, name: str, chosen: slice) -> list[Atoms]:
    with h5py.File(shared_dir / "datasets" / name) as file:
        numbers = file["numbers"][:].reshape(-1, 9)[0]
        return [Atoms(numbers, positions) for positions in file["positions"][chosen]]


@pytest.fixture(scope="module")
def ethanol_calculator(shared_dir: Path) -> E2FormerCalculator:
    """The bundled model with the domain of its training frames."""
    potential = load_potential("ethanol-rmd17", device="cpu")
    frames = read_dataset(shared_dir / "datasets" / "rmd17_ethanol_train.h5")
    chosen, kept_aside = split(frames, 50, 0)
    potential.domain = measure_domain(potential, frames.subset(chosen), frames.subset(kept_aside))
    return E2FormerCalculator(potential)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("spread", "least", "most"), [(0.0, 0.0, 0.0), (0.1, 0.9, 1.0), (0.2, 1.0, 1.0)], ids=["unseen", "0.1 Å", "0.2 Å"]
)
def test_distances_tell_unseen_frames_from_distorted_ones(ethanol_calculator, shared_dir, spread, least, most):
    frames = shared_ethanol(shared_dir, "rmd17_ethanol_test.h5", slice(0, 1000, 10))
    for seed, atoms in enumerate(frames):
        atoms.positions += np.random.default_rng(seed).normal(0.0, spread, atoms.positions.shape)
    flagged = np.mean([ethanol_calculator.get_extrapolation(atoms).max() > UNUSUAL for atoms in frames])
    assert least <= flagged <= most


@pytest.mark.shared
def test_a_dissociating_bond_is_noticed(ethanol_calculator, shared_dir):
    frames = shared_ethanol(shared_dir, "ethanol_OH_dissociation_scan.h5", slice(None))
    lengths = [atoms.get_distance(2, 8) for atoms in frames]
    far = np.array([ethanol_calculator.get_extrapolation(atoms).max() for atoms in frames])
    assert far[np.abs(np.array(lengths) - 0.97) < 0.1].max() < UNUSUAL
    assert far[np.array(lengths) > 1.4].min() > UNUSUAL
