"""What a self-check reports, and how limits follow from the precision of the arithmetic."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from e2former_calc.doctor.sample import Sample

Verdict = Literal["pass", "fail", "skip", "note"]

ROUNDING = 1e4
"""Rounding units (eps) that exact symmetries may be violated by: errors grow through the layers of a network."""

STIFFNESS = 1e3
"""Change of a force per Å of displacement, in units of the largest force per Å; for the rounding of coordinates."""


@dataclass(frozen=True)
class Check:
    """One measured property of a potential.

    Attributes:
        name: what was tested.
        value: measured error, or None if nothing could be measured.
        unit: of value and limit.
        limit: largest value that passes, or None if there is none.
        verdict: "pass", "fail", "skip" (not applicable) or "note" (information, neither good nor bad).
        explanation: how it was measured, what a failure means and what to do.
    """

    name: str
    value: float | None
    unit: str
    limit: float | None
    verdict: Verdict
    explanation: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; numbers that are not finite become None."""
        values = asdict(self)
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        return finite | {"finite": self.value is None or math.isfinite(self.value)}


def judged(name: str, value: float, unit: str, *, limit: float, passed: str, failed: str) -> Check:
    """A check that passes if `value` is at most `limit`; NaN fails.

    Args:
        name: what was tested.
        value: measured error.
        unit: of both numbers.
        limit: largest value that passes.
        passed: how it was measured.
        failed: what a failure means and what to do.
    """
    good = value <= limit
    return Check(name, value, unit, limit, "pass" if good else "fail", passed if good else f"{passed}; {failed}")


def skipped(name: str, unit: str, reason: str) -> Check:
    """A check that does not apply."""
    return Check(name, None, unit, None, "skip", reason)


def noted(name: str, value: float, unit: str, meaning: str) -> Check:
    """Information without a verdict."""
    return Check(name, value, unit, None, "note", meaning)


def energy_limit(sample: Sample) -> float:
    """Rounding of a total energy in eV: of the sum in float64, and of one eV an atom in the network."""
    network = torch.finfo(sample.potential.dtype).eps * max(sample.force_scale, 1.0) * sample.n_atoms
    return ROUNDING * network + 100 * torch.finfo(torch.float64).eps * sample.energy_scale


def force_limit(sample: Sample, *, distance: float = 0.0) -> float:
    """Rounding of a force in eV/Å, for coordinates up to `distance` (Å) from the origin."""
    coordinates = torch.finfo(torch.float64).eps * distance * STIFFNESS
    return (ROUNDING * torch.finfo(sample.potential.dtype).eps + coordinates) * sample.force_scale
