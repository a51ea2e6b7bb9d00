"""Attention of the original E2Former: one set of weights, and messages of zero, first or second order, or all three."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, softplus

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config, Order
from e2former_calc.potentials.e2former_v1.convolution import TensorConvolution
from e2former_calc.potentials.e2former_v1.edges import EdgeFeatures
from e2former_calc.potentials.e2former_v1.scores import (
    ELEMENT_ROWS,
    ELEMENT_WIDTH,
    DirectionScore,
    QueryKeyScore,
    Tables,
)
from e2former_calc.potentials.edge_softmax import edge_softmax, offset_softmax
from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.edge_moment import edge_moment
from e2former_calc.potentials.kernels.recompute import evaluate
from e2former_calc.potentials.layers import RadialNetwork, SO3Linear

ORDER_NUMBER: dict[Order, int] = {"zero": 0, "first": 1, "second": 2}


class Branch(nn.Module):
    """Messages of one order: weights per channel, values, convolution, output map.

    Args:
        config: the network.
        order: "zero", "first" or "second".
        channels: channels of the values.
        project: values are a linear map of the features.
        n_source: size of the source's features in edge networks.
    """

    def __init__(self, config: E2FormerV1Config, order: Order, *, channels: int, project: bool, n_source: int) -> None:
        super().__init__()
        lmax, heads = config.lmax, config.num_heads
        self.order, self.repeat = ORDER_NUMBER[order], channels // heads
        self.radial = RadialNetwork(config.num_basis, ELEMENT_WIDTH, channels, n_source=n_source)
        self.value = SO3Linear(lmax, config.channels, channels) if project else nn.Identity()
        n_out = heads * config.conv_multiplicity if self.order else channels
        self.convolution = TensorConvolution(lmax, self.order, channels, n_out) if self.order else None
        self.output = SO3Linear(lmax, n_out, config.channels)

    def forward(
        self,
        alpha: Float[Tensor, "edges heads"],
        source: Float[Tensor, "sources rows channels"],
        edges: EdgeFeatures,
        tables: Tables,
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Update of every center."""
        numbers = alpha.shape[0] * alpha.shape[1] * self.repeat
        stored: Implementation = "reference" if self.training else implementation
        weight = evaluate(self.message_weights, alpha, edges, tables, numbers=numbers, implementation=stored)
        moment = edge_moment(
            weight, edges.solid(self.order), self.value(source), edges.neighbors, implementation=implementation
        )
        collected = moment[:, 0] if self.convolution is None else self.convolution(moment)
        result: Tensor = self.output(collected)
        return result

    def message_weights(
        self, alpha: Float[Tensor, "edges heads"], edges: EdgeFeatures, tables: Tables
    ) -> Float[Tensor, "edges channels"]:
        """Weight of every edge and channel: that of its head times a function of distance and elements."""
        radial: Tensor = self.radial(edges.basis, *tables, edges.pair)
        return alpha.repeat_interleave(self.repeat, dim=1) * radial


class Attention(nn.Module):
    """Attention of atoms to sources, which are atoms or clusters of atoms.

    Args:
        config: the network.
        order: messages.
        last: the last layer has no dropout.
        n_source: size of the features that edge networks see of a source; None embeds its element.
        project_first: first-order values are a linear map of the features.
    """

    def __init__(
        self,
        config: E2FormerV1Config,
        order: Order,
        *,
        last: bool = False,
        n_source: int | None = None,
        project_first: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.normalization = config.num_heads, config.normalization
        self.dropout = 0.0 if last else config.alpha_dropout
        self.target_embedding = nn.Embedding(ELEMENT_ROWS, ELEMENT_WIDTH)
        self.source_embedding = nn.Embedding(ELEMENT_ROWS, ELEMENT_WIDTH) if n_source is None else None
        # The small form of direction scores does not exist for clusters.
        n_projected = config.dot_width if n_source is None else config.num_basis
        n_source = ELEMENT_WIDTH if n_source is None else n_source
        self.score: QueryKeyScore | DirectionScore
        if config.score == "QK_alpha":
            self.score = QueryKeyScore(config, n_source)
        else:
            self.score = DirectionScore(config, n_source, n_projected=n_projected)
        c = config.channels
        channels = {"zero": c, "first": c, "second": c // 2}
        if order == "all":
            channels |= {"first": c // 2, "second": c // 4}
            self.gate_basis = nn.Linear(config.num_basis, 2 * c)
            self.gate_scalars = nn.Linear(c, 2 * c)
        orders: tuple[Order, ...] = ("zero", "first", "second") if order == "all" else (order,)
        self.branches = nn.ModuleDict(
            {
                o: Branch(
                    config,
                    o,
                    channels=channels[o],
                    project=o == "second" or (o == "first" and (order == "all" or project_first)),
                    n_source=n_source,
                )
                for o in orders
            }
        )
        self.reset_embeddings()

    def reset_embeddings(self) -> None:
        """Elements start almost equal."""
        for embedding in (self.target_embedding, self.source_embedding):
            if embedding is not None:
                nn.init.uniform_(embedding.weight, -0.001, 0.001)

    def forward(
        self,
        h: Float[Tensor, "atoms rows channels"],
        edges: EdgeFeatures,
        implementation: Implementation,
        source: Float[Tensor, "sources rows channels"] | None = None,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Update of the features `h` by messages from `source` (by default the atoms themselves)."""
        source = h if source is None else source
        stored: Implementation = "reference" if self.training else implementation
        numbers = edges.neighbors.n_edges * h.shape[2]
        alpha: Tensor = evaluate(self.weights, h, source, edges, implementation, numbers=numbers, implementation=stored)
        tables = self._tables(edges, source)
        updates: dict[str, Tensor] = {
            name: branch(alpha, source, edges, tables, implementation) for name, branch in self.branches.items()
        }
        if len(updates) == 1:
            return next(iter(updates.values()))
        return self._mix(h, edges, updates)

    def weights(
        self,
        h: Float[Tensor, "atoms rows channels"],
        source: Float[Tensor, "sources rows channels"],
        edges: EdgeFeatures,
        implementation: Implementation,
    ) -> Float[Tensor, "edges heads"]:
        """Attention weight of every edge and head."""
        score = self.score(h, source, edges, self._tables(edges, source), implementation)
        envelope = edges.envelope[:, None]
        if self.normalization == "softmax":
            alpha = edge_softmax(score, edges.neighbors)
        elif self.normalization == "smooth_softmax":
            alpha = offset_softmax(score, envelope, edges.neighbors)
        else:
            alpha = softplus(score) * envelope
        return dropout(alpha, self.dropout, self.training)

    def _tables(self, edges: EdgeFeatures, source: Float[Tensor, "sources rows channels"]) -> Tables:
        embedding = self.source_embedding
        by_source = source[:, 0] if embedding is None else embedding(edges.elements)
        return self.target_embedding(edges.elements), by_source

    def _mix(
        self, h: Float[Tensor, "atoms rows channels"], edges: EdgeFeatures, updates: dict[str, Tensor]
    ) -> Float[Tensor, "atoms rows channels"]:
        """Gated sum of the three orders of all-order attention."""
        surrounding = edges.basis.new_zeros(h.shape[0], edges.basis.shape[1])
        surrounding = surrounding.index_add(0, edges.neighbors.center, edges.basis)
        gates = torch.sigmoid(self.gate_basis(surrounding) + self.gate_scalars(h[:, 0]))[:, None]
        local, split = gates.chunk(2, dim=2)
        return local * updates["zero"] + split * updates["first"] + (1.0 - split) * updates["second"]
