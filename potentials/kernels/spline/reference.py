"""Specification of spline evaluation in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.spline.table import CUBIC, TabulatedFunctions


def evaluate_spline(functions: TabulatedFunctions) -> Float[Tensor, "edges width"]:
    """Values on each edge; differentiable in the distance. Constant beyond the last knot.

    With s in [0, 1] between two knots: the Hermite interpolant of value, slope and (quintic) curvature at both.
    """
    values = functions.table.values
    knots, derivatives = values.shape[1:3]
    position = (functions.distance / functions.table.spacing).clamp(0.0, float(knots - 1))
    knot = position.detach().floor().clamp(max=float(knots - 2)).to(torch.int64)
    s = (position - knot).to(values.dtype)
    weights = _cubic(s) if derivatives == CUBIC else _quintic(s)
    powers = functions.table.spacing ** torch.arange(derivatives, dtype=torch.float64, device=s.device).repeat(2)
    data = torch.cat([values[functions.pair, knot], values[functions.pair, knot + 1]], dim=1)
    return ((weights * powers.to(s.dtype))[:, :, None] * data).sum(1)


def _cubic(s: Float[Tensor, " edges"]) -> Float[Tensor, "edges 4"]:
    """Weights of value and slope at the left knot, then at the right knot."""
    t = 1.0 - s
    return torch.stack([t * t * (1.0 + 2.0 * s), t * t * s, s * s * (1.0 + 2.0 * t), -s * s * t], dim=1)


def _quintic(s: Float[Tensor, " edges"]) -> Float[Tensor, "edges 6"]:
    """Weights of value, slope and curvature at the left knot, then at the right knot."""
    t = 1.0 - s
    left = [t**3 * (1.0 + 3.0 * s + 6.0 * s * s), t**3 * s * (1.0 + 3.0 * s), 0.5 * t**3 * s * s]
    right = [s**3 * (1.0 + 3.0 * t + 6.0 * t * t), -(s**3) * t * (1.0 + 3.0 * t), 0.5 * s**3 * t * t]
    return torch.stack([*left, *right], dim=1)
