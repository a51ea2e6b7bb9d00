"""The original E2Former network: edges in, atomic energies out.

Source: E2Former, arXiv:2501.19216. The module is the specification of the mathematics: plain torch,
differentiable twice, no padding between structures.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v1.attention import Attention
from e2former_calc.potentials.e2former_v1.cluster_graph import centre_edges, cluster_graphs
from e2former_calc.potentials.e2former_v1.cluster_rules import ClusterRule, KMeansClusters, UnknownClusters
from e2former_calc.potentials.e2former_v1.clusters import BASIS_REACH, ClusterBlocks
from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config, Order
from e2former_calc.potentials.e2former_v1.edges import EdgeFeatures, safe_length
from e2former_calc.potentials.e2former_v1.embedding import AtomEmbedding, EdgeEmbedding, TokenProjection
from e2former_calc.potentials.e2former_v1.encoder import DensePairs, Encoder
from e2former_calc.potentials.e2former_v1.feed_forward import FeedForwardSection
from e2former_calc.potentials.e2former_v1.graph import (
    ENVELOPE_EXPONENT,
    attention_pairs,
    encoder_pairs,
    encoder_radius,
    truncated_atoms,
)
from e2former_calc.potentials.e2former_v1.heads import energy_heads, force_heads
from e2former_calc.potentials.e2former_v1.initialization import reset_parameters
from e2former_calc.potentials.e2former_v1.layers import SmearedGaussianBasis, make_basis, make_norm
from e2former_calc.potentials.interface import AtomOutput, Edges, Implementation, NeighborCap
from e2former_calc.potentials.neighbors import NeighborList, squared_length
from e2former_calc.potentials.radial import polynomial_envelope
from e2former_calc.potentials.so3 import SphericalHarmonics
from e2former_calc.potentials.system import System


class Block(nn.Module):
    """Pre-norm attention and the feed-forward section."""

    def __init__(self, config: E2FormerV1Config, order: Order, *, last: bool) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.attention = Attention(config, order, last=last, project_first=config.variant == "lsr")
        self.feed_forward = FeedForwardSection(config, last=last)

    def forward(
        self,
        x: Float[Tensor, "atoms rows channels"],
        edges: EdgeFeatures,
        batch: Int[Tensor, " atoms"],
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """New features."""
        result: Tensor = self.feed_forward(x, self.attention(self.norm(x), edges, implementation), batch)
        return result


class E2FormerV1(nn.Module):
    """The original E2Former; implements `EnergyModel`.

    Args:
        config: the network.
        implementation: how edge operations are carried out (potentials/kernels).

    Attributes:
        cluster_rule: which atoms form a cluster, for models with clusters. It must be set for user-supplied fragments.
    """

    def __init__(self, config: E2FormerV1Config, *, implementation: Implementation = "blocked") -> None:
        super().__init__()
        self.config = config
        self.implementation: Implementation = implementation
        self.cluster_rule: ClusterRule = UnknownClusters() if config.clusters == "fragments" else KMeansClusters()
        self.atom_embedding = AtomEmbedding(config)
        self.encoder = Encoder(config) if config.encoder != "none" else None
        self.projection = TokenProjection(config)
        self.basis = make_basis(config)
        self.harmonics = SphericalHarmonics(max(config.lmax, *(_largest_order(order) for order in config.orders)))
        self.edge_embedding = EdgeEmbedding(config)
        last = config.num_layers - 1
        self.blocks = nn.ModuleList(
            Block(config, order, last=index == last) for index, order in enumerate(config.orders)
        )
        self.norm_final = make_norm(config)
        self.cluster_basis = None
        self.clusters = None
        if config.clusters != "none":
            self.cluster_basis = SmearedGaussianBasis(BASIS_REACH[config.clusters], config.num_basis)
            self.clusters = ClusterBlocks(config)
        reset_parameters(self)
        self.energy_heads = energy_heads(config)
        self.force_heads = force_heads(config)

    @property
    def cutoff(self) -> float:
        """Longest edge in Å."""
        return self.config.cutoff

    @property
    def has_force_head(self) -> bool:
        """True if the file holds a direct-force head."""
        return len(self.force_heads) > 0

    def graphs(self, system: System, neighbors: NeighborList, cap: NeighborCap) -> tuple[NeighborList, ...]:
        """Edges of the blocks; then pairs of the encoder; then atoms to clusters, and clusters to members."""
        lists = [attention_pairs(self.config, system, neighbors, cap)]
        if self.encoder is not None:
            lists.append(encoder_pairs(self.config, system, neighbors, cap))
        if self.clusters is not None:
            lists += cluster_graphs(self.config, system, self.cluster_rule, cap)
        return tuple(lists)

    def truncated(self, system: System, neighbors: NeighborList) -> Bool[Tensor, " atoms"]:
        """Atoms for which the official selection drops pairs within the cutoff."""
        return truncated_atoms(self.config, system, neighbors)

    def forward(
        self,
        system: System,
        edges: tuple[Edges, ...],
        *,
        head: str,
        forces: bool = False,
        elements: Int[Tensor, " elements"] | None = None,
    ) -> AtomOutput:
        """Energies (eV, float64) of all atoms, and direct forces (eV/Å, float64) if asked for and available.

        The shift of the energy of a structure is spread evenly over its atoms.
        """
        config = self.config
        x = self.node_features(system, edges, elements)
        energies = self.energy_heads[head](x).to(torch.float64) * config.energy_scale
        if config.energy_shift:
            energies = energies + config.energy_shift / system.sizes.to(torch.float64)[system.batch]
        direct = None
        if forces and self.has_force_head:
            raw = self.force_heads[head](x) if config.lmax > 0 else torch.zeros_like(system.positions)
            direct = raw.to(torch.float64) * config.force_scale + config.force_shift
        return AtomOutput(energies=energies, forces=direct, descriptors=x[:, 0])

    def node_features(
        self, system: System, edges: tuple[Edges, ...], elements: Int[Tensor, " elements"] | None = None
    ) -> Float[Tensor, "atoms rows channels"]:
        """Final equivariant features of all atoms; `elements` as in `EnergyModel`."""
        if elements is None:
            elements, element_of_atom = torch.unique(system.numbers, return_inverse=True)
        else:
            element_of_atom = torch.searchsorted(elements, system.numbers)
        rest = list(edges[1:])
        token: Tensor = self.atom_embedding(system)
        if self.encoder is not None:
            token = self.encoder(token, system.numbers, self._dense(system, rest.pop(0), token.dtype))
        features = self._edge_features(edges[0], elements, element_of_atom)
        scalars = self.projection(token)
        x: Tensor = self.edge_embedding(features, self.implementation)
        # The code base with fragments adds the atom embedding twice if it has clusters.
        copies = 2 if self.config.clusters == "fragments" else 1
        x = torch.cat([x[:, :1] + copies * scalars[:, None], x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x, features, system.batch, self.implementation)
        x = self.norm_final(x)
        if self.clusters is None or self.cluster_basis is None:
            return x
        seen, members = rest
        vector, count = centre_edges(system, self.cluster_rule, seen, members)
        pair = element_of_atom[seen.neighbors.center] * system.n_atoms + seen.neighbors.source
        reached = self._features(seen.neighbors, vector, self.cluster_basis, (elements, pair))
        result: Tensor = self.clusters(x, reached, members.neighbors, count, self.implementation)
        return result

    def _edge_features(
        self, edges: Edges, elements: Int[Tensor, " elements"], element_of_atom: Int[Tensor, " atoms"]
    ) -> EdgeFeatures:
        neighbors = edges.neighbors
        pair = element_of_atom[neighbors.center] * len(elements) + element_of_atom[neighbors.source]
        return self._features(neighbors, edges.vector, self.basis, (elements, pair))

    def _features(
        self,
        neighbors: NeighborList,
        vector: Float[Tensor, "edges 3"],
        basis: nn.Module,
        rows: tuple[Int[Tensor, " elements"], Int[Tensor, " edges"]],
    ) -> EdgeFeatures:
        """Geometry in float64, rounded once to the arithmetic of the network."""
        dtype = self.projection.last.weight.dtype
        distance = squared_length(vector).sqrt()
        envelope = polynomial_envelope(distance, self.config.max_radius, ENVELOPE_EXPONENT[self.config.variant])
        return EdgeFeatures(
            neighbors=neighbors,
            distance=distance.to(dtype),
            harmonics=self.harmonics((vector / distance[:, None]).to(dtype)),
            basis=basis(distance.to(dtype)),
            envelope=envelope.to(dtype),
            elements=rows[0],
            pair=rows[1],
        )

    def _dense(self, system: System, edges: Edges, dtype: torch.dtype) -> DensePairs:
        radius = encoder_radius(self.config, system)[system.batch[edges.neighbors.center]]
        distance = safe_length(edges.vector)
        envelope = polynomial_envelope(distance / radius, 1.0, ENVELOPE_EXPONENT[self.config.variant])
        return DensePairs(edges.neighbors, distance.to(dtype), envelope.to(dtype))


def _largest_order(order: Order) -> int:
    return {"zero": 0, "first": 1, "second": 2, "all": 2}[order]
