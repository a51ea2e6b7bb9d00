"""Loading is strict: everything that does not fit is one error that lists it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from e2former_calc.checkpoint import CheckpointError, load_model, load_potential, write_native
from e2former_calc.potentials.interface import Potential


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Writable copy of an official checkpoint with its YAML."""
    for file in tiny_checkpoint.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture
def config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def rewrite(folder: Path, change) -> Path:
    """Apply `change` to the stored state dict."""
    path = folder / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    return path


def test_the_yaml_is_found_beside_the_file(folder):
    assert load_potential(folder / "checkpoint.pt").cutoff == 4.5


def test_the_config_may_be_a_mapping(folder, config):
    (folder / "config.yaml").unlink()
    assert load_potential(folder / "checkpoint.pt", config).cutoff == 4.5


def test_a_loaded_model_is_a_potential(tiny):
    assert isinstance(tiny, Potential)


def test_two_yamls_must_be_chosen_from(folder):
    shutil.copy(folder / "config.yaml", folder / "other.yml")
    with pytest.raises(CheckpointError, match=r"exactly one.*other\.yml"):
        load_potential(folder / "checkpoint.pt")


def test_a_missing_yaml_is_asked_for(folder):
    (folder / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"found none; pass config="):
        load_potential(folder / "checkpoint.pt")


def test_missing_and_unexpected_tensors_are_listed_together(folder):
    def change(state):
        state["decoder.decoder.blocks.0.ga.extra"] = torch.zeros(1)
        del state["head.energy_heads.omol25.mlp.4.bias"]

    with pytest.raises(
        CheckpointError, match=r"(?s)1 missing tensors: .*last\.bias.*1 unexpected tensors: .*ga\.extra"
    ):
        load_potential(rewrite(folder, change))


def test_wrong_shapes_are_listed_with_both_shapes(folder):
    def change(state):
        state["decoder.mix_cm.0.bias"] = torch.zeros(7)

    with pytest.raises(CheckpointError, match=r"decoder\.mix_cm\.0\.bias has shape \(7,\), expected \(32,\)"):
        load_potential(rewrite(folder, change))


def test_nan_weights_are_refused(folder):
    def change(state):
        state["decoder.mix_cm.0.bias"][0] = torch.nan

    with pytest.raises(CheckpointError, match=r"decoder\.mix_cm\.0\.bias contains NaN"):
        load_potential(rewrite(folder, change))


def test_a_contradicting_cutoff_is_refused(folder, config):
    config["backbone_config"]["max_radius"] = 6.0
    with pytest.raises(
        CheckpointError, match=r"rbf\.offset ends at 4\.5000 Å but the configuration says max_radius=6\.0"
    ):
        load_potential(folder / "checkpoint.pt", config)


@pytest.mark.parametrize("kept", [0, 1, 100, 50_000, -1000, -1])
def test_a_truncated_file_is_reported(folder, kept):
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"truncated or not a torch checkpoint|cannot be read safely"):
        load_potential(path)


def test_classes_are_never_unpickled(folder):
    path = folder / "checkpoint.pt"
    torch.save({"model": {"x": Path("x")}}, path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_potential(path)


def test_other_checkpoints_are_refused_by_their_keys(folder):
    torch.save({"state_dict": {}}, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of a known layout.*state_dict"):
        load_potential(folder / "checkpoint.pt")


def test_an_unknown_name_lists_the_bundled_models():
    with pytest.raises(FileNotFoundError, match=r"no model file 'nothing'; bundled models:"):
        load_potential("nothing")


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2", "not valid YAML"), ("just text", "expected a mapping"), ("a: 1", "backbone_config")]
)
def test_bad_yaml_is_reported(folder, text, message):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_potential(folder / "checkpoint.pt")


def test_several_heads_must_be_chosen_from(folder, config):
    def change(state):
        for key in [k for k in state if ".omol25." in k]:
            state[key.replace("omol25", "tzvpd")] = state[key].clone()

    config["dataset_name_list"] = "omol25,tzvpd"
    path = rewrite(folder, change)
    with pytest.raises(CheckpointError, match=r"several heads; choose one with head=\.\.\.: \['omol25', 'tzvpd'\]"):
        load_potential(path, config)
    assert load_potential(path, config, "tzvpd").head == "tzvpd"


def test_aliases_share_a_stored_head(folder, config):
    config["dataset_name_list"] = "tzvpd-small"
    config["head_cfg_str"] = "share"
    assert load_potential(folder / "checkpoint.pt", config).head == "tzvpd-small"


def test_loading_leaves_the_random_state_alone(tiny_checkpoint):
    before = torch.get_rng_state()
    load_model(tiny_checkpoint)
    assert torch.equal(before, torch.get_rng_state())


def test_variant_is_for_official_files_only(tiny_checkpoint, tmp_path):
    write_native(tmp_path / "m.safetensors", load_model(tiny_checkpoint).content())
    with pytest.raises(CheckpointError, match="leave out `config` and `variant`"):
        load_potential(tmp_path / "m.safetensors", variant="legacy")
