"""Our own model format: one safetensors file whose header carries a JSON description.

Tensors: `model.<parameter>` as in the source, bit for bit, and `reference_energies.<head>` in eV (float64).
A model that knows where it was trained also has `domain.<head>.elements`, `.mean` and `.whitening` (`TrainingDomain`).
Header: the string "e2former_calc" maps to JSON with format_version, architecture, config, elements, card and, with a
domain, domain_version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from e2former_calc.checkpoint.card import ModelCard
from e2former_calc.checkpoint.errors import CheckpointError
from e2former_calc.potentials.applicability import TrainingDomain

FORMAT_VERSION = 1
DOMAIN_VERSION = 1
HEADER_KEY = "e2former_calc"


@dataclass(frozen=True)
class NativeContent:
    """What one of our files holds."""

    architecture: str
    config: dict[str, Any]
    elements: dict[str, frozenset[int]]
    card: ModelCard
    state: dict[str, Tensor]
    reference_energies: dict[str, Tensor]
    domains: dict[str, TrainingDomain] = field(default_factory=dict)


def write_native(path: str | Path, content: NativeContent) -> None:
    """Write one file, atomically: an interrupted write leaves the old file, or none.

    Raises:
        OSError: if the file cannot be written; nothing is left behind then.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "architecture": content.architecture,
        "config": content.config,
        "elements": {head: sorted(elements) for head, elements in content.elements.items()},
        "card": content.card.to_dict(),
    }
    if content.domains:
        header["domain_version"] = DOMAIN_VERSION
    tensors = {f"model.{k}": v.detach().cpu().contiguous().clone() for k, v in content.state.items()}
    tensors |= {f"reference_energies.{k}": v.detach().cpu().clone() for k, v in content.reference_energies.items()}
    for head, domain in content.domains.items():
        tensors |= {f"domain.{head}.{k}": v.detach().cpu().contiguous() for k, v in vars(domain).items()}
    data = safetensors_bytes(tensors, metadata={HEADER_KEY: json.dumps(header, sort_keys=True)})
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_native(path: Path) -> NativeContent:
    """Read one of our files.

    Raises:
        CheckpointError: if the file is damaged, foreign, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file (truncated?): {error}") from None
    if HEADER_KEY not in metadata:
        raise CheckpointError(f"{path} was not written by e2former_calc: its header has no {HEADER_KEY!r} entry")
    try:
        header = json.loads(metadata[HEADER_KEY])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has format version {version}, this package reads {FORMAT_VERSION}: upgrade")
        content = _content(header, tensors)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {type(error).__name__} {error}") from None
    return replace(content, domains=_domains(path, header, tensors))


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NativeContent:
    return NativeContent(
        architecture=header["architecture"],
        config=header["config"],
        elements={head: frozenset(values) for head, values in header["elements"].items()},
        card=ModelCard.from_dict(header["card"]),
        state=_with_prefix(tensors, "model."),
        reference_energies={k: v.to(torch.float64) for k, v in _with_prefix(tensors, "reference_energies.").items()},
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _domains(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, TrainingDomain]:
    """Training domain of each head that has one.

    Raises:
        CheckpointError: naming the head and the tensor that is missing, wrong or of a newer layout.
    """
    stored = _with_prefix(tensors, "domain.")
    version = header.get("domain_version", DOMAIN_VERSION if stored else None)
    if version not in (None, DOMAIN_VERSION):
        raise CheckpointError(f"{path} has training domains of version {version}, known is {DOMAIN_VERSION}: upgrade")
    by_head: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        head, _, part = name.rpartition(".")
        by_head.setdefault(head, {})[part] = tensor
    domains = {}
    for head, parts in by_head.items():
        differing = sorted(parts.keys() ^ {"elements", "mean", "whitening"})
        if differing or head not in header["elements"]:
            raise CheckpointError(
                f"{path} is damaged: the training domain of head {head!r} "
                + (f"lacks or does not know {differing}" if differing else "belongs to no head of the model")
            )
        try:
            domains[head] = TrainingDomain(**parts)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: training domain of head {head!r}: {error}") from None
    return domains
