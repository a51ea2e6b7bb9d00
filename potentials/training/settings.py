"""What fixes a training run, apart from the network and the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

ForceLoss = Literal["norm", "squared", "huber", "conditional_huber"]
MatmulDtype = Literal["float32", "bfloat16"]
Compile = Literal["auto", "always", "never"]


COMPILE_FROM_STEPS = 10_000
"""Shorter runs would end before compiling has paid off."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses at one step."""

    energy: float | Tensor
    forces: float | Tensor
    stress: float | Tensor


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
        final_energy_weight, final_force_weight, final_stress_weight: weights at the last step, which are approached
            linearly; None keeps the weight.
        force_loss: "norm" is the mean length of the error vector, "squared" its mean square, "huber" is
            quadratic below and linear above `huber_delta`, "conditional_huber" lowers that limit on atoms with large
            forces, so that distorted structures weigh less.
        huber_delta: in eV/Å.
        ema_decay: of the averaged weights, which are the ones that are validated and kept; shorter early on.
        gradient_clip: largest norm of the gradient.
        validate_every: steps between validations.
        mirror: show every structure as its mirror image half of the time. Energies do not change in a mirror, but a
            network with rotation symmetry alone has to learn it.
        seed: of the order of structures, of mirrors and of initial weights.
        node_matmul_dtype: of the products of weights and node features while training: "bfloat16", meant for large
            networks on GPUs, is less accurate. Validation always uses float32.
        compile: whether steps run as one compiled graph, several times faster after minutes of compiling; "auto" does
            so from `COMPILE_FROM_STEPS` steps on, where there is a compiler and nothing stands against it.

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
    final_energy_weight: float | None = None
    final_force_weight: float | None = None
    final_stress_weight: float | None = None
    force_loss: ForceLoss = "norm"
    huber_delta: float = 0.1
    ema_decay: float = 0.998
    gradient_clip: float = 10.0
    validate_every: int = 500
    mirror: bool = True
    seed: int = 0
    node_matmul_dtype: MatmulDtype = "float32"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "learning_rate", "huber_delta", "gradient_clip", "validate_every")
        not_negative = (
            "final_learning_rate", "warmup_steps", "weight_decay", "energy_weight", "force_weight", "stress_weight",
            "final_energy_weight", "final_force_weight", "final_stress_weight",
        )  # fmt: skip
        problems = [
            f"{n} must be positive, got {getattr(self, n)}" for n in positive if not 0 < getattr(self, n) < math.inf
        ]
        problems += [
            f"{name} must not be negative, got {getattr(self, name)}"
            for name in not_negative
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf
        ]
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        for name, words in (("force_loss", ForceLoss), ("node_matmul_dtype", MatmulDtype), ("compile", Compile)):
            if getattr(self, name) not in get_args(words):
                problems.append(f"{name} must be one of {get_args(words)}, got {getattr(self, name)!r}")
        if self.compile == "always" and self.node_matmul_dtype != "float32":
            problems.append(f"compile='always' does not go with node_matmul_dtype={self.node_matmul_dtype!r}")
        if not problems and not (self.uses("energy") or self.uses("force") or self.uses("stress")):
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

    def uses(self, part: Literal["energy", "force", "stress"]) -> bool:
        """Whether a loss has weight at any step."""
        return bool(getattr(self, f"{part}_weight") or getattr(self, f"final_{part}_weight"))

    def weights(self, step: int) -> LossWeights:
        """Weights of the losses at a step."""
        progress = min(1.0, step / self.steps)

        def weight(part: str) -> float:
            first: float = getattr(self, f"{part}_weight")
            last: float | None = getattr(self, f"final_{part}_weight")
            return first if last is None else first + progress * (last - first)

        return LossWeights(weight("energy"), weight("force"), weight("stress"))

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        progress = min(1.0, step / self.steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.learning_rate * warm * (self.final_learning_rate + (1.0 - self.final_learning_rate) * cosine)
