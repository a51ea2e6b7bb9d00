from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner, Result

from e2former_calc import __version__
from e2former_calc.cli import COMMANDS, main
from e2former_calc.cli.group import LazyGroup
from e2former_calc.cli.messages import one_line, user_error_text, warnings_on_stderr

from .conftest import Run


def group_with(monkeypatch: pytest.MonkeyPatch, body: Callable[[], None]) -> LazyGroup:
    """A group with the command `work`, and the command `broken` whose module does not exist."""

    @click.command()
    @click.option("--debug", is_flag=True)
    def work(debug: bool) -> None:
        if debug:
            click.get_current_context().meta["e2former_calc.debug"] = True
        body()

    package = types.ModuleType("fake")
    module = types.ModuleType("fake.work")
    module.work = work  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake", package)
    monkeypatch.setitem(sys.modules, "fake.work", module)
    return LazyGroup("tool", package="fake", commands={"work": "Do it.", "broken": "Not there."})


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> Result:
    def body() -> None:
        raise error

    return CliRunner().invoke(group_with(monkeypatch, body), ["work", *arguments])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_all_commands(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert all(f"  {name}" in result.stdout for name in COMMANDS)


def test_listing_imports_no_command() -> None:
    program = (
        "import sys\nfrom e2former_calc.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in sys.modules if m.startswith('e2former_calc.cli.')])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    imported = output.splitlines()[-1]
    assert "e2former_calc.cli.group" in imported
    assert not any(f"e2former_calc.cli.{name}'" in imported for name in COMMANDS)


def test_installed_script_is_this_group() -> None:
    (script,) = entry_points(group="console_scripts", name="e2former")
    assert script.load() is main


def test_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == f"e2former, version {__version__}\n"


@pytest.mark.parametrize("name", [*COMMANDS])
def test_every_command_explains_itself(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--config" in result.stdout or "CONFIG.yaml" in result.stdout
    assert "--debug" in result.stdout


def test_unknown_command_is_one_line(run: Run) -> None:
    result = run("enrgy")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: No such command 'enrgy'")
    assert result.stderr.count("\n") == 1


def test_command_that_cannot_be_imported_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_with(monkeypatch, lambda: click.echo("done"))
    assert CliRunner().invoke(group, ["work"]).stdout == "done\n"
    broken = CliRunner().invoke(group, ["broken"])
    assert broken.exit_code == 1
    assert broken.stderr.startswith("Error: the command 'broken' cannot be loaded")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad\n  value"), "bad value"),
        (FileNotFoundError(2, "No such file or directory", "a.xyz"), "No such file or directory: a.xyz"),
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied: /x/y"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError("no model file 'x'"), "no model file 'x'"),
        (NotImplementedError("'stress' is not available"), "'stress' is not available"),
        (MemoryError(), "out of memory: use a smaller structure, smaller batches, or another --device ()"),
        (ValueError(), "ValueError"),
    ],
)
def test_error_of_the_user_is_one_line_with_code_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    result = failing(monkeypatch, error)
    assert (result.exit_code, result.stderr) == (1, f"Error: {text}\n")


@pytest.mark.parametrize("error", [TypeError("bug"), KeyError("bug"), RuntimeError("bug"), AssertionError("bug")])
def test_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert failing(monkeypatch, error).exception is error


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("bad value")
    assert failing(monkeypatch, error, "--debug").exception is error


def test_debug_option_works_on_a_real_command(run: Run) -> None:
    assert isinstance(run("info", "no-such-model", "--debug").exception, FileNotFoundError)


def test_keyboard_interrupt_ends_with_the_code_of_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(monkeypatch, KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_command_chooses_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_with(monkeypatch, lambda: click.get_current_context().exit(2))
    assert CliRunner().invoke(group, ["work"]).exit_code == 2


def test_embedded_call_raises_instead_of_exiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        raise ValueError("bad")

    with pytest.raises(click.ClickException, match="bad"):
        group_with(monkeypatch, body).main(["work"], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use forces='gradient'", "use --forces gradient"),
        ("neighbor_cap='none' keeps", "--neighbor-cap none keeps"),
        ("choose one with head=...: ['a']", "choose one with --head ...: ['a']"),
        ("pass config=...", "pass --model-config ..."),
        ("max_radius=4.5", "max_radius=4.5"),
        ("a\n  b\t c", "a b c"),
    ],
)
def test_python_arguments_become_options(text: str, expected: str) -> None:
    assert one_line(text) == expected


def test_broken_pipe_is_left_to_click() -> None:
    assert user_error_text(BrokenPipeError(32, "Broken pipe")) is None


def test_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_on_stderr():
        for text in ("first", "second", "first"):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "Warning: first\nWarning: second\n"
