"""Output heads of E2Former-V2: energies and direct forces from the final node features.

Rows 1 ... 3 of the features are (x, y, z), see so3/README.md. Direct forces are not the gradient of any energy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

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


class LinearForceHead(nn.Module):
    """One linear combination of the degree-1 features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms 3"]:
        """Forces in eV/Å."""
        result: Tensor = self.linear(x[:, 1:4]).squeeze(2)
        return result


class GatedEquivariantBlock(nn.Module):
    """PaiNN output block: scalars gate vectors (K. Schütt et al., arXiv:2102.03150, section 3.3)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.vector_1 = nn.Linear(n_in, n_in, bias=False)
        self.vector_2 = nn.Linear(n_in, n_out, bias=False)
        self.first = nn.Linear(2 * n_in, n_in)
        self.last = nn.Linear(n_in, 2 * n_out)

    def forward(
        self, s: Float[Tensor, "atoms n_in"], v: Float[Tensor, "atoms 3 n_in"]
    ) -> tuple[Float[Tensor, "atoms n_out"], Float[Tensor, "atoms 3 n_out"]]:
        """New scalars and vectors."""
        squared = self.vector_1(v).square().sum(dim=1)
        # The norm of a zero vector has no gradient; the smallest number keeps it finite.
        length = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        scalars, gate = self.last(silu(self.first(torch.cat([s, length], dim=1)))).chunk(2, dim=1)
        return scalars, gate[:, None] * self.vector_2(v)


class PainnForceHead(nn.Module):
    """Two gated equivariant blocks, channels -> channels // 2 -> 1 (`with_moe: painn`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = GatedEquivariantBlock(channels, channels // 2)
        self.last = GatedEquivariantBlock(channels // 2, 1)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms 3"]:
        """Forces in eV/Å."""
        scalars, vectors = self.first(x[:, 0], x[:, 1:4])
        _, forces = self.last(silu(scalars), vectors)
        result: Tensor = forces.squeeze(2)
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
