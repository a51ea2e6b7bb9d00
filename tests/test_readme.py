"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from e2former_calc.cli import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_two_shell_commands():
    assert len(blocks("bash")) == 2


def test_the_first_command_relaxes_the_bundled_molecule(tmp_path, monkeypatch):
    command = blocks("bash")[0].split("&&")[1]
    program, *arguments = shlex.split(command)
    structure = ROOT / "examples" / "Ac-Ala3-NHMe.xyz"
    assert program == "e2former"
    assert "examples/Ac-Ala3-NHMe.xyz" in arguments
    monkeypatch.chdir(tmp_path)
    arguments = [str(structure) if argument == "examples/Ac-Ala3-NHMe.xyz" else argument for argument in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "Ac-Ala3-NHMe-relaxed.extxyz").exists()


def test_every_command_in_the_table_exists():
    listed = re.findall(r"^e2former (\w+)", "\n".join(blocks("text")), flags=re.M)
    assert set(listed) == set(main.list_commands(None))


def test_the_version_is_the_same_everywhere():
    import e2former_calc

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == e2former_calc.__version__
