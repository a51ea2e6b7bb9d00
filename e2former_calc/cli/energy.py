"""`e2former energy`: energy, forces and stress of structures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase import Atoms, units
from jaxtyping import Float

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.cli.messages import FORCE_SOURCES, announce, echo_table, notice, plural
from e2former_calc.cli.options import ModelOptions, model_options, overwrite_option
from e2former_calc.cli.output import check_outputs, with_suffix
from e2former_calc.cli.structures import Frame, read_frames, snapshot, write_extxyz
from e2former_calc.cli.summary import Stopwatch, write_summary

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@click.command()
@click.argument("structures", metavar="STRUCTURE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@click.option(
    "--index", default=":", show_default=True, metavar="INDEX",
    help="Frames of each file: 3, -1, or a slice as 0:100:10.",
)  # fmt: skip
@click.option(
    "--atoms-per-batch", type=click.IntRange(min=1), default=2000, show_default=True,
    help="Structures are evaluated together up to this many atoms.",
)  # fmt: skip
@overwrite_option
def energy(
    options: ModelOptions, structures: tuple[Path, ...], index: str, atoms_per_batch: int, overwrite: bool
) -> None:
    """Energy, largest force, and stress of every frame of the STRUCTURE files (any format that ASE reads).

    With --out PREFIX everything goes to PREFIX.extxyz and PREFIX-summary.json too.
    """
    stopwatch = Stopwatch()
    outputs = [with_suffix(options.out, suffix) for suffix in (".extxyz", "-summary.json")] if options.out else []
    check_outputs(outputs, inputs=structures, overwrite=overwrite)
    frames = [frame for path in structures for frame in read_frames(path, index)]
    calculator = options.calculator()
    size = f"{plural(len(frames), 'structure')}, {plural(sum(len(frame.atoms) for frame in frames), 'atom')}"
    announce(calculator, model=options.model_name(), size=size)
    stopwatch.lap("load")
    evaluations = []
    for evaluation in evaluate_frames(calculator, frames, atoms_per_batch):
        evaluations.append(evaluation)
        if len(frames) == 1:
            _echo_one(evaluation)
        else:
            _echo_row(evaluation, header=len(evaluations) == 1)
    stopwatch.lap("evaluate")
    if outputs:
        write_extxyz(outputs[0], [evaluation.atoms for evaluation in evaluations])
        results = {"force_source": evaluations[0].force_source, "structures": [e.to_dict() for e in evaluations]}
        write_summary(outputs[1], calculator=calculator, inputs=structures, stopwatch=stopwatch, results=results)
        notice(f"wrote {', '.join(map(str, outputs))}")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A frame with its results.

    Attributes:
        frame: where the structure comes from.
        atoms: copy with the results as its calculator, charge and spin in `info`.
        force_source: "gradient" or "head".
    """

    frame: Frame
    atoms: Atoms
    force_source: str

    @property
    def energy(self) -> float:
        """Energy in eV."""
        return float(self.atoms.calc.results["energy"])

    @property
    def max_force(self) -> float:
        """Largest force on an atom in eV/Å, constraints not applied."""
        return float(np.linalg.norm(self.atoms.get_forces(apply_constraint=False), axis=1).max())

    @property
    def stress(self) -> Float[np.ndarray, "6"] | None:
        """Stress in eV/Å^3, xx yy zz yz xz xy, positive under tension; None without periodicity or force field."""
        stress: Float[np.ndarray, "6"] | None = self.atoms.calc.results.get("stress")
        return stress

    @property
    def pressure_gpa(self) -> float | None:
        """Pressure in GPa, positive under compression; None without stress."""
        return None if self.stress is None else -float(self.stress[:3].mean()) / units.GPa

    def to_dict(self) -> dict[str, Any]:
        """What the summary says about it."""
        return {
            "file": str(self.frame.path),
            "index": self.frame.index,
            "formula": self.atoms.get_chemical_formula(),
            "atoms": len(self.atoms),
            "charge": self.atoms.info["charge"],
            "spin": self.atoms.info["spin"],
            "energy_eV": self.energy,
            "max_force_eV_per_A": self.max_force,
            "stress_eV_per_A3": self.stress,
            "pressure_GPa": self.pressure_gpa,
        }


