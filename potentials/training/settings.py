"""What fixes a training run, apart from the network and the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

ForceLoss = Literal["norm", "squared", "huber"]


@dataclass(frozen=True)
class TrainingSettings:
    """Loss, optimiser and schedule.

    Attributes:
        steps: optimiser steps in all; the learning rate falls to its final value there.
        batch_size: structures per step.
        learning_rate: largest learning rate of AdamW.
        final_learning_rate: learning rate at the last step, as a fraction of the largest.
        warmup_steps: steps of linear increase.
        weight_decay: of AdamW.
        energy_weight: weight of the mean absolute energy error per atom (eV per atom).
        force_weight: weight of the force loss (eV/Å for "norm").
        stress_weight: weight of the mean absolute stress error (eV/Å^3), where there are stresses.
        force_loss: "norm" is the mean length of the error vector, "squared" its mean square, "huber" is
            quadratic below and linear above `huber_delta`.
        huber_delta: in eV/Å.
        ema_decay: of the averaged weights, which are the ones that are validated and kept; shorter early on.
        gradient_clip: largest norm of the gradient.
        validate_every: steps between validations.
        seed: of the order of structures and of initial weights.

    Raises:
        ValueError: naming every value that makes no sense.
    """

    steps: int = 20_000
    batch_size: int = 8
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-5
    energy_weight: float = 2.0
    force_weight: float = 1.0
    stress_weight: float = 0.0
    force_loss: ForceLoss = "norm"
    huber_delta: float = 0.1
    ema_decay: float = 0.998
    gradient_clip: float = 10.0
    validate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "learning_rate", "huber_delta", "gradient_clip", "validate_every")
        not_negative = (
            "final_learning_rate", "warmup_steps", "weight_decay", "energy_weight", "force_weight", "stress_weight",
        )  # fmt: skip
        problems = [
            f"{n} must be positive, got {getattr(self, n)}" for n in positive if not 0 < getattr(self, n) < math.inf
        ]
        problems += [
            f"{name} must not be negative, got {getattr(self, name)}"
            for name in not_negative
            if not 0 <= getattr(self, name) < math.inf
        ]
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.force_loss not in get_args(ForceLoss):
            problems.append(f"force_loss must be one of {get_args(ForceLoss)}, got {self.force_loss!r}")
        if self.energy_weight + self.force_weight + self.stress_weight == 0:
            problems.append("all loss weights are zero")
        if problems:
            raise ValueError("training settings: " + "; ".join(problems))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Settings from a configuration file.

        Raises:
            ValueError: for unknown names, with the known ones.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"training settings {unknown} do not exist; there are {known}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        progress = min(1.0, step / self.steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.learning_rate * warm * (self.final_learning_rate + (1.0 - self.final_learning_rate) * cosine)
