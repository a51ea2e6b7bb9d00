"""Our file format: bit-identical, self-describing, safe to interrupt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from e2former_calc.checkpoint import CheckpointError, load_model, load_potential, write_native
from e2former_calc.checkpoint.loading import LoadedModel
from e2former_calc.potentials.system import System


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedModel:
    return load_model(tiny_checkpoint)


@pytest.fixture
def converted(loaded: LoadedModel, tmp_path: Path) -> Path:
    write_native(tmp_path / "model.safetensors", loaded.content())
    return tmp_path / "model.safetensors"


def test_weights_come_back_bit_for_bit(loaded, converted):
    before, after = loaded.model.state_dict(), load_model(converted).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_card_comes_back(loaded, converted):
    assert load_model(converted).card == loaded.card


def test_predictions_are_identical(tiny_checkpoint, converted):
    water = System.single([[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6]], [8, 1, 1])
    official, ours = (
        load_potential(path)(water, properties=frozenset({"forces"})) for path in (tiny_checkpoint, converted)
    )
    assert torch.equal(official.forces, ours.forces)
    assert torch.equal(official.energy, ours.energy)


def test_the_header_is_json_with_what_a_reader_needs(converted):
    with safe_open(converted, framework="pt") as file:
        header = json.loads(file.metadata()["e2former_calc"])
    assert {"format_version", "architecture", "config", "elements", "card"} <= header.keys()
    assert {"cutoff", "max_neighbors", "heads", "units", "licence", "citation", "source_sha256"} <= header[
        "card"
    ].keys()


def test_a_newer_format_is_refused(converted):
    tensors = {}
    with safe_open(converted, framework="pt") as file:
        header = json.loads(file.metadata()["e2former_calc"]) | {"format_version": 99}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, converted, metadata={"e2former_calc": json.dumps(header)})
    with pytest.raises(CheckpointError, match="format version 99"):
        load_model(converted)


@pytest.mark.parametrize("missing", ["architecture", "card", "elements", "format_version"])
def test_an_incomplete_header_is_refused(converted, missing):
    with safe_open(converted, framework="pt") as file:
        header = json.loads(file.metadata()["e2former_calc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header[missing]
    save_file(tensors, converted, metadata={"e2former_calc": json.dumps(header)})
    with pytest.raises(CheckpointError, match=f"header of .* is damaged: KeyError '{missing}'"):
        load_model(converted)


def test_a_truncated_file_is_refused(converted):
    converted.write_bytes(converted.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(converted)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="was not written by e2former_calc"):
        load_model(tmp_path / "x.safetensors")


def test_a_missing_tensor_is_refused(loaded, tmp_path):
    content = loaded.content()
    state = {name: tensor for name, tensor in content.state.items() if name != "condition.bias"}
    write_native(tmp_path / "m.safetensors", dataclasses.replace(content, state=state))
    with pytest.raises(CheckpointError, match=r"condition\.bias"):
        load_model(tmp_path / "m.safetensors")


def test_a_failed_write_leaves_the_old_file(loaded, converted, monkeypatch):
    before = converted.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_native(converted, loaded.content())
    assert converted.read_bytes() == before
    assert list(converted.parent.iterdir()) == [converted]
