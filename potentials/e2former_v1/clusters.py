"""Attention of atoms to clusters of atoms, after the last block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v1.attention import Attention
from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.edges import EdgeFeatures
from e2former_calc.potentials.e2former_v1.layers import make_norm
from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.layers import GatedFeedForward, SO3Linear
from e2former_calc.potentials.neighbors import NeighborList

LAYERS = 2
BASIS_REACH = {"kmeans": 20.0, "fragments": 18.0}
"""Largest distance (Å) of the radial basis of centres."""


class ClusterBlocks(nn.Module):
    """Two layers of attention to clusters and feed-forward, after the final norm of the atoms."""

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        lmax, channels = config.lmax, config.channels
        self.refresh = config.clusters == "fragments"
        self.attention = nn.ModuleList(
            Attention(config, config.orders[0], n_source=channels, project_first=self.refresh) for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(make_norm(config) for _ in range(LAYERS))
        self.feed_forward = nn.ModuleList(GatedFeedForward(lmax, channels) for _ in range(LAYERS))
        self.norm_final = make_norm(config)
        self.join = SO3Linear(lmax, 2 * channels, channels) if self.refresh else None

    def forward(
        self,
        x: Float[Tensor, "atoms rows channels"],
        edges: EdgeFeatures,
        members: NeighborList,
        count: Float[Tensor, " atoms"],
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Final features; cluster features stand in the row of the anchor."""
        short, clusters = x, _pool(x, members, count)
        for attention, norm, feed_forward in zip(self.attention, self.norms, self.feed_forward, strict=True):
            clusters = _pool(x, members, count) if self.refresh else clusters
            x = x + attention(x, edges, implementation, source=clusters)
            x = x + feed_forward(norm(x))
        result: Tensor = self.norm_final(x)
        if self.join is not None:
            result = self.join(torch.cat([self.norm_final(short), result], dim=2))
        return result


def _pool(
    x: Float[Tensor, "atoms rows channels"], members: NeighborList, count: Float[Tensor, " atoms"]
) -> Float[Tensor, "atoms rows channels"]:
    """Mean features of the members of each cluster, in the row of its anchor; zero elsewhere."""
    total = torch.zeros_like(x).index_add(0, members.center, x[members.source])
    return total / count.to(x.dtype)[:, None, None]
