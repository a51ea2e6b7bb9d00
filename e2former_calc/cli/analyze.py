"""`e2former analyze`: rollouts judged against a reference trajectory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import Command, overwrite_option, run_options

if TYPE_CHECKING:
    from e2former_calc.report import Method, Quantity, Report, ReportSettings, Section

NOT_STABLE = 2
"""Exit code if a rollout is not stable to the end."""

NAMES = ("md17", "md22", "water", "lips")
"""Presets, as in `e2former_calc.report.PRESETS`, which is not imported for a help text."""

SHOWN = 3
"""Lines of each section in the table of numbers; the report has all."""

EXAMPLES = """\b
Three replicas: e2former analyze run-0.h5md run-1.h5md run-2.h5md --reference reference.h5 --preset md22
Frames 0 to 999 of one file against the others: e2former analyze md.h5@:1000 --reference md.h5@1000:
"""


def truth_options(function: Command) -> Command:
    """Add the options of a ground-truth calculator to a command."""
    name = click.option(
        "--truth", metavar="NAME",
        help="Recalculate frames with gfn2 or gfn1 (xTB, needs tblite), a name that ASE knows, package.module:Class, "
        "or model:PATH_OR_NAME.",
    )  # fmt: skip
    options = click.option(
        "--truth-options", multiple=True, metavar="KEY=VALUE",
        help="Keyword argument of that calculator, or a JSON object of them; repeatable.",
    )  # fmt: skip
    samples = click.option("--truth-samples", type=int, help="Frames of each trajectory that are recalculated (20).")
    return name(options(samples(function)))


@click.command(epilog=f"Exit code: 0 all rollouts stable to the end, {NOT_STABLE} one is not, 1 error.\n\n{EXAMPLES}")
@click.argument("rollouts", metavar="ROLLOUT...", nargs=-1, required=True)
@click.option("--reference", required=True, metavar="TRAJ", help="Ground-truth trajectory of the same atoms.")
@click.option(
    "--preset", type=click.Choice(NAMES),
    help="Temperature, thresholds and ranges that the published tables were made with; other options win.",
)  # fmt: skip
@truth_options
@click.option(
    "--model", metavar="PATH_OR_NAME",
    help="Model that made the rollouts: adds its errors on the reference's own frames, and the configurational "
    "temperature.",
)  # fmt: skip
@click.option("--charge", type=int, metavar="INTEGER", help="Total charge in e, for --truth and --model.")
@click.option("--multiplicity", type=int, metavar="INTEGER", help="2S+1, for --truth and --model.")
@click.option("--temperature-K", "temperature_K", type=float, help="Target in K, if the files do not say it.")
@click.option(
    "--ensemble", type=click.Choice(["nve", "nvt", "npt"]), help="Of the rollouts, if the files do not say it."
)
@click.option("--expected-ps", type=float, help="Length of a complete rollout: shorter ones count as failed.")
@click.option("--frame-spacing-fs", type=float, help="Time between frames of the rollouts, for files without times.")
@click.option("--bond-threshold-A", "bond_threshold_A", type=float, help="Deviation of a bond that breaks it (0.5 Å).")
@click.option("--r-max-A", "r_max_A", type=float, help="Range of h(r) (10 Å; preset md22: 15 Å).")
@click.option("--n-bins", type=int, help="Bins of h(r) and g(r) (500).")
@click.option("--rdf-r-max-A", "rdf_r_max_A", type=float, help="Range of g(r) (6 Å).")
@click.option(
    "--rdf-threshold-A", "rdf_threshold_A", type=float,
    help="Deviation of g(r) that counts as dissolved (water 3 Å, all else 1 Å).",
)  # fmt: skip
@click.option("--n-blocks", type=int, help="Blocks of each trajectory, for errors and noise floors (10).")
@click.option("--seed", type=int, help="Of the bootstrap (0).")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report"), show_default=True, metavar="DIR",
    help="Folder of the report.",
)  # fmt: skip
@overwrite_option
@run_options
def analyze(
    rollouts: tuple[str, ...],
    *,
    reference: str,
    preset: str | None,
    out: Path,
    overwrite: bool,
    **values: Any,
) -> None:
    """Judge each ROLLOUT (replicas of one system) against a reference trajectory, and write a report.

    Stability, h(r) or g(r), bonds, angles and dihedrals, Ramachandran maps, radius of gyration, energy, temperature,
    equipartition, drift, diffusion and spectra, as far as the files allow, each beside the noise of the reference.
    Files: H5MD, HDF5, npz, or anything that ASE reads, with a thermo.log beside it; FILE@START:STOP takes some of the
    frames.

    Writes DIR/report.html (one page, nothing else needed), DIR/summary.json, DIR/tables/*.csv and DIR/figures/*.
    """
    from e2former_calc.report import analyze_rollouts, write_report
    from e2former_calc.report.writing import check_folder

    check_folder(out, overwrite=overwrite)
    options = {name: values.pop(name) for name in ("truth", "truth_options", "charge", "multiplicity")}
    model_name = values.pop("model")
    settings = _settings(preset, values)
    with TemporaryDirectory(prefix="e2former-truth-") as folder:
        methods = {
            "truth": truth_method(reference, options, Path(folder), alone=model_name is None),
            "model": _model(reference, model_name, options, Path(folder)),
        }
        report = analyze_rollouts(rollouts, reference, settings, **methods, progress=analysis_progress())
    context = click.get_current_context()
    command = {"command": context.command_path, "options": dict(sorted(context.params.items()))}
    written = write_report(report, out, overwrite=overwrite, extra=command)
    click.echo("\n".join(verdict_lines(report)))
    click.echo(f"wrote {written[0]} and {len(written) - 1} more files in {out}", err=True)
    if not report.verdict.stable:
        context.exit(NOT_STABLE)


def verdict_lines(report: Report) -> list[str]:
    """The verdict, and the numbers that can be held against the noise, as a table for the terminal."""
    lines = list(report.verdict.sentences)
    shown = [quantity for section in report.sections for quantity in _shown(section)]
    if not shown:
        return lines
    rows = [("", "value", "noise", "unit", "in units of noise")]
    rows += [_row(quantity) for quantity in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines.append("")
    for row in rows:
        cells = [
            row[column].ljust(width) if column in (0, 3) else row[column].rjust(width)
            for column, width in enumerate(widths)
        ]
        lines.append("  ".join(cells).rstrip())
    if any(quantity.beyond_noise for quantity in shown):
        lines.append("* more than sampling alone explains")
    return lines


def _shown(section: Section) -> list[Quantity]:
    """The numbers of a section that have a noise level; of many the first one and the worst."""
    compared = [quantity for quantity in section.quantities if quantity.in_units_of_noise is not None]
    if len(compared) <= SHOWN:
        return compared
    worst = max(compared[1:], key=lambda quantity: quantity.in_units_of_noise or 0.0)
    return [compared[0], worst]


def _row(quantity: Quantity) -> tuple[str, str, str, str, str]:
    mark = " *" if quantity.beyond_noise else "  "
    value = "-" if quantity.value is None else f"{quantity.value:.4g}"
    noise = _noise(quantity)
    unit = "" if quantity.unit == "1" else quantity.unit
    return (quantity.name, value, noise, unit, f"{quantity.in_units_of_noise or 0.0:.2f}{mark}")


def _noise(quantity: Quantity) -> str:
    """Noise floor, or for a mean the reference that it is compared with."""
    if quantity.noise_floor is not None:
        return f"{quantity.noise_floor:.4g}"
    return "-" if quantity.reference is None else f"ref. {quantity.reference:.4g}"


def _settings(preset: str | None, values: dict[str, Any]) -> ReportSettings:
    """The preset, changed by the options that were given."""
    from e2former_calc.report import PRESETS, ReportSettings

    known = {field.name for field in fields(ReportSettings)}
    given = {name: value for name, value in values.items() if name in known and value is not None}
    return replace(PRESETS[preset] if preset else ReportSettings(), **given)


def truth_method(reference: str, options: Mapping[str, Any], folder: Path, *, alone: bool) -> Method | None:
    """The ground-truth calculator, made for the first frame of the reference; None if there is no name.

    Args:
        reference: file of the reference.
        options: `truth`, `truth_options`, `charge` and `multiplicity` as given.
        folder: for files that the calculator writes.
        alone: whether charge and multiplicity are for nothing else.

    Raises:
        ValueError: if options belong to a calculator that is not named, or there is no such calculator.
    """
    if options["truth"] is not None:
        if not alone and not _takes_charge(options["truth"]):
            options = {**options, "charge": None, "multiplicity": None}
        return _method(reference, options["truth"], options, folder)
    names = ["truth_options", *(["charge", "multiplicity"] if alone else [])]
    unused = next((name for name in names if options[name] not in (None, ())), None)
    if unused is not None:
        raise ValueError(f"--{unused.replace('_', '-')} belongs to --truth: give the name of a calculator, too")
    return None


def _takes_charge(name: str) -> bool:
    """Whether charge and multiplicity can be told to a calculator; of others they are options like any."""
    from e2former_calc.reference_md.calculators import MODEL_PREFIX, XTB_METHODS

    return name in XTB_METHODS or name.startswith(MODEL_PREFIX)


def _model(reference: str, name: str | None, options: Mapping[str, Any], folder: Path) -> Method | None:
    """The model that made the rollouts."""
    if name is None:
        return None
    return _method(reference, f"model:{name}", {**options, "truth_options": ()}, folder)


def _method(reference: str, name: str, options: Mapping[str, Any], folder: Path) -> Method:
    """A calculator for the first frame of the reference."""
    from e2former_calc.reference_md import CalculatorRecipe, parse_options
    from e2former_calc.reference_md.calculators import prepare
    from e2former_calc.report import Method
    from e2former_calc.report.sources import first_atoms

    texts = options["truth_options"]
    recipe = CalculatorRecipe(name, parse_options(texts), options["charge"], options["multiplicity"])
    method = prepare(recipe, first_atoms(reference), folder=folder)
    return Method(method.level, method.fresh())


def analysis_progress() -> Callable[[str], None]:
    """Says on a terminal what is being done."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda what: notice(f"{what} ...")
