"""Targets that change with the step: linear ramps of temperature and pressure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LinearRamp:
    """A value that goes in a straight line from `start` to `end` during `steps` steps and stays there.

    Args:
        start, end: in the unit of the quantity it stands for.
        steps: number of integration steps, counted from the beginning of the simulation.

    Raises:
        ValueError: unless `steps` is at least 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` of a ramp must be at least 1, got {self.steps}")

    def at(self, step: int) -> float:
        """Value at a step."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return self.start + (self.end - self.start) * done


Target = float | LinearRamp
Targets = Target | tuple[Target, ...]
"""One target for all replicas, or one for each."""


def targets_at(targets: Targets, step: int, n_replicas: int) -> list[float]:
    """Value for each replica at a step.

    Raises:
        ValueError: if there are several targets, but not one for each replica.
    """
    each = targets if isinstance(targets, tuple) else (targets,) * n_replicas
    if len(each) != n_replicas:
        raise ValueError(f"{len(each)} targets were given for {n_replicas} replicas: give one, or one for each replica")
    return [target.at(step) if isinstance(target, LinearRamp) else float(target) for target in each]


def is_constant(targets: Targets) -> bool:
    """True if no target changes with the step."""
    return not any(isinstance(target, LinearRamp) for target in (targets if isinstance(targets, tuple) else (targets,)))


def check_targets(name: str, targets: Targets, *, minimum: float, unit: str) -> None:
    """Refuse targets that are not finite or lie below `minimum`.

    Raises:
        ValueError: naming the value.
    """
    for target in targets if isinstance(targets, tuple) else (targets,):
        ends = (target.start, target.end) if isinstance(target, LinearRamp) else (target,)
        for value in ends:
            if not (minimum <= value and math.isfinite(value)):
                raise ValueError(f"`{name}` must be at least {minimum:g} {unit} and finite, got {value}")
