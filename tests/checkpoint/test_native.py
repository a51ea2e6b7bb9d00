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
from e2former_calc.potentials.applicability import TrainingDomain
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


@pytest.fixture
def domain(loaded: LoadedModel) -> TrainingDomain:
    generator = torch.Generator().manual_seed(0)
    channels = loaded.config.channels
    return TrainingDomain(
        torch.tensor([1, 8]),
        torch.randn(2, channels, generator=generator),
        torch.randn(2, channels, channels, generator=generator),
    )


@pytest.fixture
def located(loaded: LoadedModel, domain: TrainingDomain, tmp_path: Path) -> Path:
    """A file with a training domain."""
    write_native(tmp_path / "located.safetensors", dataclasses.replace(loaded, domains={"omol25": domain}).content())
    return tmp_path / "located.safetensors"


def rewritten(path: Path, change_tensors, change_header=lambda header: None) -> Path:
    """The file with other tensors or another header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["e2former_calc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change_tensors(tensors)
    change_header(header)
    save_file(tensors, path, metadata={"e2former_calc": json.dumps(header)})
    return path


def test_a_training_domain_comes_back_bit_for_bit(located, domain):
    for stored in (load_model(located).domains["omol25"], load_potential(located, device="cpu").domain):
        assert all(torch.equal(getattr(stored, name), tensor) for name, tensor in vars(domain).items())


def test_a_model_without_a_domain_has_no_trace_of_one(converted):
    with safe_open(converted, framework="pt") as file:
        assert not any(name.startswith("domain") for name in file.keys())  # noqa: SIM118
        assert "domain_version" not in json.loads(file.metadata()["e2former_calc"])
    assert load_model(converted).domains == {}
    assert load_potential(converted).domain is None


def test_a_written_file_is_written_again_byte_for_byte(converted, located, tmp_path):
    for path in (converted, located):
        write_native(tmp_path / "again.safetensors", load_model(path).content())
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_card_from_before_there_were_domains_refuses_nothing(converted):
    rewritten(converted, lambda tensors: None, lambda header: header["card"].pop("refuse_outside"))
    assert load_model(converted).card.refuse_outside is False


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": None}, r"head 'omol25' lacks or does not know \['mean'\]"),
        ({"x": torch.zeros(1)}, r"head 'omol25' lacks or does not know \['x'\]"),
        ({"mean": torch.full((2, 32), torch.nan)}, "head 'omol25': `mean` holds numbers that are not finite"),
        ({"elements": torch.tensor([8, 1])}, "head 'omol25': `elements` must be ascending"),
        ({"whitening": torch.zeros(2, 32, 32).double()}, "head 'omol25': `whitening` must be float32 of shape"),
        ({"mean": torch.zeros(2, 5), "whitening": torch.zeros(2, 5, 5)}, "has 5 channels, the network 32"),
    ],
)
def test_a_broken_domain_is_refused_by_name(located, changed, message):
    def change(tensors):
        for name, tensor in changed.items():
            tensors.pop(f"domain.omol25.{name}", None)
            tensors |= {} if tensor is None else {f"domain.omol25.{name}": tensor}

    with pytest.raises(CheckpointError, match=message):
        load_model(rewritten(located, change))


def test_a_domain_of_no_head_is_refused(located):
    def rename(tensors):
        for name in ("elements", "mean", "whitening"):
            tensors[f"domain.other.{name}"] = tensors.pop(f"domain.omol25.{name}")

    with pytest.raises(CheckpointError, match="training domain of head 'other' belongs to no head of the model"):
        load_model(rewritten(located, rename))


def test_a_domain_of_a_newer_version_is_refused(located):
    rewritten(located, lambda tensors: None, lambda header: header.update(domain_version=2))
    with pytest.raises(CheckpointError, match="training domains of version 2, known is 1: upgrade"):
        load_model(located)


def test_a_failed_write_leaves_the_old_file(loaded, converted, monkeypatch):
    before = converted.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_native(converted, loaded.content())
    assert converted.read_bytes() == before
    assert list(converted.parent.iterdir()) == [converted]
