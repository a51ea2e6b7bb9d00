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


def test_the_first_command_writes_a_report(tmp_path, monkeypatch):
    program, *arguments = shlex.split(blocks("bash")[0].split("&&")[1])
    assert (program, arguments) == ("e2former", ["rollout", "--overwrite"])
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*arguments, "--time-ps", "0.008"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "rollout" / "report.html").exists()


def test_every_command_in_the_table_exists():
    listed = re.findall(r"^e2former (\w+)", "\n".join(blocks("text")), flags=re.M)
    assert set(listed) == set(main.list_commands(None))


def test_the_version_is_the_same_everywhere():
    import e2former_calc

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == e2former_calc.__version__
