"""Official E2Former files: layout, strictness, running average, normalizers, round trip, calculator."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from e2former_calc import E2FormerCalculator
from e2former_calc.checkpoint import CheckpointError, load_model, load_potential, write_native
from e2former_calc.checkpoint.loading import absolute_path, resolve_path
from e2former_calc.checkpoint.official_v1 import build_official_v1, is_official_v1, read_content
from e2former_calc.potentials.e2former_v1 import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.official_config import read_official_config

DATA = Path(__file__).resolve().parents[1] / "data" / "e2former_v1"
FILE = DATA / "checkpoint.pt"
LAYOUTS: dict[str, Any] = json.loads(gzip.decompress((DATA / "official_tensors.json.gz").read_bytes()))
"""Names and shapes of all tensors, and the configuration, of official files of every architecture."""
ENERGY, LARGEST_FORCE = -4198.523735702, 0.14115074442
"""eV and eV/Å of ethanol, from the reading that agreed with the official code on all fixtures."""
BLOCK = "module.backbone.decoder.blocks.0."
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def stored() -> dict[str, Any]:
    """Full training state in the FairChem layout, random weights."""
    return torch.load(FILE, weights_only=True)


@pytest.fixture
def rewritten(stored: dict[str, Any], tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the file with a change."""

    def rewritten(change: Change) -> Path:
        content = {key: copy.copy(value) for key, value in stored.items()}
        change(content)
        torch.save(content, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return rewritten


def test_the_configuration_is_in_the_file():
    loaded = load_model(FILE)
    assert (loaded.card.architecture, loaded.card.variant, loaded.card.cutoff) == ("e2former_v1", "scitix", 5.0)
    assert (loaded.card.heads, loaded.card.forces, loaded.card.uses_charge) == (("energy",), "head", False)
    assert loaded.card.max_neighbors == 20


def test_weights_arrive_where_they_belong(stored):
    state, names = load_model(FILE).model.state_dict(), stored["state_dict"]
    pairs = {
        "atom_embedding.element.weight": "module.backbone.embedding.weight",
        "blocks.0.attention.score.query.last.weight": f"{BLOCK}ga.alpha_module.query_linear.final_linear.3.weight",
        "blocks.0.attention.branches.first.radial.last.bias":
            f"{BLOCK}ga.attention_order_module.rad_func_intputhead.net.6.bias",
        "blocks.0.feed_forward.sphere.gate.weight": f"{BLOCK}ffn_s2.gating_linear.weight",
        "energy_heads.energy.linear.weight": "module.output_heads.energy.linear.weight",
    }  # fmt: skip
    for ours, official in pairs.items():
        assert state[ours].equal(names[official])


def test_flat_convolution_weights_are_split_by_path(stored):
    flat = stored["state_dict"][f"{BLOCK}ga.attention_order_module.first_order_tp.tensor_product_tp_component_1.weight"]
    mixing = load_model(FILE).model.state_dict()["blocks.0.attention.branches.first.convolution.mixing.1"]
    # Flat order of paths: (0,1) (1,0) (1,1) (1,2) (2,1) (2,2), each 16 x 16.
    blocks = flat.reshape(6, 16, 16)
    assert mixing.equal(torch.cat([blocks[0].T, blocks[2].T, blocks[4].T], dim=1))


def test_normalizers_and_element_references_are_read():
    loaded = load_model(FILE)
    config = loaded.config
    assert (config.energy_scale, config.energy_shift, config.force_scale, config.force_shift) == (0.75, -16.25, 1.5, 0)
    assert loaded.reference_energies["energy"][6] == -1029.25
    assert loaded.elements["energy"] == {1, 6, 7, 8}


def test_the_card_says_that_energies_do_not_add_up():
    assert "constant of -16.25 eV" in load_model(FILE).card.known_failures


def test_the_card_says_where_the_encoder_sees_all_atoms(tmp_path):
    cards = []
    for name in ("ms_dit_first_QK", "h_dit_first_QK"):
        torch.save(_empty_file(LAYOUTS[name]), tmp_path / f"{name}.pt")
        cards.append(load_model(tmp_path / f"{name}.pt", LAYOUTS[name]["config"]).card.known_failures)
    assert ["energies of distant molecules do not add up" in text for text in cards] == [True, False]


def test_normalizers_of_older_trainers_are_read(rewritten):
    def change(content):
        content["normalizers"] = {"energy": {"mean": torch.tensor(2.0), "std": torch.tensor(4.0)}}

    config = load_model(rewritten(change)).config
    assert (config.energy_scale, config.energy_shift, config.force_scale) == (4.0, 2.0, 1.0)


def test_a_normalizer_without_scale_is_refused(rewritten):
    def change(content):
        content["normalizers"] = {"energy": {"mean": torch.tensor(2.0)}}

    with pytest.raises(CheckpointError, match=r"normalizer of 'energy' must hold mean and rmsd .*holds \['mean'\]"):
        load_model(rewritten(change))


def test_running_average_replaces_the_weights(stored):
    raw, average = (load_model(FILE, weights=w).model.state_dict() for w in ("raw", "ema"))
    assert average["atom_embedding.element.weight"].equal(stored["ema"]["shadow_params"][0])
    assert average["force_heads.energy.linear.weight"].equal(stored["ema"]["shadow_params"][-1])
    assert sum(not raw[name].equal(average[name]) for name in raw) > 100


def test_a_calculator_remembers_which_weights_it_uses():
    atoms = molecule("CH3CH2OH")
    raw, average = (E2FormerCalculator(FILE, forces="gradient", weights=w) for w in ("raw", "ema"))
    assert average.todict()["weights"] == "ema"
    energy = average.get_potential_energy(atoms)
    assert energy != raw.get_potential_energy(atoms)
    assert pickle.loads(pickle.dumps(average)).get_potential_energy(atoms) == energy


def test_a_missing_running_average_is_an_error(rewritten):
    with pytest.raises(CheckpointError, match="holds no running average of the weights: use weights='raw'"):
        load_model(rewritten(lambda content: content.pop("ema")), weights="ema")


def test_a_running_average_of_other_weights_is_an_error(rewritten):
    def change(content):
        content["ema"] = {"shadow_params": content["ema"]["shadow_params"][:-1]}

    with pytest.raises(CheckpointError, match=r"running average does not fit the parameter .*output_heads"):
        load_model(rewritten(change), weights="ema")


def test_files_of_ours_hold_one_set_of_weights(tmp_path):
    write_native(tmp_path / "model.safetensors", load_model(FILE).content())
    with pytest.raises(CheckpointError, match="holds one set of weights only: leave out `weights`"):
        load_model(tmp_path / "model.safetensors", weights="ema")


def test_files_of_the_second_family_hold_no_running_average(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="holds no running average of the weights"):
        load_model(tiny_checkpoint, weights="ema")


def test_unknown_choices_of_weights_are_refused():
    with pytest.raises(ValueError, match="`weights` must be 'raw' or 'ema', got 'best'"):
        load_model(FILE, weights="best")


def test_files_of_a_single_process_have_the_same_weights(rewritten):
    def change(content):
        state = content["state_dict"]
        content["state_dict"] = {name.removeprefix("module."): tensor for name, tensor in state.items()}

    plain, wrapped = (load_model(path).model.state_dict() for path in (rewritten(change), FILE))
    assert all(plain[name].equal(tensor) for name, tensor in wrapped.items())


def test_a_folder_of_the_trainer_stands_for_its_best_model(tmp_path):
    for name in ("best_checkpoint.pt", "checkpoint.pt"):
        shutil.copy(FILE, tmp_path / name)
    (tmp_path / "normalizers.pt").touch()
    assert resolve_path(tmp_path) == tmp_path / "best_checkpoint.pt"
    (tmp_path / "best_checkpoint.pt").unlink()
    assert resolve_path(tmp_path) == tmp_path / "checkpoint.pt"
    assert load_model(tmp_path).card.source == "checkpoint.pt"


@pytest.mark.parametrize(("files", "message"), [((), "it holds none"), (("a.pt", "b.pt"), r"it holds a\.pt, b\.pt")])
def test_a_folder_without_an_obvious_model_is_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"must hold one model or best_checkpoint.pt, {message}: name the file"):
        resolve_path(tmp_path)


