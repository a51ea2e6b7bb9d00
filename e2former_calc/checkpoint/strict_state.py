"""Comparison of stored tensors with those that a network expects."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SHOWN = 12
"""Names that a message lists before it counts the rest."""


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], official: Mapping[str, str]) -> list[str]:
    """Everything that keeps `state` from being loaded strictly; empty if nothing does.

    Args:
        expected: tensors of the network.
        state: tensors of the file, under the names of the network.
        official: name in the file of each tensor of `state`.
    """
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(official[name] for name in set(state) - set(expected))
    shapes = sorted(
        f"{official[name]} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in set(state) & set(expected)
        if state[name].shape != expected[name].shape
    )
    finite = sorted(
        f"{official[name]} contains NaN or infinity" for name, t in state.items() if not bool(torch.isfinite(t).all())
    )
    return _listing("missing tensors", missing) + _listing("unexpected tensors", unexpected) + shapes + finite


def _listing(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {title}: {', '.join(names[:SHOWN])}{more}"]
