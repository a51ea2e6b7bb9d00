"""Invariant encoders: transformers on atom tokens with distances as bias, before the first equivariant block.

Every atom attends to itself and to the atoms and images of the dense edge list.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, relu

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.edge_softmax import edge_softmax
from e2former_calc.potentials.neighbors import NeighborList

NUM_GAUSSIANS, TABLE_ROWS, HIDDEN = 128, 512, 128
TOKEN_EPS = 1e-6
SMALLEST_WEIGHT = 1e-5
"""The official code leaves out pairs with a smaller envelope (modular)."""
AVERAGE_DEGREE = 23.39523
"""Divisor of the initial edge sum (microsoft)."""


@dataclass(frozen=True)
class DensePairs:
    """Pairs that the encoder attends over, each atom with itself included.

    Attributes:
        neighbors: pairs in CSR order.
        distance: in Å.
        envelope: smooth cutoff.
    """

    neighbors: NeighborList
    distance: Float[Tensor, " edges"]
    envelope: Float[Tensor, " edges"]


class PairGaussians(nn.Module):
    """Gaussians of a linear function of the distance whose coefficients depend on both elements."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(NUM_GAUSSIANS).uniform_(0.0, 3.0))
        self.std = nn.Parameter(torch.empty(NUM_GAUSSIANS).uniform_(0.0, 3.0))
        self.slope = nn.Parameter(torch.ones(TABLE_ROWS))
        self.offset = nn.Parameter(torch.zeros(TABLE_ROWS))

    def forward(
        self,
        distance: Float[Tensor, " edges"],
        center: Int[Tensor, " edges"],
        source: Int[Tensor, " edges"],
    ) -> Float[Tensor, "edges gaussians"]:
        """`center` and `source` are atomic numbers."""
        slope = self.slope[center] + self.slope[source]
        offset = self.offset[center] + self.offset[source]
        width = self.std.abs() + 0.01
        scaled = ((slope * distance + offset)[:, None] - self.mean) / width
        return torch.exp(-0.5 * scaled * scaled) / (sqrt(2.0 * pi) * width)


class TokenAttention(nn.Module):
    """Multi-head attention over pairs with an additive bias and a smooth cutoff.

    `renormalize` puts the envelope under the softmax (modular); otherwise it multiplies the weights (microsoft).
    """

    def __init__(self, width: int, heads: int, *, renormalize: bool) -> None:
        super().__init__()
        self.heads, self.renormalize = heads, renormalize
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "atoms width"], bias: Float[Tensor, "edges heads"], pairs: DensePairs
    ) -> Float[Tensor, "atoms width"]:
        """Update of each token."""
        shape = (self.heads, x.shape[1] // self.heads)
        center, source = pairs.neighbors.center, pairs.neighbors.source
        query, key, value = (linear(x).unflatten(1, shape) for linear in (self.query, self.key, self.value))
        product = (query[center] * key[source]).sum(2) / sqrt(shape[1])
        envelope = pairs.envelope[:, None]
        if self.renormalize:
            weight = edge_softmax(product / sqrt(self.heads) + bias, pairs.neighbors, envelope)
        else:
            weight = edge_softmax(product + bias, pairs.neighbors) * envelope
        messages = (weight[:, :, None] * value[source]).flatten(1)
        result: Tensor = self.output(torch.zeros_like(x).index_add(0, center, messages))
        return result


def _plain_norm(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=TOKEN_EPS)


class DiffusionLayer(nn.Module):
    """`dit`: attention and network, both shifted, scaled and gated by the condition.

    The condition is the input token (modular), or the current one (microsoft).
    """

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        width, hidden = config.encoder_channels, config.encoder_hidden
        self.modular = config.variant == "modular"
        self.attention = TokenAttention(width, config.encoder_heads, renormalize=self.modular)
        if self.modular:
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width, bias=False))
            self.enter = _adjustment(width)
            self.leave = _adjustment(width)
            self.network = nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, width, bias=False)
            )
        else:
            self.modulation = nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.SiLU(),
                nn.LayerNorm(width, eps=TOKEN_EPS),
                nn.Linear(width, 6 * width, bias=False),
            )
            self.enter = nn.Sequential(nn.Linear(width, width, bias=False))
            self.leave = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=TOKEN_EPS))
            self.network = nn.Sequential(
                nn.Linear(width, hidden, bias=False),
                nn.SiLU(),
                nn.LayerNorm(hidden, eps=TOKEN_EPS),
                nn.Linear(hidden, width, bias=False),
            )

    def forward(
        self,
        x: Float[Tensor, "atoms width"],
        condition: Float[Tensor, "atoms width"],
        bias: Float[Tensor, "edges heads"],
        pairs: DensePairs,
    ) -> Float[Tensor, "atoms width"]:
        """New tokens."""
        condition = condition if self.modular else x
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=1)
        x = self.enter(x)
        x = x + gate_1 * self.attention(_plain_norm(x) * (1.0 + scale_1) + shift_1, bias, pairs)
        x = x + gate_2 * self.network(_plain_norm(x) * (1.0 + scale_2) + shift_2)
        result: Tensor = self.leave(x)
        return result


