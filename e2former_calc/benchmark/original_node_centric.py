"""The original E2Former with its convolution in node-centric form, as published: the baseline of our edge form.

Source: E2Former, arXiv:2501.19216. T_L(r_i - r_j) is a sum of products T_b(r_j) x T_{L-b}(r_i) of functions of absolute
positions (addition theorem). Tensor products with T_b(r_j) are made once per atom, the sum over neighbours runs over
these, and products with T_g(r_i), g = L - b, follow once per centre; 6j symbols recouple one order into the other.
All else is that of `potentials.e2former_v1`. Periodic images are nodes of their own, as in the official code.

Numbers agree with the edge form up to the rounding of the published constants, and up to cancellation, which grows with
the distance from the origin.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from math import comb, factorial, pi, prod, sqrt
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v1 import E2FormerV1
from e2former_calc.potentials.e2former_v1.attention import Attention, Branch
from e2former_calc.potentials.e2former_v1.convolution import TensorConvolution, convolution_paths
from e2former_calc.potentials.e2former_v1.edges import LENGTH_OFFSET, SOLID_CONSTANTS, EdgeFeatures
from e2former_calc.potentials.e2former_v1.scores import Tables
from e2former_calc.potentials.interface import Edges, Implementation, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.so3 import SphericalHarmonics, triple_coupling
from e2former_calc.potentials.system import Prediction, System


def wigner_6j(upper: tuple[int, int, int], lower: tuple[int, int, int]) -> float:
    """The 6j symbol {upper; lower} of integers, by Racah's formula; zero where a triangle is violated."""
    (a, b, c), (d, e, f) = upper, lower
    triads = ((a, b, c), (a, e, f), (d, b, f), (d, e, c))
    if any(not abs(x - y) <= z <= x + y for x, y, z in triads):
        return 0.0
    squares = (a + b + d + e, b + c + e + f, c + a + f + d)
    scale = prod(
        sqrt(factorial(x + y - z) * factorial(x - y + z) * factorial(y + z - x) / factorial(x + y + z + 1))
        for x, y, z in triads
    )
    total = 0.0
    for t in range(max(map(sum, triads)), min(squares) + 1):
        below = prod(factorial(t - sum(triad)) for triad in triads) * prod(factorial(s - t) for s in squares)
        total += (-1) ** t * factorial(t + 1) / below
    return scale * total


class Recoupling(nn.Module):
    """Tensor products of both ends of an edge for one order.

    Args:
        lmax: largest degree of the features.
        order: L, at least 1.
        n_paths: paths into each degree, as in `TensorConvolution`.

    Attributes:
        at_source: (rows, components of T_0 ... T_L, feature rows): products h_j[a] x T_b(r_j) of degree d, per atom j.
        at_center: (products, components of T_0 ... T_L, rows): what they contribute to the product of each path.
    """

    at_source: Tensor
    at_center: Tensor
    scales: Tensor

    def __init__(self, lmax: int, order: int, n_paths: list[int]) -> None:
        super().__init__()
        self.harmonics = SphericalHarmonics(order)
        triples = [
            (a, b, d)
            for a, b in product(range(lmax + 1), range(order + 1))
            for d in range(abs(a - b), a + b + 1)
            if d <= lmax + order - b
        ]
        starts = [0]
        for _, _, d in triples:
            starts.append(starts[-1] + 2 * d + 1)
        components = (order + 1) ** 2
        source = torch.zeros(starts[-1], components, (lmax + 1) ** 2, dtype=torch.float64)
        for start, (a, b, d) in zip(starts, triples, strict=False):
            coupling = sqrt(2 * d + 1) * triple_coupling(a, b, d)
            source[start : start + 2 * d + 1, b**2 : (b + 1) ** 2, a**2 : (a + 1) ** 2] = coupling.permute(2, 1, 0)
        blocks = []
        for l_in, l_out in convolution_paths(lmax, order):
            block = torch.zeros(2 * l_out + 1, components, starts[-1], dtype=torch.float64)
            for start, (a, b, d) in zip(starts, triples, strict=False):
                g = order - b
                if a != l_in or not abs(d - g) <= l_out <= d + g:
                    continue
                sign = (-1) ** (b + a + b + g + l_out)
                kappa = sign * comb(order, b) * sqrt((2 * d + 1) * (2 * order + 1))
                kappa *= wigner_6j((a, b, d), (g, l_out, order)) * sqrt((2 * l_out + 1) / n_paths[l_out])
                coupling = kappa * triple_coupling(d, g, l_out)
                block[:, g**2 : (g + 1) ** 2, start : start + 2 * d + 1] = coupling.permute(2, 1, 0)
            blocks.append(block)
        self.register_buffer("at_source", source, persistent=False)
        self.register_buffer("at_center", torch.cat(blocks), persistent=False)
        scales = [1.0, *(constant / sqrt(4 * pi) for constant in SOLID_CONSTANTS[1 : order + 1])]
        scales = [scale for b, scale in enumerate(scales) for _ in range(2 * b + 1)]
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64), persistent=False)

    def solid(self, positions: Float[Tensor, "nodes 3"]) -> Float[Tensor, "nodes components"]:
        """T_0 ... T_L of absolute positions."""
        result: Tensor = self.harmonics(positions) * self.scales.to(positions.dtype)
        return result


