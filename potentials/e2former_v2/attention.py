"""Attention of E2Former-V2: scores, weights and the first-order Wigner-6j convolution.

Source: E2Former-V2, arXiv:2601.16622. The convolution is linear in r_ij = r_i - r_j, so it is
evaluated with relative vectors: sum_j alpha_ij/r_ij (V_j x r_ij) is the first moment of the
neighbour features, contracted once per atom with Clebsch-Gordan coefficients. No Wigner
matrices and no absolute positions appear, and the result is translation invariant to the last bit
of the edge vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, silu, softplus

from e2former_calc.potentials.e2former_v2.config import AttentionOrder, E2FormerV2Config
from e2former_calc.potentials.edge_softmax import offset_softmax
from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.edge_dot import edge_dot
from e2former_calc.potentials.kernels.edge_moment import edge_moment
from e2former_calc.potentials.kernels.recompute import evaluate
from e2former_calc.potentials.layers import EPS, InvariantProjection, RadialNetwork, SO3Linear
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.so3 import SphericalHarmonics, coupling_paths, vector_coupling

ELEMENT_ROWS, ELEMENT_WIDTH = 256, 128


@dataclass(frozen=True)
class EdgeFeatures:
    """Geometry of one edge list in the arithmetic of the network; the same in all layers.

    Attributes:
        neighbors: edges in CSR order.
        direction: r_ij / r, the vector that the convolution multiplies with.
        vector: r_ij in Å.
        harmonics: Y_lm(r_ij / r), component normalisation.
        basis: radial basis.
        envelope: smooth cutoff u(r).
        elements: atomic numbers that occur.
        pair: index into pairs of `elements`, center-major.
    """

    neighbors: NeighborList
    direction: Float[Tensor, "edges 3"]
    vector: Float[Tensor, "edges 3"]
    harmonics: Float[Tensor, "edges rows"]
    basis: Float[Tensor, "edges n_basis"]
    envelope: Float[Tensor, " edges"]
    elements: Int[Tensor, " elements"]
    pair: Int[Tensor, " edges"]


class DirectionGate(nn.Module):
    """Score factor of `QKdot_alpha`: projections of the center's features on the edge direction."""

    def __init__(self, config: E2FormerV2Config) -> None:
        super().__init__()
        width = config.num_basis * (config.lmax + 1)
        self.lmax = config.lmax
        self.dot = SO3Linear(config.lmax, config.channels, config.num_basis)
        self.radial = RadialNetwork(config.num_basis, ELEMENT_WIDTH, width)
        self.last = nn.Linear(width, config.num_heads)

    def forward(
        self, h: Float[Tensor, "atoms rows channels"], edges: EdgeFeatures, tables: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "edges heads"]:
        """One factor per edge and head."""
        harmonics = edges.harmonics / sqrt(4 * pi)
        projection = _project(self.dot(h), harmonics, edges.neighbors.center, self.lmax)
        result: Tensor = self.last(projection.flatten(1) * self.radial(edges.basis, *tables, edges.pair))
        return result


