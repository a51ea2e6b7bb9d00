"""Attention scores of the original E2Former: products of queries and keys, or projections on edge directions."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.edges import EdgeFeatures
from e2former_calc.potentials.e2former_v1.layers import smooth_leaky_relu
from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.edge_dot import edge_dot
from e2former_calc.potentials.layers import EPS, InvariantProjection, RadialNetwork, SO3Linear

ELEMENT_ROWS, ELEMENT_WIDTH = 256, 128

Tables = tuple[Tensor, Tensor]
"""Features of the center's element and of the source, (rows, width) each; `EdgeFeatures.pair` points into both."""


class QueryKeyScore(nn.Module):
    """`QK_alpha`: query-key products times a function of the edge."""

    def __init__(self, config: E2FormerV1Config, n_source: int) -> None:
        super().__init__()
        heads, width = config.num_heads, config.head_width
        self.heads, self.width = heads, width
        n_out = heads * width
        self.query = InvariantProjection(config.lmax, config.channels, n_out, hidden=n_out)
        self.key = InvariantProjection(config.lmax, config.channels, n_out, hidden=n_out)
        self.radial = RadialNetwork(config.num_basis, ELEMENT_WIDTH, heads, n_source=n_source)

    def forward(
        self,
        h: Float[Tensor, "atoms rows channels"],
        source: Float[Tensor, "sources rows channels"],
        edges: EdgeFeatures,
        tables: Tables,
        implementation: Implementation,
    ) -> Float[Tensor, "edges heads"]:
        """One score per edge and head."""
        query = self.query(h).unflatten(1, (self.heads, self.width))
        key = self.key(source).unflatten(1, (self.heads, self.width))
        product = edge_dot(query, key, edges.neighbors, implementation=implementation) / sqrt(self.width)
        return smooth_leaky_relu(self.radial(edges.basis, *tables, edges.pair) * product)


class DirectionScore(nn.Module):
    """`dot_alpha`: projections of both atoms' features on the edge direction, weighted by a function of the edge."""

    def __init__(self, config: E2FormerV1Config, n_source: int, *, n_projected: int) -> None:
        super().__init__()
        heads, width = config.num_heads, config.head_width
        n_in = 2 * n_projected * (config.lmax + 1)
        self.lmax, self.heads, self.width = config.lmax, heads, width
        self.dot = SO3Linear(config.lmax, config.channels, n_projected)
        self.radial = RadialNetwork(config.num_basis, ELEMENT_WIDTH, n_in, n_source=n_source)
        self.last = nn.Linear(n_in, heads * width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.vector = nn.Parameter(torch.empty(heads, width).uniform_(-1, 1) / width**0.5)

    def forward(
        self,
        h: Float[Tensor, "atoms rows channels"],
        source: Float[Tensor, "sources rows channels"],
        edges: EdgeFeatures,
        tables: Tables,
        implementation: Implementation,
    ) -> Float[Tensor, "edges heads"]:
        """One score per edge and head."""
        del implementation
        projected = [
            (self.dot(h), edges.neighbors.center),
            (self.dot(source), edges.neighbors.source),
        ]
        degrees = [
            self._project(features, index, edges.harmonics, degree)
            for degree in range(self.lmax + 1)
            for features, index in projected
        ]
        invariants = torch.cat(degrees, dim=1) * self.radial(edges.basis, *tables, edges.pair)
        value = self.last(invariants).unflatten(1, (self.heads, self.width))
        return (smooth_leaky_relu(self.norm(value)) * self.vector).sum(dim=2)

    @staticmethod
    def _project(
        features: Float[Tensor, "atoms rows width"],
        index: Int[Tensor, " edges"],
        harmonics: Float[Tensor, "edges all_rows"],
        degree: int,
    ) -> Float[Tensor, "edges width"]:
        """sum_m Y_lm(e) features[index(e), lm] with integral normalisation."""
        rows = slice(degree**2, (degree + 1) ** 2)
        return torch.einsum("em,emc->ec", harmonics[:, rows] / sqrt(4 * pi), features[:, rows][index])
