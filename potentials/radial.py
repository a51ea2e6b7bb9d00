"""Radial functions: Gaussian basis and cutoff envelopes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """exp(-(r - mu_k)^2 / (2 (2 D)^2)) with centres mu_k = linspace(0, cutoff, count), D = cutoff / (count - 1).

    Source: E2Former-V2 (arXiv:2601.16622), radial basis "gaussiansmear"; not normalised, no envelope.

    Attributes:
        centers: mu_k in Å, as stored in the checkpoint (float32 values).
    """

    centers: Tensor

    def __init__(self, cutoff: float, count: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, count, dtype=torch.float32))
        self.width = 2.0 * cutoff / (count - 1)

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges count"]:
        """Basis values for distances in Å."""
        scaled = (distance[:, None] - self.centers.to(distance.dtype)) / self.width
        return torch.exp(-0.5 * scaled * scaled)


def polynomial_envelope(distance: Float[Tensor, " edges"], cutoff: float, exponent: int) -> Float[Tensor, " edges"]:
    """1 at r = 0, and 0 with two vanishing derivatives at the cutoff.

    u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r / cutoff.
    Source: J. Gasteiger, J. Groß, S. Günnemann, Directional Message Passing (ICLR 2020), equation 8.
    """
    p = exponent
    x = distance / cutoff
    polynomial = 1.0 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return torch.where(x < 1.0, polynomial, torch.zeros_like(polynomial))


def bell_envelope(distance: Float[Tensor, " edges"], lower: float, upper: float) -> Float[Tensor, " edges"]:
    """(1 - t^2)^2 with t running from -1 at `lower` to 1 at `upper` (Å); zero slope at both ends."""
    t = (2.0 * distance - lower - upper) / (upper - lower)
    return (1.0 - t * t) ** 2
