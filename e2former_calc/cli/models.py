"""What the commands know about a model besides its numbers."""

from __future__ import annotations

from pathlib import Path

from e2former_calc.checkpoint.card import UNKNOWN, ModelCard
from e2former_calc.checkpoint.loading import resolve_path
from e2former_calc.checkpoint.native import read_native


def native_card(model: str | Path) -> ModelCard | None:
    """Card of one of our files; None for an official checkpoint, which carries no card.

    Raises:
        CheckpointError, FileNotFoundError: if the file is damaged or absent.
    """
    path = resolve_path(model)
    return read_native(path).card if path.suffix == ".safetensors" else None


def licence(model: str | Path) -> str:
    """Licence of a model as its file states it; errors as in `native_card`."""
    card = native_card(model)
    return UNKNOWN if card is None else card.licence