@dataclass(eq=False)
class Places:
    """Where atoms and images are in the evaluation that is under way; all branches share it.

    Attributes:
        positions: of atoms, in the arithmetic of the network.
        nodes: positions of the atoms and images that are sources of edges.
        atom: atom that each node is an image of.
        node: node at the source of each edge.
    """

    positions: Tensor
    nodes: Tensor
    atom: Tensor
    node: Tensor

    @staticmethod
    def nowhere() -> Places:
        """Before the first evaluation."""
        empty = torch.empty(0)
        return Places(empty, empty, empty, empty)

    def move(
        self, graph: NeighborList, system: System, positions: Float[Tensor, "atoms 3"], dtype: torch.dtype
    ) -> None:
        """Take the edges and positions of a system."""
        named, self.node = torch.unique(
            torch.cat([graph.source[:, None], graph.shift], dim=1), dim=0, return_inverse=True
        )
        self.atom = named[:, 0]
        cell = system.cell[system.batch[self.atom]]
        offset = (named[:, 1:].to(cell.dtype)[:, None] @ cell)[:, 0]
        self.positions = positions.to(dtype)
        self.nodes = (positions[self.atom] + offset).to(dtype)


class NodeCentricBranch(nn.Module):
    """A branch of the attention with the same weights, whose convolution has node-centric form.

    Args:
        branch: of order 1 or more.
        lmax: largest degree of the features.
        places: of the evaluation.
    """

    def __init__(self, branch: Branch, lmax: int, places: Places) -> None:
        super().__init__()
        self.branch, self.places = branch, places
        self.convolution = cast(TensorConvolution, branch.convolution)
        self.recoupling = Recoupling(lmax, branch.order, self.convolution.n_paths)

    def forward(
        self,
        alpha: Float[Tensor, "edges heads"],
        source: Float[Tensor, "sources rows channels"],
        edges: EdgeFeatures,
        tables: Tables,
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Update of every center."""
        del implementation
        branch, places, recoupling = self.branch, self.places, self.recoupling
        weight = branch.message_weights(alpha, edges, tables)
        weight = weight / (edges.distance[:, None] ** branch.order + LENGTH_OFFSET)
        values: Tensor = branch.value(source)
        at_source = torch.einsum("rta,nt->nra", recoupling.at_source.to(values.dtype), recoupling.solid(places.nodes))
        products = at_source @ values[places.atom]
        messages = weight[:, None] * products[places.node]
        collected = messages.new_zeros(len(values), *messages.shape[1:])
        collected = collected.index_add(0, edges.neighbors.center, messages)
        at_center = torch.einsum(
            "otr,nt->nor", recoupling.at_center.to(values.dtype), recoupling.solid(places.positions)
        )
        result: Tensor = branch.output(self.convolution.mix(at_center @ collected))
        return result


class NodeCentricOriginal:
    """Evaluation of a network in node-centric form; a `PreparedForm` of the potential around it.

    Args:
        model: without encoder and clusters, whose edge lists have no absolute positions; copied.

    Raises:
        ValueError: for a network with an encoder or clusters.
    """

    def __init__(self, model: E2FormerV1) -> None:
        if model.encoder is not None or model.clusters is not None:
            raise ValueError("the node-centric form covers networks without encoder and clusters")
        self.places = Places.nowhere()
        self.network = copy.deepcopy(model)
        for module in list(self.network.modules()):
            if isinstance(module, Attention):
                for name, branch in list(module.branches.items()):
                    if cast(Branch, branch).order:
                        module.branches[name] = NodeCentricBranch(cast(Branch, branch), model.config.lmax, self.places)

    def describe(self) -> str:
        """One line about how evaluations are carried out."""
        return "node-centric form with 6j recoupling, as published"

    def __call__(
        self, potential: EnergyPotential, system: System, *, properties: frozenset[Property],
        neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        """Energies and gradient forces of `potential`.

        Raises:
            ValueError: if the stress is asked for, which this form does not have.
        """
        if "stress" in properties:
            raise ValueError("the node-centric form has no stress: ask for energy and forces only")
        found = neighbor_list(system, potential.cutoff) if neighbors is None else neighbors
        (graph,) = potential.graphs(system, found)
        differentiate = "forces" in properties
        with torch.set_grad_enabled(differentiate):
            positions = system.positions.detach().requires_grad_(differentiate)
            vector = graph.vectors(positions, system.cell, system.batch)
            edges = Edges(neighbors=graph, vector=vector, distance=squared_length(vector).sqrt())
            self.places.move(graph, system, positions, potential.dtype)
            energies = self.network(system, (edges,), head=potential.head).energies
        forces = None
        if differentiate:
            forces = -torch.autograd.grad(energies.sum(), positions)[0]
        energies = energies.detach() + potential.reference[system.numbers]
        energy = energies.new_zeros(system.n_structures).index_add(0, system.batch, energies)
        return Prediction(energy, energies, forces, None, force_source="gradient" if differentiate else None)