def _adjustment(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width, bias=False),
        nn.LayerNorm(width, eps=TOKEN_EPS),
        nn.SiLU(),
        nn.Linear(width, width, bias=False),
    )


class TransformerLayer(nn.Module):
    """`transformer`: attention and network, each with a norm on its output and a residual."""

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        width, hidden = config.encoder_channels, config.encoder_hidden
        self.attention = TokenAttention(width, config.encoder_heads, renormalize=True)
        self.norm_1 = nn.LayerNorm(width)
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, width)
        self.norm_2 = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "atoms width"],
        condition: Float[Tensor, "atoms width"],
        bias: Float[Tensor, "edges heads"],
        pairs: DensePairs,
    ) -> Float[Tensor, "atoms width"]:
        """New tokens; there is no condition."""
        del condition
        x = x + self.norm_1(self.attention(x, bias, pairs))
        result: Tensor = x + self.norm_2(self.last(relu(self.first(x))))
        return result


class PairBias(nn.Module):
    """Attention bias of every layer and head from the Gaussians of a pair."""

    def __init__(self, n_out: int, *, normalized: bool) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_GAUSSIANS, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=TOKEN_EPS) if normalized else nn.Identity()
        self.last = nn.Linear(HIDDEN, n_out)

    def forward(self, gaussians: Float[Tensor, "edges gaussians"]) -> Float[Tensor, "edges n_out"]:
        """One number per pair, layer and head."""
        result: Tensor = self.last(self.norm(gelu(self.first(gaussians))))
        return result


class PairSum(nn.Module):
    """Tokens from the surroundings of each atom, in place of its element alone (microsoft)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(256, HIDDEN)
        self.target_embedding = nn.Embedding(256, HIDDEN)
        self.first = nn.Linear(2 * HIDDEN + NUM_GAUSSIANS, HIDDEN)
        self.last = nn.Linear(HIDDEN, width)

    def forward(
        self, gaussians: Float[Tensor, "edges gaussians"], numbers: Int[Tensor, " atoms"], pairs: DensePairs
    ) -> Float[Tensor, "atoms width"]:
        """One token per atom."""
        center, source = pairs.neighbors.center, pairs.neighbors.source
        elements = [self.source_embedding(numbers)[source], self.target_embedding(numbers)[center]]
        edge: Tensor = self.last(gelu(self.first(torch.cat([*elements, gaussians], dim=1))))
        edge = edge * (pairs.envelope[:, None] / AVERAGE_DEGREE)
        return edge.new_zeros(len(numbers), edge.shape[1]).index_add(0, center, edge)


class Encoder(nn.Module):
    """All layers of `encoder: dit` or `encoder: transformer`."""

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        self.heads = config.encoder_heads
        modular = config.variant == "modular"
        self.gaussians = PairGaussians()
        self.bias = PairBias(config.encoder_layers * config.encoder_heads, normalized=modular)
        self.pair_sum = None if modular else PairSum(config.encoder_channels)
        layer = DiffusionLayer if config.encoder == "dit" else TransformerLayer
        self.layers = nn.ModuleList(layer(config) for _ in range(config.encoder_layers))

    def forward(
        self, token: Float[Tensor, "atoms width"], numbers: Int[Tensor, " atoms"], pairs: DensePairs
    ) -> Float[Tensor, "atoms width"]:
        """New tokens."""
        neighbors = pairs.neighbors
        gaussians = self.gaussians(pairs.distance, numbers[neighbors.center], numbers[neighbors.source])
        bias: Tensor = self.bias(gaussians)
        x = token if self.pair_sum is None else self.pair_sum(gaussians, numbers, pairs)
        condition = x
        for index, layer in enumerate(self.layers):
            x = layer(x, condition, bias[:, index * self.heads : (index + 1) * self.heads], pairs)
        return x