def test_a_folder_that_is_named_like_a_bundled_model_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ethanol-rmd17").mkdir()
    assert resolve_path("ethanol-rmd17").suffix == ".safetensors"
    assert absolute_path("ethanol-rmd17") == "ethanol-rmd17"


def test_a_calculator_of_a_folder_is_restored_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    shutil.copy(FILE, tmp_path / "run" / "best_checkpoint.pt")
    monkeypatch.chdir(tmp_path)
    text = pickle.dumps(E2FormerCalculator("run", forces="gradient"))
    monkeypatch.chdir(tmp_path.parent)
    assert pickle.loads(text).potential.cutoff == 5.0


def test_missing_and_unexpected_tensors_are_listed_together(rewritten):
    def change(content):
        del content["state_dict"][f"{BLOCK}ffn_s2.gating_linear.bias"]
        content["state_dict"][f"{BLOCK}ga.surprise"] = torch.zeros(1)

    with pytest.raises(
        CheckpointError, match=r"(?s)1 missing tensors: .*sphere\.gate\.bias.*1 unexpected tensors: .*ga\.surprise"
    ):
        load_model(rewritten(change))


def test_wrong_shapes_are_listed(rewritten):
    def change(content):
        content["state_dict"][f"{BLOCK}norm_1.affine_bias"] = torch.zeros(7)

    with pytest.raises(CheckpointError, match=r"norm_1\.affine_bias has shape \(7,\), expected \(16,\)"):
        load_model(rewritten(change))


def test_damaged_weights_are_refused(rewritten):
    def change(content):
        content["state_dict"][f"{BLOCK}norm_1.affine_bias"] = torch.full((16,), torch.nan)

    with pytest.raises(CheckpointError, match=r"norm_1\.affine_bias contains NaN"):
        load_model(rewritten(change))


