"""The named baseline: E2Former-V2 evaluated by the official algorithm, with the weights of one of our networks.

Source: E2Former-V2, arXiv:2601.16622, and the code published with it, in its eager form. What distinguishes it from
`potentials.e2former_v2`, whose mathematics it shares:

* The convolution is node-centric. A_i = G(r_i)[sum_e alpha/r V_j] - sum_e alpha/r G(r_j)[V_j] with absolute positions,
  where G(r)[h] = D(r)^T S D(r) h |r| turns r onto the y axis by Wigner matrices, applies the one coupling that is left
  of each row there, and turns back. Every edge gathers product rows and feature rows, 20 + 9 at L = 2, of its source.
* Periodic images are nodes of their own: keys, values and products exist for each of them. (The official code
  computes some of these again for every image; here values and keys are copied, which is cheaper.)
* Radial networks are evaluated for every edge, on the concatenated basis and element features.
* Linear maps of all rows are one product with the weight copied to each row.
* Forces come from autograd. There is no stress, as in the official code.

Positions are used as they are given. Within 4e-3 rad of the y axis, and at the origin, Euler angles have no derivative
and are treated as constants, as in the official code: forces on such atoms are wrong there, energies are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, silu, softplus

from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.e2former_v2.attention import Attention, FirstOrderConvolution
from e2former_calc.potentials.e2former_v2.model import Block, InputEmbedding, resolve_head
from e2former_calc.potentials.edge_softmax import offset_softmax
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.layers import (
    GATE_SCALAR_GAIN,
    GATE_VECTOR_GAIN,
    GatedFeedForward,
    InvariantProjection,
    RadialNetwork,
    SO3Linear,
    degree_of_row,
)
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.so3 import SphericalHarmonics, coupling_paths, vector_coupling
from e2former_calc.potentials.system import Prediction, System

ON_AXIS = 1e-5
"""Nodes with 1 - |y|/r below this, or r below this (Å), have constant Euler angles."""
_SHIFT_BASE = 4096


def obstacles(potential: EnergyPotential) -> list[str]:
    """Why the baseline cannot evaluate a potential; empty if it can."""
    model: object = potential.model
    if not isinstance(model, E2FormerV2):
        return [f"the architecture is {type(model).__name__}"]
    config = model.config
    found = [
        (potential.force_mode == "head", "forces come from a head of the network"),
        (config.score != "QK_alpha", f"the attention score is {config.score}"),
        (config.long_range != "none", f"there is a long-range part, {config.long_range!r}"),
        (config.variant != "main", f"the variant is {config.variant!r}"),
        (not config.norm, "the network has no norms"),
    ]
    return [reason for applies, reason in found if applies]


def evaluate_node_centric(potential: EnergyPotential) -> EnergyPotential:
    """Make a potential carry out its evaluations by the official algorithm; changed in place, and returned.

    Raises:
        ValueError: if the baseline does not cover the network, with the reasons.
    """
    reasons = obstacles(potential)
    if reasons:
        raise ValueError(f"the node-centric baseline covers E2Former-V2 with QK_alpha only: {'; '.join(reasons)}")
    potential.prepared = NodeCentric(cast(E2FormerV2, potential.model))
    return potential


@dataclass(frozen=True, eq=False)
class ExpandedNodes:
    """Atoms, followed by the periodic images that are within the cutoff of one.

    Attributes:
        atom: what a node is an image of.
        shift: of the image, in cells.
        source: node at the other end of each edge.
    """

    atom: Int[Tensor, " nodes"]
    shift: Int[Tensor, "nodes 3"]
    source: Int[Tensor, " edges"]

    @staticmethod
    def of(graph: NeighborList, within: NeighborList, n_atoms: int) -> ExpandedNodes:
        """Nodes for all pairs `within` the cutoff, of which `graph` keeps some."""
        images = _keys(within)[within.shift.any(1)].unique()
        shifted = graph.shift.any(1)
        found = n_atoms + torch.searchsorted(images, _keys(graph))
        source = torch.where(shifted, found, graph.source)
        packed = images % _SHIFT_BASE**3
        digits = [packed // _SHIFT_BASE**2, packed // _SHIFT_BASE % _SHIFT_BASE, packed % _SHIFT_BASE]
        atoms = torch.arange(n_atoms, device=images.device)
        shift = torch.cat([atoms.new_zeros(n_atoms, 3), torch.stack(digits, dim=1) - _SHIFT_BASE // 2])
        return ExpandedNodes(torch.cat([atoms, images // _SHIFT_BASE**3]), shift, source)

    def copied(self, values: Tensor) -> Tensor:
        """Values of atoms, copied to their images."""
        return values if len(self.atom) == len(values) else values[self.atom]


def _keys(neighbors: NeighborList) -> Int[Tensor, " edges"]:
    """One integer for each source and shift."""
    x, y, z = (neighbors.shift + _SHIFT_BASE // 2).unbind(1)
    return ((neighbors.source * _SHIFT_BASE + x) * _SHIFT_BASE + y) * _SHIFT_BASE + z


class AxisProduct:
    """G(r)[h]: the product of features with the position of their node, along the y axis.

    Args:
        lmax: largest degree.
        device: where it works.

    Attributes:
        rows: row of the rotated features that each product row takes (`selected_idx` of the official code).
        coupling: its Clebsch-Gordan coefficient (`CG_weight`).
    """

    def __init__(self, lmax: int, device: torch.device) -> None:
        self.lmax = lmax
        self.paths = coupling_paths(lmax)
        self._swap = [_swap_matrix(degree).to(device) for degree in range(lmax + 1)]
        rows, coefficients = [], []
        for l_in, l_out in self.paths:
            along_y = vector_coupling(l_in, l_out)[:, 1]
            chosen = along_y.abs().argmax(dim=0)
            rows.append(l_in**2 + chosen)
            coefficients.append(along_y.gather(0, chosen[None])[0])
        self.rows = torch.cat(rows).to(device)
        self.coupling = torch.cat(coefficients).to(device)

    def frames(self, positions: Float[Tensor, "nodes 3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices (nodes, rows, rows) that turn features and product rows onto y, and |r|, in the given dtype.

        Angles and matrices are float64.
        """
        exact = positions.to(torch.float64)
        length = exact.norm(dim=1)
        cosine = exact[:, 1] / length.clamp_min(ON_AXIS)
        singular = (1.0 - cosine.abs() < ON_AXIS) | (length < ON_AXIS)
        regular = torch.where(singular[:, None], exact.new_tensor([1.0, 1.0, 1.0]), exact)
        beta = torch.acos(regular[:, 1] / regular.norm(dim=1))
        alpha = torch.atan2(regular[:, 0], regular[:, 2])
        with torch.no_grad():
            fixed_beta = torch.acos(cosine.clamp(-1.0, 1.0))
            fixed_alpha = torch.atan2(exact[:, 0], exact[:, 2])
        beta, alpha = torch.where(singular, fixed_beta, beta), torch.where(singular, fixed_alpha, alpha)
        wigner = [self._wigner(degree, alpha, beta) for degree in range(self.lmax + 1)]
        features = _block_diagonal(wigner).to(positions.dtype)
        products = _block_diagonal([wigner[l_out] for _, l_out in self.paths]).to(positions.dtype)
        return features, products, length.to(positions.dtype)

    def _wigner(self, degree: int, alpha: Tensor, beta: Tensor) -> Float[Tensor, "nodes m m"]:
        """D_l with D_l Y_l(r) along y: J Z(-beta) J Z(-alpha)."""
        swap = self._swap[degree]
        return swap @ _about_y(degree, -beta) @ swap @ _about_y(degree, -alpha)

    def __call__(
        self, features: Float[Tensor, "nodes rows channels"], frames: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "nodes products channels"]:
        """Product h x r of every node; rows are (l_out, l_in, m_out)."""
        turn, turn_products, length = frames
        turned = turn @ features
        scale = length[:, None, None] * self.coupling.to(features.dtype)[:, None]
        return turn_products.mT @ (turned[:, self.rows] * scale)


