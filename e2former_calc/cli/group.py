"""A click group that imports a subcommand when it is called, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from e2former_calc.cli.messages import one_line, user_error_text, warnings_on_stderr
from e2former_calc.cli.options import DEBUG_KEY

ERROR, INTERRUPTED = 1, 130
"""Exit codes; 2 is left to commands that end without success, such as a relaxation that does not converge."""


class LazyGroup(click.Group):
    """Group whose commands are `<package>.<name>.<name>`.

    Help texts of the group come from `commands`, so that listing imports nothing, and a command that
    cannot be imported leaves the others usable.

    Args:
        package: module that the commands' modules are in.
        commands: one-line help by command name.
    """

    def __init__(self, *args: Any, package: str, commands: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package = package
        self._short_help = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which help shows them."""
        del ctx
        return list(self._short_help)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is none of that name.

        Raises:
            click.ClickException: if its module cannot be imported.
        """
        if cmd_name not in self._short_help:
            return super().get_command(ctx, cmd_name)
        try:
            module = import_module(f"{self._package}.{cmd_name}")
        except ImportError as error:
            raise click.ClickException(f"the command {cmd_name!r} cannot be loaded: {error}") from error
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._short_help.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; warnings appear as lines on stderr, errors that users can mend as `ClickException`."""
        with warnings_on_stderr():
            try:
                return super().invoke(ctx)
            except Exception as error:
                text = user_error_text(error)
                if text is None or ctx.meta.get(DEBUG_KEY, False):
                    raise
                raise click.ClickException(text) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program and exit: errors, those of the command line included, with code 1."""
        run = super().main
        if not standalone_mode:
            return run(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = run(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            click.echo(f"Error: {one_line(error.format_message())}{_hint(error)}", err=True)
            sys.exit(ERROR)
        except click.Abort:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def _hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "" if context is None else f" (see '{context.command_path} --help')"
