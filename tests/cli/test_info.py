from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ase.data import chemical_symbols

from e2former_calc import __version__
from e2former_calc.checkpoint import load_model, loading, write_native
from e2former_calc.checkpoint.card import UNKNOWN
from e2former_calc.checkpoint.loading import sha256
from e2former_calc.cli.info import element_ranges

from .conftest import Run, labelled


def test_card_is_printed_with_its_unknowns(run: Run, tiny_checkpoint: Path) -> None:
    result = run("info", tiny_checkpoint)
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    rows = {label.strip(): value.strip() for label, value in rows.items()}
    assert rows["architecture"] == "e2former_v2, variant main"
    assert rows["cutoff"] == "4.5 Å"
    assert rows["formulas"] == "any"
    assert rows["forces"] == "gradient of the energy"
    assert rows["sha256"] == sha256(tiny_checkpoint)
    assert rows["licence"] == UNKNOWN
    assert rows["inputs"] == "positions, elements, cell, charge, spin"


def test_models_say_whether_they_know_their_training_data(run: Run, model: Path, water: Path) -> None:
    assert "training domain  not in the file" in run("info", model).stdout
    run("convert", model, "m.safetensors", "--training-frames", labelled(water))
    assert "training domain  known for H O; distance from the training data" in run("info", "m.safetensors").stdout
    assert json.loads(run("info", "m.safetensors", "--json").stdout)["training_domains"] == ["omol25"]
    run("convert", "m.safetensors", "r.safetensors", "--refuse-outside")
    assert "refused" in run("info", "r.safetensors").stdout


def test_json_is_the_card_with_symbols(run: Run, model: Path) -> None:
    content = json.loads(run("info", model, "--json").stdout)
    assert content["name"] == "tiny"
    assert content["element_symbols"] == [chemical_symbols[z] for z in content["elements"]]
    assert content["sha256"] == sha256(model)


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (["H", "C", "N", "O"], "H C N O"),
        (["H", "He", "Li", "Be", "B", "C", "O"], "H-C O"),
        (["O", "H"], "H O"),
        (["C", "N", "O", "F"], "C N O F"),
        ([], ""),
    ],
)
def test_long_runs_of_elements_are_abbreviated(symbols: list[str], expected: str) -> None:
    assert element_ranges(symbols) == expected


def test_heads_with_different_elements_are_listed(run: Run, tiny_checkpoint: Path, folder: Path) -> None:
    content = load_model(tiny_checkpoint).content()
    (head,) = content.card.heads
    card = replace(content.card, heads=(head, "second"), default_head=None)
    elements = {**content.elements, "second": frozenset({1, 8})}
    write_native(folder / "two.safetensors", replace(content, card=card, elements=elements))
    output = run("info", "two.safetensors").stdout
    assert f"{head}, second; one must be chosen with --head" in output
    assert "  second" in output


def test_installation_lists_versions_devices_and_models(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MODELS_FOLDER", model.parent)
    monkeypatch.setattr("e2former_calc.cli.info.DEFAULT_MODEL", "tiny")
    output = run("info").stdout
    assert f"e2former_calc  {__version__}" in output
    assert "cpu" in output
    row = next(line for line in output.splitlines() if line.startswith("  tiny (default)"))
    assert row.split()[2] == "e2former_v2"
    assert row.endswith("CC0-1.0")


def test_installation_as_json(run: Run) -> None:
    content = json.loads(run("info", "--json").stdout)
    assert content["versions"]["e2former_calc"] == __version__
    assert "cpu" in content["devices"]


def test_bundled_name_is_a_model(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MODELS_FOLDER", model.parent)
    assert str(model) in run("info", "tiny").stdout


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", ".pt", "is truncated or not a torch checkpoint"),
        (b"PK\x03\x04 half a zip", ".pt", "is truncated or not a torch checkpoint"),
        (b"\x10\x00", ".safetensors", "is not a readable safetensors file"),
    ],
)
def test_damaged_model_file_is_one_line(run: Run, content: bytes, suffix: str, message: str) -> None:
    path = Path(f"broken{suffix}")
    path.write_bytes(content)
    result = run("info", path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {path} ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_model_file_is_one_line(run: Run, tiny_checkpoint: Path, model: Path, fraction: float) -> None:
    for source in (tiny_checkpoint, model):
        data = source.read_bytes()
        path = Path(f"cut{source.suffix}")
        path.write_bytes(data[: int(fraction * len(data))])
        result = run("info", path)
        assert result.exit_code == 1
        assert "truncated" in result.stderr
        assert result.stderr.count("\n") == 1


def test_missing_model_names_the_bundled_ones(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MODELS_FOLDER", model.parent)
    assert run("info", "no.pt").stderr == "Error: no model file 'no.pt'; bundled models: tiny\n"


def test_missing_yaml_names_the_option(run: Run, tiny_checkpoint: Path) -> None:
    Path("alone.pt").write_bytes(tiny_checkpoint.read_bytes())
    assert "pass --model-config ..." in run("info", "alone.pt").stderr
    config = tiny_checkpoint.with_name("config.yaml")
    assert run("info", "alone.pt", "--model-config", config).exit_code == 0
