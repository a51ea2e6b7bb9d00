"""Feed-forward section of one block: every form of `ffn_type`."""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.layers import drop_channels, drop_structures, make_norm
from e2former_calc.potentials.e2former_v1.sphere import SphereGrid
from e2former_calc.potentials.layers import GatedFeedForward, SO3Linear
from e2former_calc.potentials.so3 import triple_coupling


class SphereFeedForward(nn.Module):
    """`s2` (also `default`, `eqv2ffn`): linear, silu on the sphere, linear; l = 0 passes through a gate only."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.first = SO3Linear(lmax, channels, channels)
        self.gate = nn.Linear(channels, channels)
        self.last = SO3Linear(lmax, channels, channels)
        self.grid = SphereGrid(lmax)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """New features."""
        y = self.grid(self.first(x), silu)
        result: Tensor = self.last(torch.cat([silu(self.gate(x[:, :1])), y[:, 1:]], dim=1))
        return result


class GridFeedForward(nn.Module):
    """`grid_nonlinear`: a network of the attention output and the block input at every point of the sphere."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * channels, channels, bias=False)
        self.second = nn.Linear(channels, channels, bias=False)
        self.last = nn.Linear(channels, channels, bias=False)
        self.grid = SphereGrid(lmax)

    def forward(
        self, attention: Float[Tensor, "atoms rows channels"], x: Float[Tensor, "atoms rows channels"]
    ) -> Float[Tensor, "atoms rows channels"]:
        """New features; there is no residual."""
        result: Tensor = self.grid(torch.cat([attention, x], dim=2), self._network)
        return result

    def _network(self, values: Float[Tensor, "atoms points width"]) -> Float[Tensor, "atoms points channels"]:
        result: Tensor = self.last(silu(self.second(silu(self.first(values)))))
        return result


class TwoBodyProduct(nn.Module):
    """`2body`: products of two linear maps of the features, channel by channel, for degrees up to 2."""

    coupling_0: Tensor
    coupling_1: Tensor
    coupling_2: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.left = SO3Linear(lmax, channels, channels)
        self.right = SO3Linear(lmax, channels, channels)
        self.last = SO3Linear(lmax, channels, channels)
        for degree, pair in enumerate([(2, 2), (1, 2), (1, 1)]):
            coupling = triple_coupling(*pair, degree) * sqrt((2 * degree + 1) / channels)
            self.register_buffer(f"coupling_{degree}", coupling, persistent=False)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """New features."""
        left, right = self.left(x), self.right(x)
        vector, tensor = slice(1, 4), slice(4, 9)
        products = [
            _product(self.coupling_0, left[:, tensor], right[:, tensor]),
            _product(self.coupling_1, left[:, vector], right[:, tensor]),
            _product(self.coupling_2, left[:, vector], right[:, vector]),
            torch.zeros_like(x[:, 9:]),
        ]
        result: Tensor = self.last(torch.cat(products, dim=1))
        return result


def _product(coupling: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("abm,nac,nbc->nmc", coupling.to(left.dtype), left, right)


class FeedForwardSection(nn.Module):
    """Everything that follows attention in a block, with norms, gates and residuals."""

    def __init__(self, config: E2FormerV1Config, *, last: bool = False) -> None:
        super().__init__()
        lmax, channels, parts = config.lmax, config.channels, config.feed_forward
        self.dropout = 0.0 if last else config.feed_forward_dropout
        self.drop_path = 0.0 if last else config.drop_path
        self.grid = GridFeedForward(lmax, channels) if "grid" in parts else None
        sphere, gated, product = ("s2" in parts), ("s3" in parts), ("2body" in parts)
        self.norm_sphere = make_norm(config) if sphere else None
        self.sphere = SphereFeedForward(lmax, channels) if sphere else None
        self.norm_gated = make_norm(config) if gated else None
        self.gated = GatedFeedForward(lmax, channels) if gated else None
        self.mixing = nn.Linear(channels, channels) if sphere and gated else None
        self.norm_product = make_norm(config) if product else None
        self.product = TwoBodyProduct(lmax, channels) if product else None
        self.product_mixing = nn.Linear(channels, channels) if product else None

    def forward(
        self,
        x: Float[Tensor, "atoms rows channels"],
        attention: Float[Tensor, "atoms rows channels"],
        batch: Int[Tensor, " atoms"],
    ) -> Float[Tensor, "atoms rows channels"]:
        """Features after the block from the features before it and the attention output."""
        if self.grid is not None:
            result: Tensor = self.grid(attention, x)
            return result
        x = x + self._kept(attention, batch)
        x = x + self._update(x, batch)
        if self.product is not None and self.norm_product is not None and self.product_mixing is not None:
            share = torch.sigmoid(self.product_mixing(x[:, :1]))
            x = share * x + (1.0 - share) * self.product(self.norm_product(x))
        return x

    def _update(
        self, x: Float[Tensor, "atoms rows channels"], batch: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms rows channels"]:
        sphere = gated = torch.zeros_like(x)
        if self.sphere is not None and self.norm_sphere is not None:
            sphere = self._kept(self.sphere(self.norm_sphere(x)), batch)
        if self.gated is not None and self.norm_gated is not None:
            gated = self._kept(self.gated(self.norm_gated(x)), batch)
        update = sphere + gated
        if self.mixing is not None:
            share = torch.sigmoid(self.mixing(x[:, :1]))
            update = share * sphere + (1.0 - share) * gated
        return drop_channels(update, self.dropout) if self.training and self.dropout else update

    def _kept(
        self, update: Float[Tensor, "atoms rows channels"], batch: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms rows channels"]:
        """In training some structures miss an update."""
        return drop_structures(update, batch, self.drop_path) if self.training and self.drop_path else update
