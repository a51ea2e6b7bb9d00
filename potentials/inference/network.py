"""E2Former-V2 forward and backward by hand: matrix products of torch, native kernels for everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.potentials.e2former_v2.heads import EnergyHead
from e2former_calc.potentials.e2former_v2.model import Block, E2FormerV2
from e2former_calc.potentials.inference import attention, embedding, geometry, node_kernels, scores
from e2former_calc.potentials.inference.compilation import in_threads
from e2former_calc.potentials.inference.tables import RadialTables
from e2former_calc.potentials.inference.weights import LayerWeights, Projection, WeightReader
from e2former_calc.potentials.inference.workspace import LayerMemory, Rows, Workspace
from e2former_calc.potentials.layers import EPS, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """Atomic energies (eV, float64), descriptors, and if asked for forces (eV/Å) and dE/dstrain (eV), float64."""

    energies: Float[Tensor, " atoms"]
    descriptors: Float[Tensor, "atoms channels"]
    forces: Float[Tensor, "atoms 3"] | None
    strain: Float[Tensor, "structures 3 3"] | None


class Network:
    """A network ready for inference on the host.

    Args:
        model: the network; read, not kept.
        head: output head.
        dtype: arithmetic, float32 or float64.
        n_knots: knots of the radial tables.
    """

    def __init__(self, model: E2FormerV2, head: str, *, dtype: torch.dtype, n_knots: int) -> None:
        reader = WeightReader(model, dtype)
        self.config, self.dtype = model.config, dtype
        self.tables = RadialTables(model, dtype=dtype, n_knots=n_knots)
        self.harmonics, self.rule = reader.harmonics(), reader.rule
        self.layers = [reader.layer(cast(Block, block)) for block in model.blocks]
        self.norm_final = reader.norm(model.norm_final)
        self.head = _EnergyHead(cast(EnergyHead, model.energy_heads[head]), dtype)
        self._workspace: Workspace | None = None

    @property
    def grid(self) -> geometry.Grid:
        """Knots of the tables as they are now."""
        exponent = 3 if self.config.variant == "legacy" else 5
        return geometry.Grid(self.config.max_radius, self.tables.n_knots, len(self.tables.elements), exponent)

    def evaluate(
        self, pairs: geometry.PairList, structure: geometry.Structure, condition: Float[Tensor, "atoms channels"], *,
        forces: bool, threads: int,
    ) -> NetworkResult:  # fmt: skip
        """Energies and, if asked for, forces and dE/dstrain; `condition` is added to l = 0 before each attention."""
        n_atoms = len(structure.positions)
        space = self._space(n_atoms, differentiable=forces)
        edges = space.edge_memory(len(pairs.source))
        grid = self.grid
        count = geometry.select_edges(pairs, structure, grid, edges)
        geometry.describe_edges(structure, grid, edges, count)
        run = _Run(self, space, edges, count, condition.numpy(), threads)
        run.forward()
        energies, d_scalars = self.head(space.scratch.h.tensor[0], differentiate=forces)
        descriptors = space.scratch.h.tensor[0].clone()
        if not forces:
            return NetworkResult(energies, descriptors, None, None)
        d_vector = run.backward(d_scalars)
        result = torch.empty(n_atoms, 3, dtype=torch.float64)
        strain = torch.empty(len(structure.cell), 3, 3, dtype=torch.float64)
        geometry.atom_forces(0, n_atoms, edges, d_vector, result.numpy())
        geometry.strain_gradient(edges, structure, d_vector, strain.numpy())
        return NetworkResult(energies, descriptors, result, strain)

    def _space(self, n_atoms: int, *, differentiable: bool) -> Workspace:
        space = self._workspace
        if space is None or space.n_atoms != n_atoms or (differentiable and not space.differentiable):
            self._workspace = None
            products = [sum((2 * degree + 1) * n for degree, n in enumerate(layer.paths)) for layer in self.layers]
            n_products = max(products) * self.config.channels
            space = Workspace(
                self.config, n_atoms, self.dtype, n_products=n_products, differentiable=differentiable
            )  # fmt: skip
            self._workspace = space
        return space


class _Run:
    """One evaluation: arrays and edges that all layers share."""

    def __init__(
        self, network: Network, space: Workspace, edges: geometry.Edges, count: int, condition: Array, threads: int
    ) -> None:
        self.network, self.space, self.edges, self.count = network, space, edges, count
        self.condition, self.threads = condition, threads
        self.n_atoms = space.n_atoms
        self.degree = network.harmonics.degree
        self.embedding = embedding.embedding_kernels(network.config.lmax, network.config.channels)
        self.ones = np.ones((count, 1), dtype=edges.unit.dtype)

    def forward(self) -> None:
        """Features of all layers; normalised final features in `scratch.h`."""
        network, space = self.network, self.space
        self._call(
            self.embedding.embed, self.edges, network.tables.embedding, network.harmonics, space.layers[0].x.array
        )
        outputs = [memory.x for memory in space.layers[1:]] + [space.x_last]
        for layer, table, memory, output in zip(
            network.layers, network.tables.attention, space.layers, outputs, strict=True
        ):
            self._attention(layer, table, memory)
            self._feed_forward(layer, memory, output)
        scratch = space.scratch
        self._call(
            node_kernels.normalize, space.x_last.array, network.norm_final, scratch.zeros, scratch.h.array,
            space.scale_last,
        )  # fmt: skip

    def backward(self, d_scalars: Float[Tensor, "atoms channels"]) -> Array:
        """dE/dvector of every edge from dE by the final normalised scalars."""
        network, space, scratch = self.network, self.space, self.space.scratch
        self.d_unit = np.zeros((self.count, 3), dtype=self.edges.unit.dtype)
        self.d_distance = np.zeros(self.count, dtype=self.edges.unit.dtype)
        shape = (self.count, network.config.num_heads)
        self.upstream = attention.Upstream(
            scratch.moment, np.empty(shape, self.edges.unit.dtype), np.empty(shape, self.edges.unit.dtype)
        )
        scratch.d_h.tensor.zero_()
        scratch.d_h.tensor[0] = d_scalars
        scratch.d_x.tensor.zero_()
        self._call(
            node_kernels.normalize_backward, space.x_last.array, network.norm_final, space.scale_last,
            scratch.d_h.array, scratch.d_x.array,
        )  # fmt: skip
        for layer, table, memory in zip(
            network.layers[::-1], network.tables.attention[::-1], space.layers[::-1], strict=True
        ):
            self._feed_forward_backward(layer, memory)
            self._attention_backward(layer, table, memory)
        self._call(
            self.embedding.backward, self.edges, network.tables.embedding, network.harmonics, scratch.d_x.array,
            self.d_unit, self.d_distance,
        )  # fmt: skip
        d_vector = np.empty((self.count, 3))
        geometry.edge_gradients(self.edges, self.count, self.d_unit, self.d_distance, d_vector)
        return d_vector

    def _call(self, function: Any, *arguments: Any) -> None:
        in_threads(function, self.n_atoms, self.threads, *arguments)

    def _kernels(self, layer: LayerWeights) -> attention.AttentionKernels:
        config = self.network.config
        rows = (config.lmax + 1) ** 2
        return attention.attention_kernels((config.num_heads, config.head_width, config.channels, rows, layer.n_axes))

    def _axes(self, layer: LayerWeights) -> Array:
        return self.edges.unit if layer.n_axes == 3 else self.ones

    def _convolved(self, layer: LayerWeights) -> list[Tensor]:
        """The rows that the convolution writes, a matrix for each degree."""
        channels, start, parts = self.network.config.channels, 0, []
        for degree, n_paths in enumerate(layer.paths):
            n_rows, width = (2 * degree + 1) * self.n_atoms, n_paths * channels
            parts.append(self.space.scratch.convolved[start : start + n_rows * width].view(n_rows, width))
            start += n_rows * width
        return parts

    def _attention(self, layer: LayerWeights, table: Array, memory: LayerMemory) -> None:
        scratch = self.space.scratch
        self._linear_maps(layer, memory)
        invariants = scratch.invariants
        self._call(node_kernels.invariants, memory.maps.array, self.degree, invariants.numpy(), memory.value)
        for which, projection in enumerate(layer.projections):
            self._project(projection, which, memory)
        scratch.convolved.zero_()
        self._call(
            self._kernels(layer).attend, self.edges, self._axes(layer), table, self.network.rule,
            self._features(memory), layer.contraction, scratch.convolved.numpy(),
        )  # fmt: skip
        _add(memory.x, self._convolved(layer), layer.output, layer.output_bias, memory.x_middle)

    def _linear_maps(self, layer: LayerWeights, memory: LayerMemory) -> None:
        h = self.space.scratch.h
        self._call(node_kernels.normalize, memory.x.array, layer.norm_1, self.condition, h.array, memory.scale_1)
        _apply(h, layer.maps, layer.maps_bias, memory.maps)

    def _features(self, memory: LayerMemory) -> scores.Features:
        config = self.network.config
        shape = (self.n_atoms, config.head_width, config.num_heads)
        query, key = (part.view(shape).numpy() for part in memory.query_key.unbind())
        return scores.Features(query, key, memory.value)

    def _project(self, projection: Projection, which: int, memory: LayerMemory) -> None:
        scratch = self.space.scratch
        hidden, activated = memory.hidden[which], scratch.activated[which]
        torch.addmm(projection.first_bias, scratch.invariants[which], projection.first, out=hidden)
        self._call(node_kernels.activate, hidden.numpy(), projection.gain, projection.bias, EPS, activated.numpy())
        torch.addmm(projection.last_bias, activated, projection.last, out=memory.query_key[which])

    def _feed_forward(self, layer: LayerWeights, memory: LayerMemory, output: Rows) -> None:
        scratch = self.space.scratch
        self._call(
            node_kernels.normalize, memory.x_middle.array, layer.norm_2, scratch.zeros, scratch.h.array,
            memory.scale_2,
        )  # fmt: skip
        _apply(scratch.h, layer.first, layer.first_bias, memory.f)
        torch.addmm(layer.gates_bias, memory.f.degrees[0], layer.gates, out=memory.gates)
        self._call(
            node_kernels.gate, memory.f.array, memory.gates.numpy(), self.degree, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN,
            scratch.d_h.array,
        )  # fmt: skip
        _add(memory.x_middle, scratch.d_h.degrees, layer.last, layer.last_bias, output)

    def _feed_forward_backward(self, layer: LayerWeights, memory: LayerMemory) -> None:
        scratch = self.space.scratch
        d_z, d_f = scratch.d_h, scratch.h
        _apply_transposed(scratch.d_x.degrees, layer.last, d_z.degrees)
        d_gates = torch.empty_like(memory.gates)
        self._call(
            node_kernels.gate_backward, memory.f.array, memory.gates.numpy(), self.degree, GATE_SCALAR_GAIN,
            GATE_VECTOR_GAIN, d_z.array, d_f.array, d_gates.numpy(),
        )  # fmt: skip
        torch.mm(d_gates, layer.gates.T, out=d_f.degrees[0])
        _apply_transposed(d_f.degrees, layer.first, scratch.d_h.degrees)
        self._call(
            node_kernels.normalize_backward, memory.x_middle.array, layer.norm_2, memory.scale_2, scratch.d_h.array,
            scratch.d_x.array,
        )  # fmt: skip

    def _attention_backward(self, layer: LayerWeights, table: Array, memory: LayerMemory) -> None:
        scratch, edges = self.space.scratch, self.edges
        _apply_transposed(scratch.d_x.degrees, layer.output, self._convolved(layer))
        features, axes = self._features(memory), self._axes(layer)
        shape = (self.n_atoms, layer.n_axes, *memory.value.shape[1:])
        upstream = self.upstream._replace(moment=scratch.moment[: math.prod(shape)].reshape(shape))
        kernels = self._kernels(layer)
        d_query, d_key = (part.view(features.query.shape).numpy() for part in scratch.d_query_key.unbind())
        d_axes = self.d_unit if layer.n_axes == 3 else np.zeros_like(self.ones)
        self._call(
            kernels.by_centers, edges, axes, table, self.network.rule, features, layer.contraction,
            scratch.convolved.numpy(), upstream, attention.Gradients(d_query, d_axes, self.d_distance),
        )  # fmt: skip
        self._call(
            kernels.by_sources, edges, axes, features, upstream, d_key, scratch.d_value
        )  # fmt: skip
        for which, projection in enumerate(layer.projections):
            self._project_backward(projection, which, memory)
        if not self.space.keeps_maps:
            self._linear_maps(layer, memory)
        self._call(
            node_kernels.invariants_backward, memory.maps.array, self.degree, scratch.invariants.numpy(),
            scratch.d_value,
        )  # fmt: skip
        _apply_transposed(memory.maps.degrees, layer.maps, scratch.d_h.degrees)
        self._call(
            node_kernels.normalize_backward, memory.x.array, layer.norm_1, memory.scale_1, scratch.d_h.array,
            scratch.d_x.array,
        )  # fmt: skip

    def _project_backward(self, projection: Projection, which: int, memory: LayerMemory) -> None:
        scratch = self.space.scratch
        d_activated = scratch.activated[which]
        torch.mm(scratch.d_query_key[which], projection.last.T, out=d_activated)
        d_hidden = torch.empty_like(d_activated)
        self._call(
            node_kernels.activate_backward, memory.hidden[which].numpy(), projection.gain, projection.bias, EPS,
            d_activated.numpy(), d_hidden.numpy(),
        )  # fmt: skip
        torch.mm(d_hidden, projection.first.T, out=scratch.invariants[which])


class _EnergyHead:
    """Three linear layers with silu between them, and their derivative."""

    def __init__(self, head: EnergyHead, dtype: torch.dtype) -> None:
        layers = (head.first, head.second, head.last)
        self.weights = [layer.weight.detach().T.to(dtype).contiguous() for layer in layers]
        self.biases = [layer.bias.detach().to(dtype) for layer in layers]

    def __call__(
        self, scalars: Float[Tensor, "atoms channels"], *, differentiate: bool
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms channels"]]:
        """Energies in float64, and their derivative by the scalars (zeros if not asked for)."""
        flows, hidden = [], scalars
        for weight, bias in zip(self.weights[:2], self.biases[:2], strict=True):
            before = torch.addmm(bias, hidden, weight)
            hidden, slope = torch.empty_like(before), torch.empty_like(before)
            node_kernels.silu(0, len(before), before.numpy(), hidden.numpy(), slope.numpy())
            flows.append(slope)
        energies = torch.addmm(self.biases[2], hidden, self.weights[2])[:, 0].to(torch.float64)
        if not differentiate:
            return energies, torch.zeros_like(scalars)
        flow = flows[1].mul_(self.weights[2].T) @ self.weights[1].T
        return energies, flow.mul_(flows[0]) @ self.weights[0].T


def _apply(x: Rows, weights: list[Tensor], bias: Tensor, y: Rows) -> None:
    """Y = x W for each degree; the bias goes to l = 0."""
    torch.addmm(bias, x.degrees[0], weights[0], out=y.degrees[0])
    for own, weight, result in zip(x.degrees[1:], weights[1:], y.degrees[1:], strict=True):
        torch.mm(own, weight, out=result)


def _add(x: Rows, terms: list[Tensor], weights: list[Tensor], bias: Tensor, y: Rows) -> None:
    """Y = x + term W for each degree; the bias goes to l = 0."""
    for own, term, weight, result in zip(x.degrees, terms, weights, y.degrees, strict=True):
        torch.addmm(own, term, weight, out=result)
    y.degrees[0].add_(bias)


def _apply_transposed(terms: list[Tensor], weights: list[Tensor], results: list[Tensor]) -> None:
    for term, weight, result in zip(terms, weights, results, strict=True):
        torch.mm(term, weight.T, out=result)
