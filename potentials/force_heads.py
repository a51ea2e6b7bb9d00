"""Heads that predict forces directly from degree-1 features; shared by the model families.

Rows 1 ... 3 of the features are (x, y, z), see so3/README.md. Direct forces are not the gradient of any energy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu


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
