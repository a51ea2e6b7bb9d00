"""Norms, activations and learned bases of the original E2Former that no other family uses."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config, Norm
from e2former_calc.potentials.layers import EPS, EquivariantRMSNorm, degree_of_row


def smooth_leaky_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0.8 x sigmoid(x) + 0.2 x."""
    return 0.8 * x * torch.sigmoid(x) + 0.2 * x


def drop_structures(
    x: Float[Tensor, "atoms rows channels"], batch: Int[Tensor, " atoms"], probability: float
) -> Float[Tensor, "atoms rows channels"]:
    """An update that some structures miss; the others get more of it, so that the mean stays the same."""
    kept = torch.rand(len(batch), dtype=x.dtype, device=x.device) >= probability
    return x * (kept.to(x.dtype) / (1.0 - probability))[batch][:, None, None]


def drop_channels(x: Float[Tensor, "atoms rows channels"], probability: float) -> Float[Tensor, "atoms rows channels"]:
    """Dropout of all components of a degree and channel together, which keeps equivariance."""
    lmax = int(x.shape[1] ** 0.5) - 1
    mask = dropout(x.new_ones(x.shape[0], lmax + 1, x.shape[2]), probability)
    return x * mask[:, degree_of_row(lmax).to(x.device)]


def make_norm(config: E2FormerV1Config) -> nn.Module:
    """The normalisation that `norm_layer` names."""
    kinds: dict[Norm, type[nn.Module]] = {
        "rms_norm_sh": EquivariantRMSNorm,
        "layer_norm": DegreeLayerNorm,
        "layer_norm_sh": SeparableLayerNorm,
    }
    return nn.Identity() if config.norm == "identity" else kinds[config.norm](config.lmax, config.channels)


def make_basis(config: E2FormerV1Config) -> nn.Module:
    """The radial basis that `basis_type` names."""
    if config.basis == "gaussian":
        return LearnedGaussianBasis(config.max_radius, config.num_basis)
    return SmearedGaussianBasis(config.max_radius, config.num_basis)


class DegreeLayerNorm(nn.Module):
    """`layer_norm`: every degree has its own root mean square; l = 0 is centred first."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """Normalise."""
        degrees = []
        for degree, weight in enumerate(self.weight):
            y = x[:, degree**2 : (degree + 1) ** 2]
            y = y - y.mean(dim=2, keepdim=True) if degree == 0 else y
            y = y * (y.square().mean(dim=(1, 2), keepdim=True) + EPS).rsqrt() * weight
            degrees.append(y + self.bias if degree == 0 else y)
        return torch.cat(degrees, dim=1)


class SeparableLayerNorm(nn.Module):
    """`layer_norm_sh`: a layer norm on l = 0 and one balanced root mean square for all higher degrees."""

    balance: Tensor
    degree: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.scalar = nn.LayerNorm(channels, eps=EPS)
        self.weight = nn.Parameter(torch.ones(lmax, channels))
        degree = degree_of_row(lmax)[1:]
        self.register_buffer("degree", degree - 1, persistent=False)
        balance = 1.0 / ((2.0 * degree.double() + 1.0) * max(lmax, 1))
        self.register_buffer("balance", balance[:, None], persistent=False)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """Normalise."""
        scalars, higher = self.scalar(x[:, :1]), x[:, 1:]
        mean_square = (higher.square() * self.balance.to(x.dtype)).sum(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return torch.cat([scalars, higher * (mean_square + EPS).rsqrt() * self.weight[self.degree]], dim=1)


class SmearedGaussianBasis(nn.Module):
    """`gaussiansmear`: as `radial.GaussianBasis`, with exact centres instead of the stored, rounded ones."""

    centers: Tensor

    def __init__(self, cutoff: float, count: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, count, dtype=torch.float64), persistent=False)
        self.width = 2.0 * cutoff / (count - 1)

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges count"]:
        """Basis values for distances in Å."""
        scaled = (distance[:, None] - self.centers.to(distance.dtype)) / self.width
        return torch.exp(-0.5 * scaled * scaled)


class LearnedGaussianBasis(nn.Module):
    """`gaussian`: normalised Gaussians with learned centres and widths of a learned linear function of the distance."""

    def __init__(self, cutoff: float, count: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.mean = nn.Parameter(torch.rand(1, count))
        self.std = nn.Parameter(torch.empty(1, count).uniform_(1.0 / count, 1.0))
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 1))

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges count"]:
        """Basis values for distances in Å."""
        scaled = self.weight * (distance[:, None] / self.cutoff) + self.bias
        width = self.std.abs() + 1e-5
        return torch.exp(-0.5 * ((scaled - self.mean) / width) ** 2) / (sqrt(2.0 * pi) * width)
