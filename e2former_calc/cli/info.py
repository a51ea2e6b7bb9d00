"""`e2former info`: what a model file says about itself, or what is installed."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click
import torch
from ase.data import chemical_symbols

from e2former_calc.checkpoint.card import ModelCard
from e2former_calc.checkpoint.loading import DEFAULT_MODEL, LoadedModel, bundled_models, load_model, sha256
from e2former_calc.cli.messages import FORCE_SOURCES, echo_table, plural
from e2former_calc.cli.models import native_card
from e2former_calc.cli.options import model_config_option, run_options, variant_option, weights_option
from e2former_calc.cli.summary import json_ready, versions
from e2former_calc.potentials.applicability import FOREIGN, UNUSUAL
from e2former_calc.potentials.inference import reasons_against

LINE_WIDTH = 100
"""Longest line of a printed card, in characters."""


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_config_option
@variant_option
@weights_option
@run_options
def info(model: str | None, as_json: bool, model_config: Path | None, variant: str | None, weights: str) -> None:
    """Describe MODEL (a path or a bundled name); without MODEL the installation and the bundled models."""
    if model is None:
        if model_config is not None or variant is not None or weights != "raw":
            raise click.UsageError("--model-config, --variant and --weights need a MODEL")
        content = installation()
        _echo_json(content) if as_json else _echo_installation(content)
        return
    loaded = load_model(model, model_config, variant=variant, weights=weights)
    content = describe(loaded)
    _echo_json(content) if as_json else _echo_model(loaded, content)


def installation() -> dict[str, Any]:
    """Versions, devices, and the bundled models with their cards."""
    devices = {"cpu": plural(torch.get_num_threads(), "thread")}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    cards = {name: native_card(name) for name in bundled_models()}
    models = {name: card.to_dict() for name, card in cards.items() if card is not None}
    return {"versions": versions(), "devices": devices, "bundled_models": models}


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """The card of a model, with element symbols, its path and checksum."""
    heads = {head: [chemical_symbols[z] for z in sorted(known)] for head, known in loaded.elements.items()}
    return {
        **loaded.card.to_dict(),
        "path": str(loaded.path.resolve()),
        "sha256": sha256(loaded.path),
        "element_symbols": [chemical_symbols[z] for z in loaded.card.elements],
        "element_symbols_by_head": heads,
        "training_domains": sorted(loaded.domains),
    }


def _echo_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(json_ready(content), indent=2, ensure_ascii=False))


def _echo_installation(content: dict[str, Any]) -> None:
    echo_table(list(content["versions"].items()))
    click.echo("\nDevices")
    echo_table([(f"  {name}", text) for name, text in content["devices"].items()])
    click.echo("\nBundled models")
    if not content["bundled_models"]:
        click.echo("  none")
        return
    rows = [("name", "architecture", "elements", "cutoff [Å]", "level of theory", "licence")]
    for name, values in content["bundled_models"].items():
        card = ModelCard.from_dict(values)
        elements = element_ranges([chemical_symbols[z] for z in card.elements])
        shown = f"{name} (default)" if name == DEFAULT_MODEL else name
        rows.append((shown, card.architecture, elements, f"{card.cutoff:g}", card.level_of_theory, card.licence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def element_ranges(symbols: list[str]) -> str:
    """Symbols in order of atomic number, runs of five or more as `H-Ne`."""
    numbers = sorted(chemical_symbols.index(symbol) for symbol in symbols)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = []
    for run in runs:
        names = [chemical_symbols[z] for z in run]
        parts += [f"{names[0]}-{names[-1]}"] if len(run) >= 5 else names
    return " ".join(parts)


def _echo_model(loaded: LoadedModel, content: dict[str, Any]) -> None:
    card = loaded.card
    uses = [name for name, used in (("charge", card.uses_charge), ("spin", card.uses_spin)) if used]
    cap = "none" if card.max_neighbors is None else f"{card.max_neighbors}, chosen as in the official code"
    rows = [
        ("name", card.name),
        ("file", content["path"]),
        ("sha256", content["sha256"]),
        ("architecture", f"{card.architecture}, variant {card.variant}"),
        ("parameters", f"{card.parameters:,}"),
        ("cutoff", f"{card.cutoff:g} Å"),
        ("neighbour cap", cap),
        ("elements", element_ranges(content["element_symbols"])),
        ("formulas", ", ".join(card.compositions) + " only" if card.compositions else "any"),
        *_head_rows(card, content["element_symbols_by_head"]),
        ("forces", FORCE_SOURCES[card.forces]),
        ("on the CPU", _execution_text(loaded)),
        ("training domain", _domain_text(loaded)),
        ("inputs", "positions, elements, cell" + "".join(f", {name}" for name in uses)),
        ("ignored", ", ".join(name for name in ("charge", "spin") if name not in uses) or "nothing"),
        ("units", card.units),
        ("level of theory", card.level_of_theory),
        ("training data", card.training_data),
        ("errors", card.errors),
        ("intended use", card.intended_use),
        ("known failures", card.known_failures),
        ("licence", card.licence),
        ("citation", card.citation),
    ]
    if card.source_sha256 and card.source_sha256 != content["sha256"]:
        rows.append(("converted from", f"{card.source}, sha256 {card.source_sha256}"))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        lines = textwrap.wrap(
            value, max(LINE_WIDTH - width - 2, 20), break_long_words=False, break_on_hyphens=False
        ) or [""]
        click.echo(f"{label:<{width}}  " + f"\n{'':{width}}  ".join(lines))


def _execution_text(loaded: LoadedModel) -> str:
    reasons = reasons_against(loaded.model)
    return "fused kernels" if not reasons else f"plain torch: {'; '.join(reasons)}"


def _domain_text(loaded: LoadedModel) -> str:
    if not loaded.domains:
        return "not in the file: distances from the training data are unknown"
    known = {z for domain in loaded.domains.values() for z in domain.elements.tolist()}
    heads = "" if len(loaded.card.heads) == 1 else f" of head {', '.join(loaded.domains)}"
    limits = f"beyond {UNUSUAL:g} a warning" + (f", beyond {FOREIGN:g} refused" if loaded.card.refuse_outside else "")
    symbols = element_ranges([chemical_symbols[z] for z in known])
    return f"known for {symbols}{heads}; distance from the training data: usual up to 1, {limits}"


def _head_rows(card: ModelCard, symbols: dict[str, list[str]]) -> list[tuple[str, str]]:
    if len(card.heads) == 1:
        return [("head", card.heads[0])]
    default = f"; default {card.default_head}" if card.default_head else "; one must be chosen with --head"
    rows = [("heads", ", ".join(card.heads) + default)]
    different = len({tuple(known) for known in symbols.values()}) > 1
    return rows + [(f"  {head}", element_ranges(known)) for head, known in symbols.items() if different]
