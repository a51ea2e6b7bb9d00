"""Reference energies of the official heads: the calculator adds them to the network output.

The tables are facts of the official models (least-squares or atomic energies by data set, in eV); they
are stored in reference_energies.json, indexed by atomic number. A zero stands for an element that
the data set does not contain.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor

DEFAULT_ROWS = 128
_NEGLIGIBLE = 1e-3


@cache
def _tables() -> dict[str, list[float]]:
    text = files(__package__).joinpath("reference_energies.json").read_text(encoding="utf-8")
    tables: dict[str, list[float]] = json.loads(text)
    return tables


def reference_energies(head: str) -> Float[Tensor, " elements"]:
    """Energy (eV, float64) by atomic number that the official calculator adds for this head."""
    name = head.lower()
    for prefix in ("svp", "tzvpd"):
        if name.startswith(prefix):
            name = prefix
    return torch.tensor(_tables().get(name, [0.0] * DEFAULT_ROWS), dtype=torch.float64)


def covered_elements(table: Float[Tensor, " elements"]) -> frozenset[int]:
    """Atomic numbers with a reference energy; all rows of the table if it is empty.

    A head that was trained with reference energies has none for elements outside its data.
    """
    known = [z for z in range(1, len(table)) if abs(float(table[z])) > _NEGLIGIBLE]
    return frozenset(known or range(1, min(len(table), 119)))
