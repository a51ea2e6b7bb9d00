"""E2Former-V2 forward and backward by hand, in native kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.potentials.e2former_v2.heads import EnergyHead
from e2former_calc.potentials.e2former_v2.model import Block, E2FormerV2
from e2former_calc.potentials.inference import attention, embedding, gates, geometry, passes, scores
from e2former_calc.potentials.inference.compilation import in_shares
from e2former_calc.potentials.inference.module_heads import ModuleHeads
from e2former_calc.potentials.inference.packed import (
    PackedGate,
    PackedHead,
    PackedLayer,
    packed_gate,
    packed_head,
    packed_layer,
)
from e2former_calc.potentials.inference.tables import RadialTables, gate_layout
from e2former_calc.potentials.inference.weights import WeightReader
from e2former_calc.potentials.inference.workspace import LayerMemory, Workspace

Array = NDArray[Any]

MIN_WORK_PER_THREAD = 64 * 64**2
"""Atoms times channels squared; smaller shares cost more to hand out than they save."""

Task = Callable[[int, int, int], None]
"""Work on the atoms first ... last - 1, with the scratch memory of a thread: (share, first, last)."""


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
        direct_forces: whether forces come from a head.
    """

    def __init__(
        self, model: E2FormerV2, head: str, *, dtype: torch.dtype, n_knots: int, direct_forces: bool = False
    ) -> None:
        reader = WeightReader(model, dtype)
        self.config, self.dtype = model.config, dtype
        self.tables = RadialTables(model, dtype=dtype, n_knots=n_knots)
        self.harmonics, self.rule = reader.harmonics(), reader.rule
        self.axes: list[int] = []
        self.layers: list[PackedLayer] = []
        self.gates: list[PackedGate] = []
        for block in model.blocks:
            weights, gate = reader.layer(cast(Block, block)), reader.gate(cast(Block, block).attention)
            self.gates += [] if gate is None else [packed_gate(gate)]
            self.axes.append(weights.n_axes)
            self.layers.append(packed_layer(weights, self.config.channels))
        self.norm_final = reader.norm(model.norm_final)
        self.head: PackedHead | None = None
        self.module_heads: ModuleHeads | None = None
        own = model.energy_heads[head]
        if isinstance(own, EnergyHead) and not direct_forces:
            self.head = packed_head(own, reader)
        else:
            self.module_heads = ModuleHeads(model, head, direct=direct_forces)
        self._workspace: Workspace | None = None

    @property
    def grid(self) -> geometry.Grid:
        """Knots of the tables as they are now."""
        exponent = 3 if self.config.variant == "legacy" else 5
        return geometry.Grid(self.config.max_radius, self.tables.n_knots, len(self.tables.elements), exponent)

    def evaluate(
        self, pairs: geometry.PairList, structure: geometry.Structure, condition: Float[Tensor, "atoms channels"], *,
        max_neighbors: int, forces: bool, threads: int,
    ) -> NetworkResult:  # fmt: skip
        """Energies and, if asked for, forces and dE/dstrain; `condition` is added to l = 0 before each attention."""
        n_atoms = len(structure.positions)
        threads = max(1, min(threads, n_atoms * self.config.channels**2 // MIN_WORK_PER_THREAD))
        space = self._space(n_atoms, differentiable=forces, threads=threads)
        edges = space.edge_memory(len(pairs.source))
        grid = self.grid
        count = geometry.select_edges(pairs, structure, grid, edges, max_neighbors)
        geometry.describe_edges(structure, grid, edges, count)
        run = _Run(self, space, edges, count, condition.numpy(), threads)
        result = run.features(self.module_heads, forces) if self.module_heads is not None else run.energies(forces)
        if not forces:
            return result
        d_vector = run.backward()
        forces_of_atoms = torch.empty(n_atoms, 3, dtype=torch.float64)
        strain = torch.empty(len(structure.cell), 3, 3, dtype=torch.float64)
        geometry.atom_forces(0, n_atoms, edges, d_vector, forces_of_atoms.numpy())
        geometry.strain_gradient(edges, structure, d_vector, strain.numpy())
        return replace(result, forces=forces_of_atoms, strain=strain)

    def _space(self, n_atoms: int, *, differentiable: bool, threads: int) -> Workspace:
        space = self._workspace
        fits = space is not None and space.n_atoms == n_atoms and space.threads >= threads
        if space is None or not fits or (differentiable and not space.differentiable):
            self._workspace = None
            n_products = max(layer.coupling.width for layer in self.layers)
            space = Workspace(
                self.config, n_atoms, self.dtype, n_products=n_products, differentiable=differentiable, threads=threads
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
        config = network.config
        self.embedding = embedding.embedding_kernels(config.lmax, config.channels)
        rows = (config.lmax + 1) ** 2
        self.kernels = [
            attention.attention_kernels((config.num_heads, config.head_width, config.channels, rows, n_axes))
            for n_axes in network.axes
        ]
        self.shape = (space.n_atoms, rows, config.channels)
        self.ones = np.ones((count, 1), dtype=edges.unit.dtype)
        self.gates = _Gates(self) if network.gates else None

    def forward(self, end: list[Task]) -> None:
        """Features of all layers, and `end` behind the last one; threads meet before each attention."""
        network, tables = self.network, self.network.tables
        x = self.space.layers[0].x.reshape(self.shape)
        embed = _over_edges(self.embedding.embed, self.edges, tables.embedding, network.harmonics, x)
        harmonics = [] if self.gates is None else [self.gates.evaluate()]
        self._meet([embed, *harmonics, *self._project(0)])
        for k in range(len(network.layers)):
            following = self._project(k + 1) if k + 1 < len(network.layers) else end
            self._meet([*self._convolve(k), *following])

    def _project(self, k: int) -> list[Task]:
        """Queries, keys, values, and gates that do not come from a table."""
        space, layer = self.space, self.network.layers[k]
        project = _over_atoms(passes.project, layer, space.layers[k], space.scratch, self.condition)
        return [project] if self.gates is None else [project, self.gates.forward(k)]

    def _convolve(self, k: int) -> list[Task]:
        """Attention of a layer and its feed-forward network."""
        network, space, layer = self.network, self.space, self.network.layers[k]
        output = space.layers[k + 1].x if k + 1 < len(space.layers) else space.x_last
        convolved = self._convolved(k)
        attend = _over_edges(
            self.kernels[k].attend, self.edges, self._along(k), network.tables.attention[k], self._gates(k),
            network.rule, self._features(space.layers[k]), layer.coupling, convolved,
        )  # fmt: skip
        feed = _over_atoms(passes.feed_forward, layer, space.layers[k], space.scratch, convolved, output)
        return [attend, feed]

    def energies(self, differentiate: bool) -> NetworkResult:
        """Through all layers and the head, and if asked for back to the rows of the last convolution."""
        network, space = self.network, self.space
        energies = torch.empty(space.n_atoms, dtype=torch.float64)
        descriptors = torch.empty(space.n_atoms, network.config.channels, dtype=space.dtype)
        read_out = _over_atoms(
            passes.read_out, network.head, network.norm_final, space.x_last, space.scale_last, space.scratch,
            energies.numpy(), descriptors.numpy(), space.passing.d_x,
        )  # fmt: skip
        back = [self.feed_forward_backward(len(network.layers) - 1)] if differentiate else []
        self.forward([read_out, *back])
        return NetworkResult(energies, descriptors, None, None)

    def features(self, heads: ModuleHeads, differentiate: bool) -> NetworkResult:
        """The same with heads that are modules of torch."""
        network, space = self.network, self.space
        features = torch.empty(self.shape, dtype=space.dtype)
        arguments = network.norm_final, space.x_last, space.scale_last
        flat = features.flatten(1).numpy()
        self.forward([_over_atoms(passes.final_features, *arguments, flat)])
        result = heads(features, differentiate=differentiate)
        if result.d_features is not None:
            flow = result.d_features.contiguous().flatten(1).numpy()
            back = _over_atoms(passes.final_features_backward, *arguments, flow, space.passing.d_x)
            self._meet([back, self.feed_forward_backward(len(network.layers) - 1)])
        return NetworkResult(result.energies, features[:, 0].clone(), result.forces, None)

    def feed_forward_backward(self, k: int) -> Task:
        """From the derivative by the features behind a layer to that by the rows of its convolution."""
        space = self.space
        own = space.passing._replace(convolved=self._convolved(k))
        return _over_atoms(passes.feed_forward_backward, self.network.layers[k], space.layers[k], space.scratch, own)

    def backward(self) -> Array:
        """dE/dvector of every edge, once the feed-forward network of the last layer is through."""
        network, space, passing = self.network, self.space, self.space.passing
        real = self.edges.unit.dtype
        self.d_unit, self.d_distance = np.zeros((self.count, 3), real), np.zeros(self.count, real)
        self.by_head = torch.empty(2, self.count, network.config.num_heads, dtype=space.dtype).numpy()
        if self.gates is not None:
            self.gates.start_backward()
        for k in reversed(range(len(network.layers))):
            by_centers, by_sources = self._attention_backward(k)
            self._meet([by_centers] if self.gates is None else [by_centers, self.gates.backward(k)])
            layer, memory = network.layers[k], space.layers[k]
            project = _over_atoms(passes.project_backward, layer, memory, space.scratch, self.condition, passing)
            if k > 0 and space.keeps_layers:
                self._meet([by_sources, project, self.feed_forward_backward(k - 1)])
            elif k > 0:
                self._meet([by_sources, project])
                self._meet(self._project(k - 1))
                self._meet([*self._convolve(k - 1), self.feed_forward_backward(k - 1)])
        embedding = _over_edges(
            self.embedding.backward, self.edges, network.tables.embedding, network.harmonics,
            passing.d_x.reshape(self.shape), self.d_unit, self.d_distance,
        )  # fmt: skip
        harmonics = [] if self.gates is None else [self.gates.evaluate_backward()]
        self._meet([by_sources, project, embedding, *harmonics])
        d_vector = np.empty((self.count, 3))
        geometry.edge_gradients(self.edges, self.count, self.d_unit, self.d_distance, d_vector)
        return d_vector

    def _attention_backward(self, k: int) -> tuple[Task, Task]:
        """The pass over centers, and that over sources."""
        network, passing, kernels = self.network, self.space.passing, self.kernels[k]
        layer, features, along = network.layers[k], self._features(self.space.layers[k]), self._along(k)
        n_axes = network.axes[k]
        moment = passing.moment.reshape(-1)[: n_axes * passing.d_value.size].reshape(
            len(passing.d_x), n_axes, *self.shape[1:]
        )
        upstream = attention.Upstream(moment, self.by_head[0], self.by_head[1])
        d_query, d_key = passing.d_query_key.reshape(2, *features.query.shape)
        d_along = self.d_unit if n_axes == 3 else np.zeros_like(self.ones)
        gradients = attention.Gradients(
            d_query, None if self.gates is None else self.gates.d_gates, d_along, self.d_distance
        )
        by_centers = _over_edges(
            kernels.by_centers, self.edges, along, network.tables.attention[k], self._gates(k), network.rule, features,
            layer.coupling, self._convolved(k), upstream, gradients,
        )  # fmt: skip
        d_value = passing.d_value.reshape(self.shape)
        return by_centers, _over_edges(kernels.by_sources, self.edges, along, features, upstream, d_key, d_value)

    def _meet(self, tasks: list[Task]) -> None:
        """Carry out tasks for all atoms; where layers share a memory, one after the other."""

        def all_of_them(share: int, first: int, last: int) -> None:
            for task in tasks:
                task(share, first, last)

        for task in [all_of_them] if self.space.keeps_layers else tasks:
            in_shares(task, self.space.n_atoms, self.threads)

    def _gates(self, k: int) -> Array | None:
        """Gates of a layer; None if they come from its table."""
        return None if self.gates is None else self.gates.values[k]

    def _along(self, k: int) -> Array:
        """What moments are taken along."""
        return self.edges.unit if self.network.axes[k] == 3 else self.ones

    def _convolved(self, k: int) -> Array:
        """The rows that the convolution of a layer writes, (atoms, products)."""
        memory, width = self.space.passing.convolved, self.network.layers[k].coupling.width
        return memory.reshape(-1)[: len(memory) * width].reshape(len(memory), width)

    def _features(self, memory: LayerMemory) -> scores.Features:
        config = self.network.config
        query, key = memory.query_key.reshape(2, -1, config.head_width, config.num_heads)
        return scores.Features(query, key, memory.value.reshape(self.shape))


class _Gates:
    """Gates of one evaluation that do not come from a table, and the way back.

    Attributes:
        values: of each layer, (edges, heads); where layers share a memory, they share that of gates too.
        d_gates: derivative by those of one layer.
    """

    def __init__(self, run: _Run) -> None:
        self._run, config = run, run.network.config
        layout = gate_layout(config)
        self._kernels = gates.gate_kernels(config.lmax, 0 if layout is None else layout.width)
        n_layers = len(run.network.layers)
        made = [self._empty(config.num_heads) for _ in range(n_layers if run.space.keeps_layers else 1)]
        self.values = [made[k % len(made)] for k in range(n_layers)]
        self.harmonics = self._empty((config.lmax + 1) ** 2)
        self.d_harmonics = self.d_gates = self.harmonics[:0]

    def evaluate(self) -> Task:
        """Harmonics, which all layers read."""
        run = self._run
        return _over_edges(gates.evaluate, run.network.harmonics, run.edges, self.harmonics)

    def forward(self, k: int) -> Task:
        """Gates of a layer."""
        return _over_atoms(self._kernels.gates, *self._inputs(k), self.values[k])

    def start_backward(self) -> None:
        """Make room for derivatives."""
        self.d_gates, self.d_harmonics = self._empty(self._run.network.config.num_heads), np.zeros_like(self.harmonics)

    def backward(self, k: int) -> Task:
        """From the derivative by gates to those by harmonics, distances and input features of a layer."""
        gradients = gates.GateGradients(self.d_harmonics, self._run.d_distance, self._run.space.passing.d_x)
        return _over_atoms(self._kernels.backward, *self._inputs(k), self.d_gates, gradients)

    def evaluate_backward(self) -> Task:
        """From the derivative by harmonics to that by unit vectors, behind all layers."""
        run = self._run
        arrays = self.harmonics, self.d_harmonics, run.d_unit
        return _over_edges(gates.evaluate_backward, run.network.harmonics, run.edges, *arrays)

    def _inputs(self, k: int) -> tuple[Any, ...]:
        run, network = self._run, self._run.network
        layer, memory = network.layers[k], run.space.layers[k]
        return (
            network.gates[k], layer.norm_1, memory, run.space.scratch, run.condition, run.edges, self.harmonics,
            network.tables.gates[k],
        )  # fmt: skip

    def _empty(self, width: int) -> Array:
        return torch.empty(self._run.count, width, dtype=self._run.space.dtype).numpy()


def _over_atoms(function: Callable[..., None], *arguments: Any) -> Task:
    return lambda share, first, last: function(share, first, last, *arguments)


def _over_edges(function: Callable[..., None], *arguments: Any) -> Task:
    return lambda _, first, last: function(first, last, *arguments)
