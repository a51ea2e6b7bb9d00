from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase.build import molecule

from e2former_calc import E2FormerCalculator
from e2former_calc.checkpoint import CheckpointError, load_model, write_native
from e2former_calc.checkpoint.native import read_native
from e2former_calc.cli.convert import verify
from e2former_calc.potentials.applicability import TrainingDomain

from .conftest import Run, labelled


def test_converted_file_holds_the_same_bits(run: Run, tiny_checkpoint: Path) -> None:
    result = run("convert", tiny_checkpoint, "m.safetensors")
    source, target = load_model(tiny_checkpoint).content(), read_native(Path("m.safetensors"))
    assert result.exit_code == 0
    assert set(source.state) == set(target.state)
    assert all(torch.equal(source.state[name], target.state[name]) for name in source.state)
    assert f"{len(source.state)} tensors, bit for bit" in result.stdout


def test_converted_model_predicts_the_same(run: Run, tiny_checkpoint: Path) -> None:
    run("convert", tiny_checkpoint, "m.safetensors")
    atoms = molecule("CH3CH2OH")
    energies = [
        E2FormerCalculator(path, charge=0, spin=1).get_potential_energy(atoms)
        for path in (tiny_checkpoint, "m.safetensors")
    ]
    assert energies[0] == energies[1]


def test_card_fields_are_filled_from_options(run: Run, tiny_checkpoint: Path) -> None:
    options = ["--name", "x", "--level-of-theory", "PBE", "--licence", "MIT", "--training-data", "d", "--citation", "c"]
    result = run("convert", tiny_checkpoint, "m.safetensors", *options)
    card = read_native(Path("m.safetensors")).card
    assert (card.name, card.level_of_theory, card.licence) == ("x", "PBE", "MIT")
    assert (card.training_data, card.citation) == ("d", "c")
    assert "Not stated in the card" in result.stderr
    assert "--licence" not in result.stderr


def test_own_file_can_be_converted_to_change_its_card(run: Run, model: Path) -> None:
    run("convert", model, "m.safetensors", "--name", "renamed")
    card = read_native(Path("m.safetensors")).card
    assert (card.name, card.licence) == ("renamed", "CC0-1.0")


def test_elements_can_be_restricted(run: Run, model: Path) -> None:
    run("convert", model, "m.safetensors", "--elements", "H, C O")
    content = read_native(Path("m.safetensors"))
    assert content.card.elements == (1, 6, 8)
    assert set(content.elements.values()) == {frozenset({1, 6, 8})}


def test_formulas_are_stored_in_hill_order(run: Run, model: Path) -> None:
    run("convert", model, "m.safetensors", "--formulas", "CH3CH2OH, OH2")
    assert read_native(Path("m.safetensors")).card.compositions == ("C2H6O", "H2O")
    assert "C2H6O, H2O only" in run("info", "m.safetensors").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.safetensors", "--formulas", "(("], "--formulas must list chemical formulas such as C2H6O, got '(('"),
        (["m.safetensors", "--formulas", "Xy2"], "--formulas must list chemical formulas"),
        (["m.pt"], "TARGET must end in .safetensors, got 'm.pt'"),
        (["m.safetensors", "--elements", "H Xy"], "--elements must list element symbols, got 'H Xy'"),
        (["m.safetensors", "--elements", "H Og"], "--elements names Og, which the model does not cover"),
        (["m.safetensors", "--variant", "main"], "carries its own configuration"),
        (["no/m.safetensors"], "the folder no does not exist"),
    ],
)
def test_impossible_conversion_is_one_line(run: Run, model: Path, arguments: list[str], message: str) -> None:
    result = run("convert", model, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("m.safetensors").exists()


def test_existing_target_stays_without_overwrite(run: Run, model: Path) -> None:
    Path("m.safetensors").write_text("keep")
    assert "add --overwrite" in run("convert", model, "m.safetensors").stderr
    assert Path("m.safetensors").read_text() == "keep"
    assert run("convert", model, "m.safetensors", "--overwrite").exit_code == 0


def test_source_is_never_its_own_target(run: Run, model: Path) -> None:
    result = run("convert", model, model, "--overwrite")
    assert "is an input and would be replaced" in result.stderr


def test_failed_verification_leaves_the_old_file(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m.safetensors").write_text("keep")

    def damaged(path: Path, content: object) -> None:
        stored = load_model(model).content()
        state = {name: tensor + 1.0 for name, tensor in stored.state.items()}
        write_native(path, replace(stored, state=state))

    monkeypatch.setattr("e2former_calc.cli.convert.write_native", damaged)
    result = run("convert", model, "m.safetensors", "--overwrite")
    assert "does not hold what was written" in result.stderr
    assert Path("m.safetensors").read_text() == "keep"
    assert list(Path().glob(".*partial*")) == []


@pytest.mark.parametrize("what", ["zero sign", "card", "reference"])
def test_verification_sees_every_difference(model: Path, what: str) -> None:
    content = read_native(model)
    name = next(iter(content.state))
    zeros = content.state | {name: torch.zeros_like(content.state[name])}
    head = next(iter(content.reference_energies))
    changed = {
        "zero sign": replace(content, state=content.state | {name: -zeros[name]}),
        "card": replace(content, card=replace(content.card, cutoff=1.0)),
        "reference": replace(content, reference_energies={head: content.reference_energies[head] + 1e-12}),
    }[what]
    with pytest.raises(CheckpointError, match="does not hold what was written"):
        verify(model, changed)


def test_training_frames_give_a_domain_that_is_kept(run: Run, model: Path, water: Path) -> None:
    result = run("convert", model, "m.safetensors", "--training-frames", f"{labelled(water)}@:", "--refuse-outside")
    assert result.exit_code == 0, result.stderr
    run("convert", "m.safetensors", "again.safetensors", "--name", "again")
    first, again = (load_model(name) for name in ("m.safetensors", "again.safetensors"))
    (head,) = first.domains
    assert first.card.refuse_outside
    assert again.card.refuse_outside
    assert all(torch.equal(vars(again.domains[head])[name], t) for name, t in vars(first.domains[head]).items())


def test_validation_frames_alone_are_a_usage_error(run: Run, model: Path, water: Path) -> None:
    result = run("convert", model, "m.safetensors", "--validation-frames", water)
    assert result.exit_code == 1
    assert "--validation-frames needs --training-frames" in result.stderr


def test_a_domain_that_was_not_written_is_noticed(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    (head,), channels = loaded.card.heads, loaded.config.channels
    domain = TrainingDomain(torch.tensor([1]), torch.zeros(1, channels), torch.zeros(1, channels, channels))
    write_native(tmp_path / "m.safetensors", loaded.content())
    with pytest.raises(CheckpointError, match=r"domain\.omol25\.elements, .* differ"):
        verify(tmp_path / "m.safetensors", replace(loaded, domains={head: domain}).content())