def _swap_matrix(degree: int) -> Float[Tensor, "m m"]:
    """J_l with Y_l(-y, -x, z) = J_l Y_l(x, y, z)."""
    steps = torch.arange(4 * degree + 6, dtype=torch.float64)
    points = torch.stack([torch.sin(steps), torch.cos(1.3 * steps + 0.2), torch.sin(0.7 * steps + 0.5)], dim=1)
    harmonics = SphericalHarmonics(degree)
    rows = slice(degree**2, (degree + 1) ** 2)
    mirrored = torch.stack([-points[:, 1], -points[:, 0], points[:, 2]], dim=1)
    solution: Tensor = torch.linalg.lstsq(harmonics(points)[:, rows], harmonics(mirrored)[:, rows]).solution
    return solution.T


def _about_y(degree: int, angle: Float[Tensor, " nodes"]) -> Float[Tensor, "nodes m m"]:
    """Z(t): rotation about y, with cosines on the diagonal and sines on the other one."""
    order = torch.arange(degree, -degree - 1, -1, dtype=angle.dtype, device=angle.device)
    turns = order * angle[:, None]
    # The centre of both diagonals is cos 0; its sine is zero.
    return torch.diag_embed(torch.cos(turns)) + torch.diag_embed(torch.sin(turns)).flip(2)