def test_another_cutoff_is_noticed(stored):
    values = copy.deepcopy(stored["config"])
    values["model"]["backbone"] |= {"max_radius": 6.0, "pbc_max_radius": 6.0}
    with pytest.raises(CheckpointError, match=r"rbf\.offset ends at 5\.0000 Å .* max_radius=6\.0"):
        load_model(FILE, values)


def test_another_variant_does_not_fit():
    with pytest.raises(CheckpointError, match=r"(?s)does not fit its configuration \(variant 'microsoft'\).*missing"):
        load_model(FILE, _with_encoder_width(), variant="microsoft")


def _with_encoder_width() -> dict[str, Any]:
    values = torch.load(FILE, weights_only=True)["config"]
    values["model"]["backbone"]["encoder_embed_dim"] = 16
    return values


def test_variants_of_the_other_family_are_refused():
    with pytest.raises(CheckpointError, match=r"variant must be one of \['scitix', .*got 'legacy'"):
        load_model(FILE, variant="legacy")


def test_an_uncertain_variant_is_asked_for(rewritten):
    def change(content):
        names = [name for name in content["state_dict"] if ".alpha_module." in name]
        for name in names:
            del content["state_dict"][name]

    with pytest.raises(CheckpointError, match=r"choose variant=\.\.\. from"):
        load_model(rewritten(change))


def test_files_of_the_second_family_are_not_taken_for_the_first(tiny_checkpoint):
    assert not is_official_v1(torch.load(tiny_checkpoint, weights_only=True))


def test_heads_of_lsr_files_have_their_names():
    state = {"decoder.decoder.edge_deg_embed_dense.x": torch.zeros(1)}
    state |= {f"molfm_finetune_head.energy_heads.{name}.0.weight": torch.zeros(1) for name in ("md", "qm")}
    assert is_official_v1({"model": state})
    assert read_content({"model": state}).heads == ("md", "qm")


def test_conversion_keeps_every_number(tmp_path):
    loaded, water = load_model(FILE), molecule("H2O")
    write_native(tmp_path / "model.safetensors", loaded.content())
    again = load_model(tmp_path / "model.safetensors")
    assert again.config == loaded.config
    state = again.model.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in loaded.model.state_dict().items())
    energies = []
    for path in (FILE, tmp_path / "model.safetensors"):
        with pytest.warns(UserWarning, match="forces come from a network head"):
            water.calc = E2FormerCalculator(path, dtype="float64", device="cpu")
        energies.append(water.get_potential_energy())
    assert energies[0] == energies[1]


def test_energy_and_forces_are_those_of_the_first_reading():
    potential = load_potential(FILE, dtype="float64", device="cpu")
    atoms = molecule("CH3CH2OH")
    with pytest.warns(UserWarning, match="forces come from a network head"):
        atoms.calc = E2FormerCalculator(FILE, dtype="float64", device="cpu")
    assert potential.conservative is False
    assert atoms.get_potential_energy() == pytest.approx(ENERGY, rel=1e-10)
    assert np.abs(atoms.get_forces()).max() == pytest.approx(LARGEST_FORCE, rel=1e-9)


def test_conservative_forces_can_be_chosen():
    atoms = molecule("H2O")
    atoms.calc = E2FormerCalculator(FILE, forces="gradient", dtype="float64", device="cpu")
    forces = atoms.get_forces()
    atoms.positions[0, 2] += 1e-5
    up = atoms.get_potential_energy()
    atoms.positions[0, 2] -= 2e-5
    assert forces[0, 2] == pytest.approx(-(up - atoms.get_potential_energy()) / 2e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "ours"), [("math", "reference"), ("memory_efficient", "blocked"), ("flash", "blocked")]
)
def test_kernel_names_of_the_official_readme_are_execution_choices(name, ours):
    assert load_potential(FILE, implementation=name, device="cpu").model.implementation == ours
    assert name in load_model(FILE).card.intended_use


def _empty_file(layout: dict[str, Any]) -> dict[str, Any]:
    """A file of that layout in which every tensor is one everywhere, apart from the basis centres."""
    state = {name: torch.ones(1).expand(shape) for name, shape in layout["tensors"].items()}
    backbone = layout["config"].get("model", {}).get("backbone", layout["config"])
    offsets = [name for name in state if name.endswith("rbf.offset")]
    state |= dict.fromkeys(offsets, torch.linspace(0.0, backbone["max_radius"], backbone["number_of_basis"]))
    return {layout["layout"]: state}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_of_every_architecture_are_recognised_and_read_strictly(name):
    layout = LAYOUTS[name]
    content = _empty_file(layout)
    assert is_official_v1(content)
    official = read_content(content)
    assert official.variant == layout["variant"]
    config, model = build_official_v1(official, layout["config"], None)
    assert config.variant == layout["variant"]
    assert all(bool((parameter == 1.0).all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", LAYOUTS)
def test_configurations_of_every_architecture_survive_json(name):
    layout = LAYOUTS[name]
    config = read_official_config(layout["config"], variant=layout["variant"])
    assert E2FormerV1Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
