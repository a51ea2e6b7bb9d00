"""The command `e2former`: one module of this folder for each subcommand, imported when it is called."""

from __future__ import annotations

import click

from e2former_calc.cli.group import LazyGroup

COMMANDS = {
    "energy": "Energy, forces and stress of structures.",
    "relax": "Relax a structure, and its cell if asked.",
    "md": "Molecular dynamics of a structure, several replicas in one batch, restartable.",
    "info": "Describe a model, or this installation.",
    "convert": "Write an official checkpoint as one safe, self-describing file.",
    "doctor": "Check a model: gradients, symmetries, extensivity, batches.",
    "bench": "Measure the speed of a model on this machine.",
    "train": "Train or fine-tune a model.",
    "rollout": "Simulate replicas with a model and judge them against a reference: one command, one report.",
    "analyze": "Judge rollouts against a reference trajectory: numbers, figures, a report.",
    "compare": "Line up several models against the same reference.",
    "reference": "Reference trajectories: molecular dynamics with xTB or any ASE calculator.",
}
"""Subcommands and their one-line help; each is `e2former_calc.cli.<name>.<name>`."""


@click.command(
    cls=LazyGroup, package="e2former_calc.cli", commands=COMMANDS, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Units: eV, Å, eV/Å, GPa; charge in e, spin as multiplicity 2S+1.",
)  # fmt: skip
@click.version_option(package_name="e2former_calc", prog_name="e2former")
@click.pass_context
def main(context: click.Context) -> None:
    """Interatomic potentials of the E2Former family.

    Exit codes: 0 success, 1 error, 2 not converged or a check failed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
