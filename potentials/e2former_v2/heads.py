"""Output heads of E2Former-V2: energies and direct forces from the final node features.

Rows 1 ... 3 of the features are (x, y, z), see so3/README.md. Direct forces are not the gradient of any energy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.force_heads import GatedEquivariantBlock, LinearForceHead, PainnForceHead

__all__ = ["EnergyHead", "GatedEquivariantBlock", "LinearForceHead", "PainnForceHead", "SphereSampleHead"]

SPHERE_SAMPLES = 18


class EnergyHead(nn.Module):
    """Three-layer network on the scalars of each atom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, 1)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, " atoms"]:
        """Energy of each atom in eV."""
        result: Tensor = self.last(silu(self.second(silu(self.first(x[:, 0]))))).squeeze(1)
        return result


class SphereSampleHead(nn.Module):
    """Mean over fixed directions of a network on the features seen in that direction (`with_moe: escn`).

    Not exactly rotation invariant: the directions are fixed in the laboratory frame.
    """

    sampling: Tensor
    points: Tensor

    def __init__(self, lmax: int, channels: int, *, forces: bool) -> None:
        super().__init__()
        self.forces = forces
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, 1, bias=False)
        self.register_buffer("sampling", torch.zeros(SPHERE_SAMPLES, (lmax + 1) ** 2))
        if forces:
            self.register_buffer("points", torch.zeros(SPHERE_SAMPLES, 3))

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms *components"]:
        """Energies in eV, or forces in eV/Å."""
        samples = self.sampling.to(x.dtype) @ x
        value: Tensor = self.last(silu(self.second(silu(self.first(samples)))))
        if self.forces:
            return (value * self.points.to(x.dtype)).mean(dim=1)
        return value.mean(dim=1).squeeze(1)
