"""What a model file says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

UNKNOWN = "not stated in the file"


@dataclass(frozen=True)
class ModelCard:
    """Description of a trained model, stored in our files and printed by `e2former info`.

    Attributes:
        name: short name.
        architecture: model family, for instance "e2former_v2".
        variant: which of the public code bases the numbers belong to.
        cutoff: in Å.
        max_neighbors: neighbour cap of the official code, or None.
        elements: atomic numbers that the model may be used for.
        heads: output heads.
        default_head: head used if none is named; None if it must be chosen.
        forces: "gradient" or "head", what the model was trained for.
        uses_charge, uses_spin: whether charge and multiplicity are inputs.
        parameters: number of trained numbers.
        refuse_outside: whether structures far from the training data are refused by default, not only warned about.
        compositions: formulas (Hill order) of the only structures that the model may be used for; empty means any.
        level_of_theory, training_data, errors, intended_use, known_failures, licence, citation: free text.
        source: file that the model was read from.
        source_sha256: its checksum.
        units: of inputs and outputs.
    """

    name: str
    architecture: str
    variant: str
    cutoff: float
    max_neighbors: int | None
    elements: tuple[int, ...]
    heads: tuple[str, ...]
    default_head: str | None
    forces: str
    uses_charge: bool
    uses_spin: bool
    parameters: int
    compositions: tuple[str, ...] = ()
    refuse_outside: bool = False
    level_of_theory: str = UNKNOWN
    training_data: str = UNKNOWN
    errors: str = UNKNOWN
    intended_use: str = UNKNOWN
    known_failures: str = UNKNOWN
    licence: str = UNKNOWN
    citation: str = UNKNOWN
    source: str = UNKNOWN
    source_sha256: str = UNKNOWN
    units: str = "energy eV, length Å, force eV/Å, stress eV/Å^3"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """Inverse of `to_dict`; fields that this version does not know are dropped."""
        known = {f.name for f in fields(cls)}
        tuples = ("elements", "heads", "compositions")
        stated: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items() if k in known}
        return cls(**stated)
