from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from ase.io import write
from click import UsageError
from click.testing import CliRunner, Result

from e2former_calc.cli import doctor as doctor_module
from e2former_calc.cli import main
from e2former_calc.cli.doctor import report_lines, split_arguments
from e2former_calc.cli.options import ModelOptions
from e2former_calc.doctor import Check


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Checks that the command gets instead of an examination."""
    checks = [Check("rotation", 1e-12, "eV", 1e-10, "pass", "turned")]
    monkeypatch.setattr(doctor_module, "examine", lambda *args, **options: checks)
    return checks


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def test_model_and_structure_are_examined_and_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    structure = tmp_path / "water.xyz"
    write(structure, molecule("H2O"))
    result = run(tiny_checkpoint, structure, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "rotation, forces" in result.output
    assert "forces against differences, water.xyz" in result.output
    summary = json.loads((tmp_path / "run-summary.json").read_text())
    verdicts = {check["name"]: check["verdict"] for check in summary["results"]["checks"]}
    assert verdicts["rotation, forces"] == "pass"
    assert verdicts["neighbour cap, periodic water"] == "fail"
    assert verdicts["precision, forces"] == "pass"


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("skip", 0), ("note", 0), ("fail", 2)])
def test_exit_code_says_whether_a_check_failed(
    tiny_checkpoint: Path, verdicts: list[Check], verdict: str, code: int
) -> None:
    verdicts.append(Check("x", None, "", None, verdict, "why"))  # type: ignore[arg-type]
    result = run("--model", tiny_checkpoint)
    assert result.exit_code == code
    assert f"{int(verdict == 'fail')} fail" in result.output


def test_missing_model_is_an_error_with_code_1() -> None:
    result = run("no-such-model")
    assert result.exit_code == 1
    assert "no model file 'no-such-model'" in result.output


def test_existing_summary_is_kept(tiny_checkpoint: Path, tmp_path: Path, verdicts: list[Check]) -> None:
    (tmp_path / "run-summary.json").write_text("precious")
    result = run(tiny_checkpoint, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "--overwrite" in result.output
    assert (tmp_path / "run-summary.json").read_text() == "precious"


def options(model: str | None) -> ModelOptions:
    return ModelOptions(
        model=model, model_config=None, head=None, variant=None, device="cpu", dtype="float32", charge=None, spin=None,
        forces="auto", neighbor_cap="official", out=None, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("model", "arguments", "expected"), [
    (None, (), (None, None)),
    (None, ("m.pt",), ("m.pt", None)),
    (None, ("m.pt", "s.xyz"), ("m.pt", Path("s.xyz"))),
    ("m.pt", (), ("m.pt", None)),
    ("m.pt", ("s.xyz",), ("m.pt", Path("s.xyz"))),
])  # fmt: skip
def test_model_is_an_argument_or_an_option(
    model: str | None, arguments: tuple[str, ...], expected: tuple[str | None, Path | None]
) -> None:
    chosen, structure = split_arguments(options(model), arguments)
    assert (chosen.model, structure) == expected


@pytest.mark.parametrize(("model", "arguments"), [(None, ("m", "s", "t")), ("m", ("s", "t"))])
def test_too_many_arguments_are_refused(model: str | None, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="too many arguments"):
        split_arguments(options(model), arguments)


def test_passed_checks_are_explained_on_request() -> None:
    checks = [Check("rotation", 1e-12, "eV", 1e-10, "pass", "turned around")]
    assert "turned around" not in "\n".join(report_lines(checks, explain=False))
    assert "turned around" in "\n".join(report_lines(checks, explain=True))


def test_equal_explanations_are_given_once() -> None:
    checks = [Check(name, 1.0, "eV", 0.0, "fail", "same reason") for name in ("one", "two")]
    text = "\n".join(report_lines(checks, explain=False))
    assert text.count("same reason") == 1
    assert "one; two" in text
