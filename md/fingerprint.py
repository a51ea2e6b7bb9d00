"""What identifies a model and an integrator, as flat dictionaries of texts that can be compared and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator

from e2former_calc.potentials.interface import Potential


def model_fingerprint(potential: Potential | BaseCalculator) -> dict[str, str]:
    """Class, options and, for torch modules, the SHA-256 of all parameters and buffers."""
    found = {"class": type(potential).__qualname__}
    if isinstance(potential, BaseCalculator):
        recipe = potential.todict() if hasattr(potential, "todict") else {}
        return found | {name: _text(value) for name, value in sorted(recipe.items())}
    found |= {name: _text(getattr(potential, name)) for name in ("cutoff", "dtype", "conservative")}
    if isinstance(potential, torch.nn.Module):
        found["sha256"] = weights_sha256(potential)
    names = [field.name for field in fields(potential)] if is_dataclass(potential) else list(vars(potential))
    for name in names:
        value = getattr(potential, name)
        if not name.startswith("_") and name != "training" and isinstance(value, str | int | float | torch.Tensor):
            found[name] = _text(value)
    return found


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def integrator_fingerprint(integrator: Any) -> dict[str, str]:
    """Class and all parameters."""
    return {"class": type(integrator).__qualname__, **_flat(integrator, "")}


def differences(stored: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """In words what differs."""
    names = [name for name in {**stored, **current} if stored.get(name) != current.get(name)]
    return [f"{name} was {stored.get(name, 'absent')}, is {current.get(name, 'absent')}" for name in names]


def _flat(value: Any, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if is_dataclass(part):
            found[f"{prefix}{field.name}"] = type(part).__qualname__
            found |= _flat(part, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = repr(part)
    return found


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
