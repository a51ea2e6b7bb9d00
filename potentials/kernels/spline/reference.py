"""Specification of spline evaluation in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.spline.table import CUBIC, TabulatedFunctions


def evaluate_spline(functions: TabulatedFunctions) -> Float[Tensor, "edges width"]:
    """Values on each edge; differentiable in the distance. Constant beyond the last knot.

    With s in [0, 1] between two knots: the Hermite interpolant of value, slope and (quintic) curvature at both. The
    weights of the two values add up to 1, so that it is the left value plus the chord times the weight of the right
    one: derivatives consist of slopes, curvatures and chords alone, and no rounded values are subtracted in them.
    Weights, and their derivatives, are in the arithmetic of the distance.
    """
    values, derivatives = functions.table.values, functions.table.derivatives
    knots = values.shape[1]
    position = (functions.distance / functions.table.spacing).clamp(0.0, float(knots - 1))
    knot = position.detach().floor().clamp(max=float(knots - 2)).to(torch.int64)
    s, spacing = position - knot, functions.table.spacing
    weights = (_cubic(s, spacing) if derivatives == CUBIC else _quintic(s, spacing)).to(values.dtype)
    left, right = values[functions.pair, knot], values[functions.pair, knot + 1]
    data = torch.cat([left[:, 1:], right[:, 1:derivatives]], dim=1)
    return left[:, 0] + (weights[:, :, None] * data).sum(1)


def _cubic(s: Float[Tensor, " edges"], spacing: float) -> Float[Tensor, "edges 3"]:
    """Weights of slope and chord at the left knot, then of the slope at the right knot."""
    t = 1.0 - s
    return spacing * torch.stack([t * t * s, s * s * (1.0 + 2.0 * t), -s * s * t], dim=1)


def _quintic(s: Float[Tensor, " edges"], spacing: float) -> Float[Tensor, "edges 5"]:
    """Weights of slope, curvature and chord at the left knot, then of slope and curvature at the right knot."""
    t, curved = 1.0 - s, 0.5 * spacing
    left = [t**3 * s * (1.0 + 3.0 * s), curved * t**3 * s * s, s**3 * (1.0 + 3.0 * t + 6.0 * t * t)]
    return spacing * torch.stack([*left, -(s**3) * t * (1.0 + 3.0 * t), curved * s**3 * t * t], dim=1)