def _block_diagonal(blocks: list[Tensor]) -> Float[Tensor, "nodes rows rows"]:
    size = sum(block.shape[1] for block in blocks)
    result = blocks[0].new_zeros(len(blocks[0]), size, size)
    start = 0
    for block in blocks:
        end = start + block.shape[1]
        result[:, start:end, start:end] = block
        start = end
    return result


@dataclass(frozen=True, eq=False)
class _Geometry:
    """What all layers share; tensors carry the gradient to positions."""

    graph: NeighborList
    nodes: ExpandedNodes
    distance: Float[Tensor, " edges"]
    harmonics: Float[Tensor, "edges rows"]
    basis: Float[Tensor, "edges n_basis"]
    envelope: Float[Tensor, " edges"]
    numbers: Int[Tensor, " atoms"]
    frames: tuple[Tensor, Tensor, Tensor]

    def radial(
        self, network: RadialNetwork, target: torch.nn.Module, source: torch.nn.Module
    ) -> Float[Tensor, "edges n_out"]:
        """A radial network, evaluated for every edge."""
        center, other = self.numbers[self.graph.center], self.numbers[self.graph.source]
        inputs = torch.cat([self.basis, target(center), source(other)], dim=1)
        hidden = silu(network.first_norm(network.first(inputs)))
        result: Tensor = network.last(silu(network.second_norm(network.second(hidden))))
        return result