def has_stress(calculator: E2FormerCalculator, atoms: Atoms) -> bool:
    """True if the calculator can give a stress of this structure."""
    periodic = bool(atoms.pbc.any()) and abs(atoms.cell.volume) > 1e-6
    return periodic and "stress" in calculator.implemented_properties


def evaluate_frames(
    calculator: E2FormerCalculator, frames: Sequence[Frame], atoms_per_batch: int = 2000
) -> Iterator[Evaluation]:
    """Evaluate structures in batches, in order.

    Raises:
        ValueError: for a structure that the model cannot evaluate, with its name.
    """
    source = "gradient" if calculator.potential.conservative else "head"
    for stressed, batch in _batches(calculator, frames, atoms_per_batch):
        properties = ["energy", "free_energy", "energies", "forces"] + (["stress"] if stressed else [])
        try:
            results = calculator.evaluate([frame.atoms for frame in batch], properties, atoms_per_batch=atoms_per_batch)
        except ValueError as error:
            raise ValueError(_with_label(str(error), batch)) from error
        for frame, result in zip(batch, results, strict=True):
            yield Evaluation(frame, snapshot(frame.atoms, result, calculator), source)


def _batches(
    calculator: E2FormerCalculator, frames: Sequence[Frame], atoms_per_batch: int
) -> list[tuple[bool, list[Frame]]]:
    """Consecutive frames, all with or all without stress."""
    batches: list[tuple[bool, list[Frame]]] = []
    filled = 0
    for frame in frames:
        stressed, size = has_stress(calculator, frame.atoms), len(frame.atoms)
        if not batches or batches[-1][0] != stressed or filled + size > atoms_per_batch:
            batches.append((stressed, []))
            filled = 0
        batches[-1][1].append(frame)
        filled += size
    return batches


def _with_label(message: str, batch: Sequence[Frame]) -> str:
    """The message of a batch with the name of the file in place of the number within the batch."""
    if len(batch) == 1:
        return f"{batch[0].label}: {re.sub(r'^structure 0: ', '', message)}"
    return re.sub(r"^structure (\d+)", lambda match: batch[int(match[1])].label, message)


def _echo_one(evaluation: Evaluation) -> None:
    atoms = evaluation.atoms
    size = f"{atoms.get_chemical_formula()}, {plural(len(atoms), 'atom')}"
    state = f"charge {atoms.info['charge']}, spin {atoms.info['spin']}"
    rows = [
        ("structure", f"{evaluation.frame.label}: {size}, {state}"),
        ("energy", f"{evaluation.energy:.6f} eV"),
        ("max force", f"{evaluation.max_force:.6f} eV/Å"),
    ]
    if atoms.constraints:
        constrained = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        rows.append(("  constrained", f"{constrained:.6f} eV/Å"))
    rows.append(("force source", FORCE_SOURCES[evaluation.force_source]))
    if evaluation.stress is not None:
        values = evaluation.stress / units.GPa
        rows.append(("stress", " ".join(f"{n} {v:.4f}" for n, v in zip(VOIGT, values, strict=True)) + " GPa"))
        rows.append(("pressure", f"{evaluation.pressure_gpa:.4f} GPa"))
    echo_table(rows)


def _echo_row(evaluation: Evaluation, *, header: bool) -> None:
    if header:
        click.echo(f"force source: {FORCE_SOURCES[evaluation.force_source]}")
        click.echo(f"{'atoms':>7} {'energy [eV]':>18} {'max force [eV/Å]':>17} {'pressure [GPa]':>15}  structure")
    pressure = "-" if evaluation.pressure_gpa is None else f"{evaluation.pressure_gpa:.4f}"
    click.echo(
        f"{len(evaluation.atoms):>7} {evaluation.energy:>18.6f} {evaluation.max_force:>17.6f} {pressure:>15}"
        f"  {evaluation.frame.label}"
    )
