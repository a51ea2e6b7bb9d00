"""`e2former convert`: an official checkpoint as one safe, self-describing file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from ase.data import atomic_numbers
from ase.formula import Formula
from torch import Tensor

from e2former_calc.checkpoint import CheckpointError, ModelCard, load_model, write_native
from e2former_calc.checkpoint.card import UNKNOWN
from e2former_calc.checkpoint.loading import LoadedModel, resolve_path, sha256
from e2former_calc.checkpoint.native import NativeContent, read_native
from e2former_calc.cli.messages import echo_table, notice
from e2former_calc.cli.options import model_config_option, overwrite_option, run_options, variant_option, weights_option
from e2former_calc.cli.output import check_outputs, replacing
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.domain import measure_domain
from e2former_calc.potentials.training.readers import read_dataset
from e2former_calc.train.plan import DataFile

CARD_OPTIONS = {
    "name": "Short name of the model.",
    "level_of_theory": "Method of the training labels, for instance 'PBE+vdW (FHI-aims, light)'.",
    "training_data": "Data set and split.",
    "errors": "Errors on test data, with units.",
    "intended_use": "What the model is good for.",
    "known_failures": "What it is not good for.",
    "licence": "Licence of the weights.",
    "citation": "How to cite the model.",
}
"""Free-text fields of the model card and their help."""


def card_options(function: Any) -> Any:
    """Add one option for each field of `CARD_OPTIONS`."""
    for name, text in reversed(CARD_OPTIONS.items()):
        function = click.option(f"--{name.replace('_', '-')}", metavar="TEXT", help=text)(function)
    return function


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET.safetensors", type=click.Path(path_type=Path))
@card_options
@click.option("--elements", metavar="SYMBOLS", help="Restrict the model to these elements, for instance 'H C N O'.")
@click.option("--formulas", metavar="FORMULAS", help="Restrict the model to these formulas (Hill order), e.g. 'C2H6O'.")
@click.option(
    "--training-frames", metavar="FILE[@INDEX]",
    help="Frames that the model was trained on: predictions then know their distance from them.",
)  # fmt: skip
@click.option(
    "--validation-frames", metavar="FILE[@INDEX]",
    help="Frames of the same kind that it was not trained on; default: every fifth training frame.",
)  # fmt: skip
@click.option(
    "--refuse-outside/--warn-outside", default=None,
    help="Structures very far from the training frames are an error by default, or only a warning.",
)  # fmt: skip
@model_config_option
@variant_option
@weights_option
@overwrite_option
@run_options
def convert(
    source: str,
    target: Path,
    *,
    elements: str | None,
    formulas: str | None,
    training_frames: str | None,
    validation_frames: str | None,
    model_config: Path | None,
    variant: str | None,
    weights: str,
    overwrite: bool,
    **card_fields: str | bool | None,
) -> None:
    """Write the model SOURCE (official checkpoint, or a file of ours) as TARGET.safetensors.

    Weights are kept bit for bit; the file is read back and compared before success is reported.
    """
    if target.suffix != ".safetensors":
        raise click.UsageError(f"TARGET must end in .safetensors, got {str(target)!r}")
    check_outputs([target], inputs=[resolve_path(source)], overwrite=overwrite)
    loaded = load_model(source, model_config, variant=variant, weights=weights)
    if training_frames is not None:
        loaded = with_domain(loaded, training_frames, validation_frames)
    elif validation_frames is not None:
        raise click.UsageError("--validation-frames needs --training-frames")
    content = loaded.content()
    given = {name: value for name, value in card_fields.items() if value is not None}
    content = replace(content, card=replace(content.card, **given))  # type: ignore[arg-type]
    if elements is not None:
        content = restricted(content, elements)
    if formulas is not None:
        content = replace(content, card=replace(content.card, compositions=hill_formulas(formulas)))
    with replacing(target) as partial:
        write_native(partial, content)
        verify(partial, content)
    _report(target, content)


def with_domain(loaded: LoadedModel, training: str, validation: str | None) -> LoadedModel:
    """The model with the training domain of its default head.

    Args:
        loaded: the model.
        training: FILE or FILE@INDEX, wildcards allowed, the frames that it was trained on.
        validation: other frames of the same kind, or None.

    Raises:
        CheckpointError: if the model has several heads and no default.
        ValueError: for unreadable frames, and elements that the model does not cover.
    """
    head = loaded.choose_head(None)
    potential = EnergyPotential(
        loaded.model,
        head=head,
        reference_energies=loaded.reference_energies,
        elements=loaded.elements[head],
        force_mode="head" if loaded.card.forces == "head" else "gradient",
    )
    others = None if validation is None else _frames(validation)
    return replace(loaded, domains={**loaded.domains, head: measure_domain(potential, _frames(training), others)})


def _frames(text: str) -> Dataset:
    return Dataset.join([read_dataset(file.path, index=file.index) for file in DataFile.parse_all(text, Path())])


def restricted(content: NativeContent, symbols: str) -> NativeContent:
    """The model for fewer elements.

    Args:
        content: the model.
        symbols: element symbols separated by blanks or commas.

    Raises:
        ValueError: for symbols that do not exist, or that no head knows.
    """
    names = symbols.replace(",", " ").split()
    unknown = [name for name in names if name not in atomic_numbers]
    if unknown or not names:
        raise ValueError(f"--elements must list element symbols, got {symbols!r}")
    wanted = frozenset(atomic_numbers[name] for name in names)
    uncovered = [name for name in names if atomic_numbers[name] not in content.card.elements]
    if uncovered:
        raise ValueError(f"--elements names {' '.join(uncovered)}, which the model does not cover")
    by_head = {head: known & wanted for head, known in content.elements.items()}
    return replace(content, elements=by_head, card=replace(content.card, elements=tuple(sorted(wanted))))


def hill_formulas(formulas: str) -> tuple[str, ...]:
    """Formulas separated by blanks or commas, in the order that ASE gives them.

    Raises:
        ValueError: for text that is not a formula.
    """
    try:
        return tuple(Formula(text, strict=True).format("hill") for text in formulas.replace(",", " ").split())
    except (ValueError, KeyError):
        raise ValueError(f"--formulas must list chemical formulas such as C2H6O, got {formulas!r}") from None


def verify(target: Path, content: NativeContent) -> None:
    """Compare a file with what it should hold, and load it.

    Raises:
        CheckpointError: naming what differs.
    """
    stored = read_native(target)
    different = [name for name in ("architecture", "config", "elements", "card") if _differs(stored, content, name)]
    different += _different_tensors(stored.state, content.state)
    different += _different_tensors(stored.reference_energies, content.reference_energies)
    different += _different_tensors(_domain_tensors(stored), _domain_tensors(content))
    if different:
        raise CheckpointError(f"{target} does not hold what was written: {', '.join(different)} differ")
    load_model(target)


def _differs(stored: NativeContent, content: NativeContent, name: str) -> bool:
    ours, theirs = getattr(stored, name), getattr(content, name)
    if isinstance(ours, ModelCard):
        return bool(ours.to_dict() != theirs.to_dict())
    return bool(ours != theirs)


def _domain_tensors(content: NativeContent) -> dict[str, Tensor]:
    return {f"domain.{head}.{k}": v for head, domain in content.domains.items() for k, v in vars(domain).items()}


def _different_tensors(stored: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> list[str]:
    names = sorted(set(stored) ^ set(original))
    for name in sorted(set(stored) & set(original)):
        ours, theirs = stored[name], original[name].cpu()
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not _same_bits(ours, theirs):
            names.append(name)
    return names


def _same_bits(first: Tensor, second: Tensor) -> bool:
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return bool(torch.equal(*as_bytes))


def _report(target: Path, content: NativeContent) -> None:
    echo_table(
        [
            ("wrote", f"{target}, {target.stat().st_size / 2**20:.1f} MiB"),
            ("verified", f"{len(content.state)} tensors, bit for bit"),
            ("sha256", sha256(target)),
        ]
    )
    missing = [name.replace("_", "-") for name in CARD_OPTIONS if getattr(content.card, name) == UNKNOWN]
    if missing:
        notice(f"Not stated in the card, add with --overwrite: {', '.join('--' + name for name in missing)}")
