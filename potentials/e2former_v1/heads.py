"""Energy heads of the original E2Former; force heads are shared with other families."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.force_heads import LinearForceHead, PainnForceHead

ENERGY_DIVISOR = 77.81317
"""Divides the sum of atomic outputs, a constant of all FairChem code bases."""


class LinearEnergyHead(nn.Module):
    """One linear combination of the scalars of each atom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1, bias=False)
        nn.init.xavier_uniform_(self.linear.weight, gain=0.01)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, " atoms"]:
        """Energy of each atom, before the scale of the model."""
        result: Tensor = self.linear(x[:, 0]).squeeze(1) / ENERGY_DIVISOR
        return result


class NetworkEnergyHead(nn.Module):
    """Two-layer network of the scalars of each atom (lsr)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, 1)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, " atoms"]:
        """Energy of each atom in eV."""
        result: Tensor = self.last(silu(self.first(x[:, 0]))).squeeze(1)
        return result


def energy_heads(config: E2FormerV1Config) -> nn.ModuleDict:
    """One energy head for each name."""
    kind = NetworkEnergyHead if config.variant == "lsr" else LinearEnergyHead
    return nn.ModuleDict({name: kind(config.channels) for name in config.heads})


def force_heads(config: E2FormerV1Config) -> nn.ModuleDict:
    """One force head for each name, or none."""
    if config.force_head == "none":
        return nn.ModuleDict()
    kind = PainnForceHead if config.force_head == "gated" else LinearForceHead
    return nn.ModuleDict({name: kind(config.channels) for name in config.heads})
