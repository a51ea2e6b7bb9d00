"""Restart files: all that a simulation needs to continue bit for bit, in one small file of safetensors format.

The file holds every tensor of the state in full precision, the step, the seed and the replica ids (the random
generator has no other state), positions and cell of the last neighbour list, and what identifies system, model
and integrator. It is written beside its target, flushed to the disk and renamed, so that the target is always
complete: the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "e2former_calc restart 1"


class RestartError(ValueError):
    """A restart file that cannot be used, with the reason."""


@dataclass(frozen=True, eq=False)
class Restart:
    """Content of a restart file.

    Attributes:
        tensors: by name; "state.", "system.", "dynamics.", "neighbors." and "last_good." say what they belong to.
        facts: JSON-able: step, time, seed, model, integrator, constraints, versions.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def group(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors of one group on a device, without the name of the group."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): t.to(device) for key, t in self.tensors.items() if key.startswith(prefix)}


def write_restart(path: Path, restart: Restart) -> None:
    """Write a restart file in one atomic step.

    Raises:
        OSError: if the folder cannot be written or the disk is full; an earlier file is left as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in restart.tensors.items()}
    facts = json.dumps(restart.facts)
    content = save(tensors, metadata={"format": FORMAT, "facts": facts, "sha256": _digest(tensors, facts)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def read_restart(path: Path) -> Restart:
    """Read and check a restart file.

    Raises:
        FileNotFoundError: if it does not exist.
        RestartError: if it is not a restart file or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no restart file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RestartError(f"{path} is damaged or not a restart file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise RestartError(f"{path} has the format {metadata.get('format')!r}, this version reads {FORMAT!r}")
    facts = metadata.get("facts", "")
    if _digest(tensors, facts) != metadata.get("sha256"):
        raise RestartError(f"{path} is damaged: its checksum is wrong; use an earlier restart file")
    return Restart(tensors, json.loads(facts))


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power failure, where the system can do so."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
