from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from e2former_calc.checkpoint import loading
from e2former_calc.cli.options import ModelOptions, model_options

from .conftest import Run

TRAINING_STATE = Path(__file__).resolve().parents[1] / "data" / "e2former_v1" / "checkpoint.pt"


@click.command()
@model_options
@click.option("--steps", type=int, default=10)
@click.option("--fast", is_flag=True)
@click.option("--name", multiple=True)
def command(options: ModelOptions, steps: int, fast: bool, name: tuple[str, ...]) -> None:
    """Print what arrived."""
    click.echo(f"{options.dtype} {options.charge} {options.neighbor_cap} {options.model} {steps} {fast} {name}")


def call(yaml: str, *arguments: str) -> Result:
    Path("c.yaml").write_text(yaml)
    return CliRunner().invoke(command, ["--config", "c.yaml", *arguments])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("yaml", "arguments", "expected"),
    [
        ("", [], "float32 None official None 10 False ()"),
        ("dtype: float64\ncharge: -1\nsteps: 3\n", [], "float64 -1 official None 3 False ()"),
        ("neighbor-cap: none\nfast: true\n", [], "float32 None none None 10 True ()"),
        ("neighbor_cap: none\nsteps:\n", [], "float32 None none None 10 False ()"),
        ("dtype: float64\nsteps: 3\n", ["--steps", "4"], "float64 None official None 4 False ()"),
        ("name: [a, b]\n", [], "float32 None official None 10 False ('a', 'b')"),
        ("name: a\n", [], "float32 None official None 10 False ('a',)"),
        ("name: [a, b]\n", ["--name", "c"], "float32 None official None 10 False ('c',)"),
        ("model: 7.pt\n", [], "float32 None official 7.pt 10 False ()"),
    ],
)
def test_file_gives_defaults_and_the_command_line_wins(yaml: str, arguments: list[str], expected: str) -> None:
    assert call(yaml, *arguments).output == expected + "\n"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("stepz: 3\nfsat: true\n", "unknown keys fsat, stepz; this command knows charge, clusters, debug"),
        ("config: d.yaml\n", "unknown keys config"),
        ("- steps\n", "must hold lines 'option: value'"),
        ("steps: [1\n", "is not readable YAML"),
        ("steps: [1, 2]\n", "steps must be one value, got [1, 2]"),
        ("steps: {a: 1}\n", "steps must be one value"),
        ("steps: true\n", "steps must be one value, got True"),
        ("name: {a: 1}\n", "name must be a list, got {'a': 1}"),
        ("fast: 3\n", "fast must be true or false, got 3"),
        ("charge: 1.5\n", "'1.5' is not a valid integer"),
        ("dtype: float16\n", "'float16' is not one of 'float32', 'float64'"),
    ],
)
def test_bad_file_is_refused_with_the_reason(yaml: str, message: str) -> None:
    result = call(yaml)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_config_file_works_with_a_real_command(run: Run, model: Path, water: Path) -> None:
    Path("run.yaml").write_text(f"model: {model}\ndtype: float64\nout: run\n")
    result = run("energy", water, "--config", "run.yaml", "--dtype", "float32")
    assert "cpu, float32" in result.stderr
    assert '"config_file": "run.yaml"' in Path("run-summary.json").read_text()


def test_default_model_is_used_if_none_is_named(
    run: Run, water: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "DEFAULT_MODEL", str(model))
    assert f"model {model}" in run("energy", water).stderr


def test_uncovered_structure_is_only_warned_about_on_request(run: Run, model: Path, water: Path) -> None:
    run("convert", model, "ethanol.safetensors", "--formulas", "C2H6O")
    refused = run("energy", water, "--model", "ethanol.safetensors")
    assert refused.exit_code == 1
    assert "says nothing about H2O" in refused.stderr
    assert "(--no-strict evaluates anyway)" in refused.stderr
    allowed = run("energy", water, "--model", "ethanol.safetensors", "--no-strict")
    assert allowed.exit_code == 0
    assert "Warning: this model was trained on C2H6O only" in allowed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu9"], "`device` 'tpu9' is not a torch device"),
        (["--head", "nope"], "has no head 'nope'; choose --head ..."),
        (["--dtype", "half"], "'half' is not one of 'float32', 'float64'"),
        (["--forces", "head"], "no force head"),
        (["--weights", "ema"], "holds one set of weights only"),
        (["--weights", "best"], "'best' is not one of 'raw', 'ema'"),
        (["--charge", "99"], "charge 99 is outside -10 ... 10"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_shared_option_is_one_line(run: Run, model: Path, water: Path, arguments: list[str], message: str) -> None:
    result = run("energy", water, "--model", model, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_the_running_average_of_a_training_state_can_be_chosen(run: Run, water: Path) -> None:
    outputs = {}
    for choice in ("raw", "ema"):
        result = run(
            "energy", water, "--model", TRAINING_STATE, "--weights", choice, "--forces", "gradient", "--out", choice
        )
        assert result.exit_code == 0, result.output
        assert f'"weights": "{choice}"' in Path(f"{choice}-summary.json").read_text()
        outputs[choice] = result.stdout
    assert outputs["raw"] != outputs["ema"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("energy", "--out PREFIX Prefix of the output files"),
        ("rollout", "--out DIR Folder of all output files; default rollout."),
    ],
)  # fmt: skip
def test_out_is_a_prefix_or_a_folder(run: Run, command: str, text: str) -> None:
    assert text in " ".join(run(command, "--help").output.split())


@pytest.mark.parametrize("command", ["energy", "doctor", "relax", "bench", "info", "convert"])
def test_help_lists_every_variant_and_both_weights(run: Run, command: str) -> None:
    text = " ".join(run(command, "--help").output.split())
    for word in ("main", "legacy", "scitix", "modular", "microsoft", "lsr", "[raw|ema]"):
        assert word in text


@pytest.mark.parametrize(
    ("option", "value", "attribute"),
    [("--charge", 1, "charge"), ("--spin", 3, "spin")],
)
def test_shared_options_reach_the_calculator(
    run: Run, model: Path, water: Path, option: str, value: int, attribute: str
) -> None:
    result = run("energy", water, "--model", model, option, value)
    assert f"{attribute} {value}" in result.stdout


def test_extra_arguments_of_the_calculator_win(model: Path) -> None:
    options = ModelOptions(str(model), None, None, None, "cpu", "float32", 0, 1, "auto", "official", None, 0)
    assert options.calculator(dtype="float64").todict()["dtype"] == "float64"