class SolidGate(nn.Module):
    """Score factor of `QKdotS_alpha`: projections on solid harmonics of r_ij, which grow as r^l."""

    def __init__(self, config: E2FormerV2Config) -> None:
        super().__init__()
        heads = config.num_heads
        self.lmax, self.heads = config.lmax, heads
        self.dot = SO3Linear(config.lmax, config.channels, heads // (config.lmax + 1) + 1)
        self.first = nn.Linear(heads, heads)
        self.norm = nn.LayerNorm(heads, eps=EPS)
        self.last = nn.Linear(heads, heads)
        self.harmonics = SphericalHarmonics(config.lmax)

    def forward(
        self, h: Float[Tensor, "atoms rows channels"], edges: EdgeFeatures, radial: Float[Tensor, "edges heads"]
    ) -> Float[Tensor, "edges heads"]:
        """One factor per edge and head."""
        solid = self.harmonics(edges.vector)
        projection = _project(self.dot(h), solid, edges.neighbors.center, self.lmax).flatten(1)
        result: Tensor = self.last(silu(self.norm(self.first(projection[:, : self.heads] * radial))))
        return result


def _project(
    features: Float[Tensor, "atoms rows width"],
    harmonics: Float[Tensor, "edges rows"],
    center: Int[Tensor, " edges"],
    lmax: int,
) -> Float[Tensor, "edges degrees width"]:
    """sum_m Y_lm(e) features[center(e), lm] for each degree."""
    degrees = []
    for degree in range(lmax + 1):
        rows = slice(degree**2, (degree + 1) ** 2)
        degrees.append((features[:, rows][center] * harmonics[:, rows, None]).sum(1))
    return torch.stack(degrees, dim=1)


class FirstOrderConvolution(nn.Module):
    """Contraction of first moments with Clebsch-Gordan coefficients, and mixing of paths.

    A[l1 -> l3]_{m3} = sum_{m1 k} C[m1, k, m3] moment[k, l1 m1]; per l3 the paths l1 = l3 - 1, l3, l3 + 1 are
    concatenated along channels, mixed linearly and divided by the square root of their number.
    """

    contraction: Tensor

    def __init__(self, lmax: int, channels: int, n_out: int) -> None:
        super().__init__()
        self.lmax = lmax
        paths = coupling_paths(lmax)
        self.n_paths = [sum(l_out == degree for _, l_out in paths) for degree in range(lmax + 1)]
        self.mixing = nn.ParameterList(torch.randn(n_out, n * channels) / (n * channels) ** 0.5 for n in self.n_paths)
        blocks = []
        for l_in, l_out in paths:
            block = torch.zeros(2 * l_out + 1, 3, (lmax + 1) ** 2, dtype=torch.float64)
            block[:, :, l_in**2 : (l_in + 1) ** 2] = vector_coupling(l_in, l_out).permute(2, 1, 0)
            blocks.append(block / self.n_paths[l_out] ** 0.5)
        self.register_buffer("contraction", torch.cat(blocks).flatten(1), persistent=False)

    def forward(self, moment: Float[Tensor, "atoms 3 rows channels"]) -> Float[Tensor, "atoms rows n_out"]:
        """Shape (atoms, (L+1)^2, n_out)."""
        products = self.contraction.to(moment.dtype) @ moment.flatten(1, 2)
        outputs, start = [], 0
        for degree, weight in enumerate(self.mixing):
            n_paths, n_rows = self.n_paths[degree], 2 * degree + 1
            paths = products[:, start : start + n_paths * n_rows].unflatten(1, (n_paths, n_rows))
            by_row = paths.transpose(1, 2).flatten(2)
            outputs.append(linear(by_row.flatten(0, 1), weight).unflatten(0, by_row.shape[:2]))
            start += n_paths * n_rows
        return torch.cat(outputs, dim=1)


class Attention(nn.Module):
    """One attention layer; `order` "first" convolves with directions, "zero" with weights alone."""

    def __init__(self, config: E2FormerV2Config, order: AttentionOrder) -> None:
        super().__init__()
        lmax, channels, heads = config.lmax, config.channels, config.num_heads
        self.config, self.order = config, order
        self.source_embedding = nn.Embedding(ELEMENT_ROWS, ELEMENT_WIDTH)
        self.target_embedding = nn.Embedding(ELEMENT_ROWS, ELEMENT_WIDTH)
        n_radial = heads if config.score == "QKdot_alpha" else 2 * heads
        self.radial = RadialNetwork(config.num_basis, ELEMENT_WIDTH, n_radial)
        self.query = InvariantProjection(lmax, channels, heads * config.head_width)
        self.key = InvariantProjection(lmax, channels, heads * config.head_width)
        self.value = SO3Linear(lmax, channels, channels)
        if config.score == "QKdot_alpha":
            self.gate: DirectionGate | SolidGate | None = DirectionGate(config)
        else:
            self.gate = SolidGate(config) if config.score == "QKdotS_alpha" else None
        if order == "first":
            n_out = heads * config.conv_multiplicity
            self.convolution: FirstOrderConvolution | None = FirstOrderConvolution(lmax, channels, n_out)
            self.output = SO3Linear(lmax, n_out, channels)
        else:
            self.convolution = None
            self.output = SO3Linear(lmax, channels, channels)

    def forward(
        self, h: Float[Tensor, "atoms rows channels"], edges: EdgeFeatures, implementation: Implementation
    ) -> Float[Tensor, "atoms rows channels"]:
        """Update of the normalised features `h`."""
        heads, width = self.config.num_heads, self.config.head_width
        query = self.query(h).unflatten(1, (heads, width))
        key = self.key(h).unflatten(1, (heads, width))
        stored: Implementation = "reference" if self.training else implementation
        numbers = edges.neighbors.n_edges * heads
        arguments = (h, query, key, edges, implementation)
        weight = evaluate(self.weights, *arguments, numbers=numbers, implementation=stored)
        basis = edges.direction if self.convolution is not None else torch.ones_like(edges.direction[:, :1])
        moment = edge_moment(weight, basis, self.value(h), edges.neighbors, implementation=implementation)
        collected = moment[:, 0] if self.convolution is None else self.convolution(moment)
        result: Tensor = self.output(collected)
        return result

    def weights(
        self,
        h: Float[Tensor, "atoms rows channels"],
        query: Float[Tensor, "atoms heads width"],
        key: Float[Tensor, "atoms heads width"],
        edges: EdgeFeatures,
        implementation: Implementation,
    ) -> Float[Tensor, "edges heads"]:
        """Attention weight alpha of every edge and head."""
        heads = self.config.num_heads
        tables = (self.target_embedding(edges.elements), self.source_embedding(edges.elements))
        radial = self.radial(edges.basis, *tables, edges.pair)
        if isinstance(self.gate, DirectionGate):
            gate, amplitude = self.gate(h, edges, tables), radial
        elif isinstance(self.gate, SolidGate):
            amplitude, solid = radial.split(heads, dim=1)
            gate = self.gate(h, edges, solid)
        else:
            gate, amplitude = radial.split(heads, dim=1)
        score = gate * edge_dot(query, key, edges.neighbors, implementation=implementation)
        score = score / sqrt(self.config.head_width)
        return self._normalize(score, amplitude, edges)

    def _normalize(
        self, score: Float[Tensor, "edges heads"], amplitude: Float[Tensor, "edges heads"], edges: EdgeFeatures
    ) -> Float[Tensor, "edges heads"]:
        envelope = edges.envelope[:, None]
        drop = self.config.alpha_dropout if self.training else 0.0
        if self.config.normalization == "softplus":
            return dropout(softplus(score) * amplitude * envelope, drop, self.training)
        if self.config.normalization == "sigmoid":
            return dropout(torch.sigmoid(score) * amplitude * envelope, drop, self.training)
        weight = offset_softmax(score, envelope, edges.neighbors)
        return dropout(weight, drop, self.training) * amplitude
