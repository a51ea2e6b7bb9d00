"""From a configuration file to a model that the calculator loads."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from e2former_calc import E2FormerCalculator
from e2former_calc.checkpoint import CheckpointError, load_model
from e2former_calc.train import TrainingRun, read_plan

TRAINING_STATE = Path(__file__).parent / "data" / "e2former_v1" / "checkpoint.pt"
EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"channels": 8, "lmax": 1, "num_layers": 1, "num_heads": 4, "head_width": 2, "num_basis": 8, "max_radius": 4.0}


@pytest.fixture
def frames(labelled_water: list[Atoms]) -> list[Atoms]:
    return labelled_water


@pytest.fixture
def plan_file(frames, tmp_path: Path) -> Path:
    """Configuration of a run of ten steps."""
    ase.io.write(tmp_path / "frames.extxyz", frames)
    content = {
        "data": {"training": "frames.extxyz", "validation": 6},
        "model": SMALL,
        "training": {"steps": 10, "batch_size": 4, "validate_every": 5, "warmup_steps": 2},
        "card": {"level_of_theory": "EMT", "licence": "MIT"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "plan.yaml"


def change(path: Path, **sections) -> Path:
    """Merge into the configuration."""
    content = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        merged = {**content.get(name, {}), **values} if isinstance(values, dict) else values
        content[name] = merged
    path.write_text(yaml.safe_dump(content))
    return path


def trained(path: Path, name: str = "model", **options) -> TrainingRun:
    run = TrainingRun(read_plan(path), path.parent / name, device=torch.device("cpu"), **options)
    run.run(report=lambda _: None)
    run.finish()
    return run


def single_atom(symbol: str, energy: float) -> Atoms:
    atoms = Atoms(symbol)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def test_the_model_is_loaded_by_the_calculator(plan_file):
    run = trained(plan_file)
    atoms = molecule("H2O")
    atoms.calc = E2FormerCalculator(run.model_file)
    assert np.isfinite(atoms.get_forces()).all()


def test_energies_come_out_on_the_scale_of_the_data(plan_file, frames):
    calculator = E2FormerCalculator(trained(plan_file).model_file)
    predicted = [r["energy"] for r in calculator.evaluate([a.copy() for a in frames])]
    labels = [a.get_potential_energy() for a in frames]
    assert abs(np.mean(predicted) - np.mean(labels)) < 0.5


def test_the_card_says_what_was_done(plan_file):
    card = load_model(trained(plan_file).model_file).card
    assert card.level_of_theory == "EMT"
    assert card.compositions == ("H2O",)
    assert "18 frames of" in card.training_data
    assert "6 validation frames: energy MAE" in card.errors


def test_the_model_knows_where_it_was_trained(plan_file, frames):
    calculator = E2FormerCalculator(trained(plan_file).model_file, device="cpu")
    assert np.median([calculator.get_extrapolation(atoms) for atoms in frames]) < 1.0
    stretched = molecule("H2O")
    stretched.positions[1] *= 3.0
    with pytest.warns(UserWarning, match="unlike the training data"):
        calculator.get_potential_energy(stretched)


def test_single_atoms_alone_give_no_domain(plan_file):
    ase.io.write(plan_file.parent / "frames.extxyz", [single_atom("H", -0.5), single_atom("O", -2.0)])
    change(plan_file, data={"validation": 0}, reference_energies="isolated-atoms", training={"batch_size": 2})
    assert load_model(trained(plan_file).model_file).domains == {}


def test_a_fine_tuned_model_knows_the_new_frames_for_the_new_head_only(plan_file, tiny_checkpoint):
    fine_tuning(plan_file, tiny_checkpoint, model={"new_head": "mine"})
    assert list(load_model(trained(plan_file).model_file).domains) == ["mine"]


def test_the_card_can_ask_for_refusal_far_from_the_training_data(plan_file):
    card = load_model(trained(change(plan_file, card={"refuse_outside": True})).model_file).card
    assert card.refuse_outside


def test_a_run_in_two_pieces_gives_the_same_file(plan_file):
    whole = trained(plan_file, "whole")
    first = TrainingRun(read_plan(plan_file), plan_file.parent / "pieces", device=torch.device("cpu"))
    first.run(report=lambda _: None, interrupted=lambda: first.trainer.step == 4)
    second = trained(plan_file, "pieces", resume=True)
    before, after = (load_model(run.model_file).model.state_dict() for run in (whole, second))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_time_stops_after_one_step(plan_file):
    run = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    assert not run.run(report=lambda _: None, max_minutes=0.0)
    assert run.trainer.step == 1
    assert run.state_file.exists()


def test_an_official_checkpoint_can_be_fine_tuned(plan_file, tiny_checkpoint):
    references = {"H": -1.0, "O": -2.0}
    content = yaml.safe_load(plan_file.read_text()) | {
        "model": {"start_from": str(tiny_checkpoint), "frozen": ["embedding."]}, "reference_energies": references,
    }  # fmt: skip
    plan_file.write_text(yaml.safe_dump(content))
    run = trained(plan_file)
    before, after = load_model(tiny_checkpoint).model.state_dict(), load_model(run.model_file).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("embedding.") for name in changed)
    assert float(load_model(run.model_file).reference_energies["omol25"][8]) == -2.0


def fine_tuning(path: Path, start: Path, **content) -> Path:
    """Turn the plan into one that starts from a model."""
    model = {"start_from": str(start), **content.pop("model", {})}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model": model, **content}))
    return path


def test_a_new_head_starts_as_a_copy_and_leaves_the_old_one_alone(plan_file, tiny_checkpoint):
    fine_tuning(plan_file, tiny_checkpoint, model={"new_head": "mine", "frozen": ["embedding.", "blocks."]})
    before = load_model(tiny_checkpoint)
    start = TrainingRun(read_plan(plan_file), plan_file.parent / "start", device=torch.device("cpu"))
    copied = start.trainer.network.energy_heads["mine"].state_dict()
    old = before.model.energy_heads["omol25"].state_dict()
    assert all(torch.equal(copied[name], old[name]) for name in old)
    after = load_model(trained(plan_file).model_file)
    assert after.card.default_head == "mine"
    kept = after.model.energy_heads["omol25"].state_dict()
    assert all(torch.equal(kept[name], old[name]) for name in old)


def test_a_head_that_exists_is_not_added(plan_file, tiny_checkpoint):
    fine_tuning(plan_file, tiny_checkpoint, model={"new_head": "omol25"})
    with pytest.raises(CheckpointError, match="already has a head 'omol25'"):
        TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))


def test_least_squares_references_correct_the_model_that_is_fine_tuned(plan_file, tiny_checkpoint, frames):
    fine_tuning(plan_file, tiny_checkpoint, reference_energies="least-squares")
    run = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    predicted = [
        float(run.potential(system, properties=frozenset({"energy"})).energy) for system in run.data.training.systems
    ]
    assert np.mean(predicted) == pytest.approx(float(run.data.training.energy.mean()), abs=1e-4)


def original(path: Path, **fields) -> Path:
    """Turn the plan into one for a small original E2Former."""
    return change(path, model={"architecture": "e2former_v1", **fields})


def test_an_original_e2former_is_trained_and_loaded(plan_file, frames):
    run = trained(original(plan_file))
    system = run.data.training.systems[0]
    expected = float(run.potential(system, properties=frozenset({"energy"})).energy)
    atoms = Atoms(system.numbers.numpy(), system.positions.numpy())
    assert E2FormerCalculator(run.model_file).get_potential_energy(atoms) == pytest.approx(expected, rel=1e-7)
    card = load_model(run.model_file).card
    assert (card.architecture, card.variant, card.forces, card.max_neighbors) == (
        "e2former_v1",
        "lsr",
        "gradient",
        None,
    )
    assert "energy jumps where a pair crosses the cutoff" in card.known_failures


@pytest.mark.parametrize("kind", ["alpha_dropout", "feed_forward_dropout", "drop_path"])
def test_an_original_e2former_is_trained_with_dropout(plan_file, kind):
    fields = {"num_layers": 2, "orders": ["first", "zero"]}
    weights = []
    for rate in (0.0, 0.4):
        run = trained(original(plan_file, **fields, **{kind: rate}))
        assert getattr(load_model(run.model_file).config, kind) == rate
        weights.append(run.potential.model.state_dict()["blocks.0.attention.branches.first.radial.last.weight"])
    assert weights[1].isfinite().all()
    assert not weights[0].equal(weights[1])


def test_an_original_e2former_keeps_every_pair_of_a_dense_crystal(plan_file):
    model = trained(original(plan_file)).model_file
    ice = molecule("H2O", cell=[2.4, 2.6, 2.8], pbc=True)
    energies = [
        E2FormerCalculator(model, neighbor_cap=cap, dtype="float64", outside="ignore").get_potential_energy(ice)
        for cap in ("official", "none")
    ]
    assert energies[0] == energies[1]


@pytest.mark.parametrize(
    ("variant", "normalization"),
    [("lsr", "smooth_softplus"), ("scitix", "smooth_softmax"), ("modular", "smooth_softmax")],
)
def test_an_original_e2former_has_the_smoothest_weights_of_its_variant(plan_file, variant, normalization):
    plan = read_plan(original(plan_file, variant=variant))
    run = TrainingRun(plan, plan_file.parent / "m", device=torch.device("cpu"))
    assert run.loaded.config.normalization == normalization


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "e2former_v3"}, "architecture must be e2former_v2 or e2former_v1, got 'e2former_v3'"),
        ({"max_neighbors": 20}, r"\['max_neighbors'\] are limits of the official code; training keeps every pair"),
        ({"clusters": "fragments"}, "clusters 'fragments' must be given for every structure"),
        ({"avg_degree": 20.0}, r"unknown configuration fields \['avg_degree'\]"),
        ({"variant": "main"}, "variant must be 'scitix' or 'modular' or 'microsoft' or 'lsr', got 'main'"),
    ],
)
def test_a_bad_original_e2former_is_refused(plan_file, fields, message):
    plan = read_plan(original(plan_file, **fields))
    with pytest.raises(ValueError, match=message):
        TrainingRun(plan, plan_file.parent / "m", device=torch.device("cpu"))


def test_charges_that_a_network_does_not_see_are_refused(plan_file):
    frames = ase.io.read(plan_file.parent / "frames.extxyz", ":")
    frames[0].info["charge"] = 1
    ase.io.write(plan_file.parent / "frames.extxyz", frames)
    plan = read_plan(change(original(plan_file), data={"validation": 0}))
    with pytest.raises(ValueError, match="differ in charge, which variant 'lsr' of E2Former does not see"):
        TrainingRun(plan, plan_file.parent / "m", device=torch.device("cpu"))


def test_an_official_training_state_of_the_original_e2former_can_be_fine_tuned(plan_file):
    fine_tuning(plan_file, TRAINING_STATE, model={"frozen": ["atom_embedding."]}, reference_energies="least-squares")
    after = load_model(trained(plan_file).model_file)
    before = load_model(TRAINING_STATE).model.state_dict()
    changed = {name for name, tensor in after.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("blocks.") for name in changed)
    assert not any(name.startswith("atom_embedding.") for name in changed)
    assert (after.card.forces, after.card.max_neighbors) == ("gradient", None)
    assert not after.model.has_force_head
    assert f"constant of {after.config.energy_shift:g} eV" in after.card.known_failures


def test_fine_tuning_starts_from_the_weights_that_are_asked_for(plan_file):
    fine_tuning(plan_file, TRAINING_STATE, model={"weights": "ema", "variant": "scitix"})
    run = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    average = load_model(TRAINING_STATE, weights="ema").model.state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in run.loaded.model.state_dict().items())


def test_the_original_e2former_gets_no_new_head(plan_file):
    fine_tuning(plan_file, TRAINING_STATE, model={"new_head": "mine"})
    with pytest.raises(CheckpointError, match="leave out new_head='mine' to train its head 'energy'"):
        TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))


@pytest.mark.shared
def test_a_model_fine_tuned_from_a_force_head_uses_gradients(plan_file, shared_dir):
    start = shared_dir / "fixtures" / "e2former_v2" / "direct_force_linear" / "checkpoint.pt"
    content = yaml.safe_load(plan_file.read_text()) | {"model": {"start_from": str(start)}}
    plan_file.write_text(yaml.safe_dump(content))
    assert load_model(trained(plan_file).model_file).card.forces == "gradient"


def test_training_leaves_no_global_state(plan_file):
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    trained(plan_file)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[1:]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dta": {}}, r"unknown keys \['dta'\]"),
        ({"data": {"trainng": "x"}}, r"section data has unknown keys \['trainng'\]"),
        ({"data": {"training": None}}, "section data needs `training`"),
        ({"data": {"validation": 0.1}}, "`validation` must be a number of frames or a file, got 0.1"),
        ({"training": {"lr": 1}}, r"training settings \['lr'\] do not exist"),
        ({"model": {"start_from": "ethanol-rmd17"}}, "cannot be changed together with start_from"),
        ({"model": {"new_head": "mine"}}, "belong to start_from, which is missing"),
        ({"reference_energies": "guess"}, "reference_energies must be least-squares, isolated-atoms or a table"),
        ({"card": {"refuse_outside": "maybe"}}, "refuse_outside must be true or false, got 'maybe'"),
        ({"card": {"colour": "red"}}, "section card has unknown keys"),
    ],
)
def test_a_bad_plan_is_one_error(plan_file, sections, message):
    with pytest.raises(ValueError, match=message):
        read_plan(change(plan_file, **sections))


def test_some_frames_of_a_file_are_chosen_with_an_index(plan_file):
    change(plan_file, data={"training": "frames.extxyz@:10", "validation": "frames.extxyz@10:14"})
    run = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    assert (len(run.data.training), len(run.data.validation)) == (10, 4)


def test_wildcards_stand_for_all_files_in_order(plan_file, frames):
    ase.io.write(plan_file.parent / "part-2.extxyz", frames[:2])
    ase.io.write(plan_file.parent / "part-1.extxyz", frames[:3])
    plan = read_plan(change(plan_file, data={"training": "part-*.extxyz@1:"}))
    chosen = [(file.path.name, file.index) for file in plan.training]
    assert chosen == [("part-1.extxyz", "1:"), ("part-2.extxyz", "1:")]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_bundled_models_are_valid(path):
    plan = read_plan(path)
    assert plan.card["name"] == path.stem
    assert plan.test is not None


def test_wildcards_that_match_nothing_are_an_error(plan_file):
    with pytest.raises(ValueError, match="no data file matches"):
        read_plan(change(plan_file, data={"training": "missing-*.extxyz"}))


def test_single_atoms_give_reference_energies(plan_file, frames):
    atoms = [single_atom("H", -0.5), single_atom("O", -2.0)]
    ase.io.write(plan_file.parent / "frames.extxyz", [*frames, *atoms])
    change(plan_file, reference_energies="isolated-atoms", data={"validation": 0})
    run = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    assert run.loaded.reference_energies[run.head][[1, 8]].tolist() == [-0.5, -2.0]


def test_other_validation_frames_are_not_continued_with(plan_file, frames):
    first = TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
    first.run(report=lambda _: None, max_minutes=0.0)
    ase.io.write(plan_file.parent / "frames.extxyz", frames[:-1])
    with pytest.raises(ValueError, match="other frames were kept aside"):
        TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"), resume=True)


def test_labels_that_are_nan_are_refused(plan_file, frames):
    broken = frames[3].copy()
    broken.info["energy"], broken.arrays["forces"] = float("nan"), frames[3].get_forces()
    ase.io.write(plan_file.parent / "frames.extxyz", [*frames[:3], broken, *frames[4:]])
    with pytest.raises(ValueError, match="3"):
        TrainingRun(read_plan(plan_file), plan_file.parent / "m", device=torch.device("cpu"))