class NodeCentric:
    """Evaluation of a network by the official algorithm; a `PreparedForm` of the potential around it.

    Args:
        model: whose weights are read in every call.
    """

    def __init__(self, model: E2FormerV2) -> None:
        device = model.condition.weight.device
        self.product = AxisProduct(model.config.lmax, device)
        self.degree = degree_of_row(model.config.lmax).to(device)

    def describe(self) -> str:
        """One line about how evaluations are carried out."""
        return "node-centric baseline (official algorithm)"

    def __call__(
        self, potential: EnergyPotential, system: System, *, properties: frozenset[Property],
        neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        """Energies and forces of `potential`.

        Raises:
            ValueError: if the stress is asked for, which the official code does not have.
        """
        if "stress" in properties:
            raise ValueError("the node-centric baseline has no stress: ask for energy and forces only")
        system = system.to(potential.device)
        within = neighbor_list(system, potential.cutoff) if neighbors is None else neighbors
        graph = potential.graphs(system, within)[0]
        differentiate = "forces" in properties
        with torch.set_grad_enabled(differentiate):
            positions = system.positions.detach().to(potential.dtype).requires_grad_(differentiate)
            model = cast(E2FormerV2, potential.model)
            energies = self._energies(model, potential.head, system, positions, (graph, within)).to(torch.float64)
            total = energies.sum()
        forces = None
        if differentiate:
            forces = torch.zeros_like(system.positions)
            if total.grad_fn is not None:
                forces = -torch.autograd.grad(total, positions)[0].to(torch.float64)
        energies = energies.detach() + potential.reference[system.numbers]
        energy = energies.new_zeros(system.n_structures).index_add(0, system.batch, energies)
        return Prediction(energy, energies, forces, None, force_source="gradient" if differentiate else None)

    def _energies(
        self, model: E2FormerV2, head: str, system: System, positions: Float[Tensor, "atoms 3"],
        lists: tuple[NeighborList, NeighborList],
    ) -> Float[Tensor, " atoms"]:  # fmt: skip
        geometry = self._geometry(model, system, positions, lists)
        condition = model.condition_vector(system.charge, system.spin)[system.batch]
        x = _embedding(model.embedding, geometry, system.n_atoms)
        for module in model.blocks:
            block = cast(Block, module)
            h = block.norm_1(x)
            h = torch.cat([h[:, :1] + condition[:, None], h[:, 1:]], dim=1)
            x = x + self._attention(block.attention, h, geometry)
            x = x + self._feed_forward(block.feed_forward, block.norm_2(x))
        name = resolve_head(head, share_heads=model.config.share_heads)
        energies: Tensor = model.energy_heads[name](model.norm_final(x))
        return energies

    def _geometry(
        self, model: E2FormerV2, system: System, positions: Float[Tensor, "atoms 3"],
        lists: tuple[NeighborList, NeighborList],
    ) -> _Geometry:  # fmt: skip
        graph, within = lists
        nodes = ExpandedNodes.of(graph, within, system.n_atoms)
        cell = system.cell.detach().to(positions.dtype)[system.batch[nodes.atom]]
        offset = (nodes.shift.to(positions.dtype)[:, None] @ cell)[:, 0]
        expanded = positions[nodes.atom] + offset
        vector = positions[graph.center] - expanded[nodes.source]
        distance = vector.norm(dim=1)
        return _Geometry(
            graph=graph, nodes=nodes, distance=distance, harmonics=model.harmonics(vector / distance[:, None]),
            basis=model.basis(distance), envelope=model.envelope(distance), numbers=system.numbers,
            frames=self.product.frames(expanded),
        )  # fmt: skip

    def _attention(
        self, attention: Attention, h: Float[Tensor, "atoms rows channels"], geometry: _Geometry
    ) -> Float[Tensor, "atoms rows channels"]:
        weight = self._weights(attention, h, geometry)
        value = geometry.nodes.copied(self._linear(attention.value, h))
        if attention.convolution is None:
            collected = _collect(weight, value, geometry, len(h))
        else:
            weight = weight / geometry.distance[:, None]
            n_products = len(self.product.rows)
            rows = torch.cat([self.product(value, geometry.frames), value], dim=1)
            of_sources, features = _collect(weight, rows, geometry, len(h)).tensor_split([n_products], dim=1)
            turn, turn_products, length = (part[: len(h)] for part in geometry.frames)
            products = self.product(features, (turn, turn_products, length)) - of_sources
            collected = self._mixed(attention.convolution, products)
        return self._linear(attention.output, collected)

    def _weights(
        self, attention: Attention, h: Float[Tensor, "atoms rows channels"], geometry: _Geometry
    ) -> Float[Tensor, "edges heads"]:
        config, graph = attention.config, geometry.graph
        query = self._projection(attention.query, h).unflatten(1, (config.num_heads, config.head_width))
        key = self._projection(attention.key, h).unflatten(1, (config.num_heads, config.head_width))
        key = geometry.nodes.copied(key)
        radial = geometry.radial(attention.radial, attention.target_embedding, attention.source_embedding)
        parts: tuple[Tensor, ...] = radial.split(config.num_heads, dim=1)
        gate, amplitude = parts
        score = gate * (query[graph.center] * key[geometry.nodes.source]).sum(2) / sqrt(config.head_width)
        envelope = geometry.envelope[:, None]
        if config.normalization == "softplus":
            return softplus(score) * amplitude * envelope
        if config.normalization == "sigmoid":
            return torch.sigmoid(score) * amplitude * envelope
        return offset_softmax(score, envelope, graph) * amplitude

    def _mixed(
        self, convolution: FirstOrderConvolution, products: Float[Tensor, "atoms products channels"]
    ) -> Float[Tensor, "atoms rows n_out"]:
        """Paths of each degree, concatenated along channels and mixed."""
        outputs, start = [], 0
        for degree, weight in enumerate(convolution.mixing):
            n_paths, n_rows = convolution.n_paths[degree], 2 * degree + 1
            end = start + n_paths * n_rows
            paths = products[:, start:end].unflatten(1, (n_paths, n_rows)).transpose(1, 2)
            outputs.append(linear(paths.flatten(2), weight) / n_paths**0.5)
            start = end
        return torch.cat(outputs, dim=1)

    def _feed_forward(
        self, module: GatedFeedForward, x: Float[Tensor, "atoms rows channels"]
    ) -> Float[Tensor, "atoms rows channels"]:
        y = self._linear(module.first, x)
        gates = module.gate(y[:, 0]).unflatten(1, (-1, y.shape[2]))
        higher = GATE_VECTOR_GAIN * torch.sigmoid(gates)[:, self.degree[1:]] * y[:, 1:]
        return self._linear(module.last, torch.cat([GATE_SCALAR_GAIN * silu(gates[:, :1]), higher], dim=1))

    def _projection(
        self, module: InvariantProjection, h: Float[Tensor, "atoms rows channels"]
    ) -> Float[Tensor, "atoms n_out"]:
        product = self._rows(h, module.weight, module.bias) * self._rows(h, module.weight2, None)
        bounds = [degree**2 for degree in range(len(module.weight) + 1)]
        invariants = torch.cat([product[:, a:b].sum(1) for a, b in pairwise(bounds)], dim=1)
        result: Tensor = module.last(silu(module.norm(module.first(invariants))))
        return result

    def _linear(self, module: SO3Linear, x: Float[Tensor, "atoms rows n_in"]) -> Float[Tensor, "atoms rows n_out"]:
        return self._rows(x, module.weight, module.bias)

    def _rows(
        self, x: Float[Tensor, "atoms rows n_in"], weight: Float[Tensor, "degrees n_out n_in"], bias: Tensor | None
    ) -> Float[Tensor, "atoms rows n_out"]:
        y = torch.einsum("nmi,moi->nmo", x, weight[self.degree])
        return y if bias is None else torch.cat([y[:, :1] + bias, y[:, 1:]], dim=1)


def _embedding(module: InputEmbedding, geometry: _Geometry, n_atoms: int) -> Float[Tensor, "atoms rows channels"]:
    degrees = []
    for degree, network in enumerate(module.radial):
        radial = geometry.radial(cast(RadialNetwork, network), module.target_embedding, module.source_embedding)
        radial = radial * (geometry.envelope[:, None] / module.avg_degree)
        outer = geometry.harmonics[:, degree**2 : (degree + 1) ** 2, None] * radial[:, None]
        degrees.append(outer.new_zeros(n_atoms, *outer.shape[1:]).index_add(0, geometry.graph.center, outer))
    return torch.cat(degrees, dim=1)


def _collect(
    weight: Float[Tensor, "edges heads"], rows: Float[Tensor, "nodes rows channels"], geometry: _Geometry, n_atoms: int
) -> Float[Tensor, "atoms rows channels"]:
    """sum_e weight_e rows_source(e), one row after the other in memory; channel c belongs to head c mod H."""
    by_head = rows.unflatten(2, (-1, weight.shape[1]))
    gathered: Tensor = (by_head[geometry.nodes.source] * weight[:, None, None]).flatten(2)
    empty = gathered.new_zeros(n_atoms, *gathered.shape[1:])
    return empty.index_add(0, geometry.graph.center, gathered)
