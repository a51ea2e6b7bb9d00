"""Gates that depend on the direction, and their derivatives, are those of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v2.attention import EdgeFeatures
from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.inference.gates import (
    CENTERS,
    EDGES,
    GateGradients,
    evaluate,
    evaluate_backward,
    gate_kernels,
)
from e2former_calc.potentials.inference.geometry import Edges, Grid, Structure, describe_edges
from e2former_calc.potentials.inference.packed import packed_gate
from e2former_calc.potentials.inference.tables import RadialTables, gate_layout
from e2former_calc.potentials.inference.weights import WeightReader
from e2former_calc.potentials.inference.workspace import Workspace
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.potential import EnergyPotential

Build = Callable[..., EnergyPotential]

N_ATOMS, KNOTS = CENTERS + 4, 512
scores = pytest.mark.parametrize(
    "changes",
    [
        {"score": "QKdot_alpha"},
        {"score": "QKdot_alpha", "lmax": 1, "num_basis": 16},
        {"score": "QKdotS_alpha"},
        {"score": "QKdotS_alpha", "lmax": 3, "num_heads": 8},
    ],
    ids=str,
)


def ring(dtype: type) -> Edges:
    """Each atom but the first has edges from the three atoms before it, at random places."""
    generator = np.random.default_rng(2)
    center = np.repeat(np.arange(1, N_ATOMS), 3)
    count = len(center)
    vector = generator.uniform(-1.5, 1.5, (count, 3)) + np.array([1.0, 0.0, 0.0])
    edges = Edges(
        row_ptr=np.searchsorted(center, np.arange(N_ATOMS + 1)), center=center,
        source=(center - 1 - np.arange(count) % 3) % N_ATOMS, column_ptr=np.zeros(1, int), by_source=np.zeros(1, int),
        vector=vector, distance=np.linalg.norm(vector, axis=1), unit=np.empty((count, 3), dtype),
        slot=np.empty(count, int), spline=np.empty((count, 11), dtype), envelope=np.empty((count, 2), dtype),
    )  # fmt: skip
    atoms = np.zeros(N_ATOMS, int)
    describe_edges(Structure(np.zeros((1, 3)), np.zeros((1, 3, 3)), atoms, atoms), Grid(4.0, KNOTS, 1, 5), edges, count)
    return edges


class Gates:
    """Kernels of the first layer of a network with random features, and the same by the module and autograd."""

    def __init__(self, build: Build, changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
        self.model: Any = build(**changes).model
        self.config: E2FormerV2Config = self.model.config
        self.edges = ring(np.float64 if dtype == torch.float64 else np.float32)
        generator = torch.Generator().manual_seed(3)
        rows, heads, count = (self.config.lmax + 1) ** 2, self.config.num_heads, len(self.edges.center)
        self.x = torch.randn(N_ATOMS, rows, self.config.channels, generator=generator, dtype=torch.float64)
        self.condition = torch.randn(N_ATOMS, self.config.channels, generator=generator, dtype=torch.float64)
        self.upstream = torch.randn(count, heads, generator=generator, dtype=torch.float64)
        self.dtype = dtype

    def by_kernels(self) -> list[np.ndarray]:
        """Gates; derivatives of their sum times `upstream` by features, directions and distances."""
        model, edges, config, x = self.model, self.edges, self.config, self._array(self.x.flatten(1))
        reader, block, condition = WeightReader(model, self.dtype), model.blocks[0], self._array(self.condition)
        tables = RadialTables(model, dtype=self.dtype, n_knots=KNOTS)
        tables.cover([8])
        space = Workspace(config, N_ATOMS, self.dtype, n_products=1, differentiable=True, threads=1)
        memory, recursion = space.layers[0]._replace(x=x), reader.harmonics()
        kernels = gate_kernels(config.lmax, gate_layout(config).width)
        result, by_x, by_unit = np.full(self.upstream.shape, np.nan, x.dtype), np.ones_like(x), np.ones_like(edges.unit)
        harmonics, by_distance = np.empty((len(result), len(self.x[0])), x.dtype), np.ones(len(result), x.dtype)
        by_harmonics = np.zeros_like(harmonics)
        evaluate(0, N_ATOMS, recursion, edges, harmonics)
        inputs = packed_gate(reader.gate(block.attention)), reader.norm(block.norm_1), memory, space.scratch
        inputs = *inputs, condition, edges, harmonics, tables.gates[0]
        kernels.gates(0, 0, N_ATOMS, *inputs, result)
        gradients = GateGradients(by_harmonics, by_distance, by_x)
        kernels.backward(0, 0, N_ATOMS, *inputs, self._array(self.upstream), gradients)
        evaluate_backward(0, N_ATOMS, recursion, edges, harmonics, by_harmonics, by_unit)
        return [result, by_x.reshape(self.x.shape) - 1.0, by_unit - 1.0, by_distance - 1.0]

    def by_module(self) -> list[np.ndarray]:
        """The same."""
        attention, block = self.model.blocks[0].attention, self.model.blocks[0]
        x, unit, distance = (
            torch.as_tensor(array, dtype=torch.float64).clone().requires_grad_(True)
            for array in (self.x, self.edges.vector / self.edges.distance[:, None], self.edges.distance)
        )
        h = block.norm_1(x)
        h = torch.cat([h[:, :1] + self.condition[:, None], h[:, 1:]], dim=1)
        inputs = self._features(unit, distance)
        tables = attention.target_embedding(inputs.elements), attention.source_embedding(inputs.elements)
        radial = attention.radial(inputs.basis, *tables, inputs.pair)[:, self.config.num_heads :]
        last = tables if self.config.score == "QKdot_alpha" else radial
        gates = attention.gate(h, inputs, last) / self.config.head_width**0.5
        found = torch.autograd.grad((gates * self.upstream).sum(), (x, unit, distance))
        return [tensor.detach().numpy() for tensor in (gates, *found)]

    def _features(self, unit: torch.Tensor, distance: torch.Tensor) -> EdgeFeatures:
        names = ("row_ptr", "center", "source")
        row_ptr, center, source = (torch.from_numpy(getattr(self.edges, name)) for name in names)
        neighbors = NeighborList(center, source, torch.zeros(len(center), 3, dtype=torch.int64), row_ptr, 4.0)
        return EdgeFeatures(
            neighbors=neighbors, direction=unit, vector=unit * distance[:, None],
            harmonics=self.model.harmonics(unit), basis=self.model.basis(distance), envelope=torch.ones_like(distance),
            elements=torch.tensor([8]), pair=torch.zeros(len(center), dtype=torch.int64),
        )  # fmt: skip

    def _array(self, values: torch.Tensor) -> np.ndarray:
        return values.to(self.dtype).numpy()


@scores
def test_gates_and_derivatives_are_those_of_autograd(build: Build, changes: dict[str, Any]) -> None:
    gates = Gates(build, changes)
    assert len(gates.edges.center) > 2 * EDGES
    for found, expected in zip(gates.by_kernels(), gates.by_module(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-7 * max(1.0, abs(expected).max()))


@scores
def test_single_precision_differs_by_rounding(build: Build, changes: dict[str, Any]) -> None:
    single, double = (Gates(build, changes, dtype).by_kernels() for dtype in (torch.float32, torch.float64))
    for found, expected in zip(single, double, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-4 * max(1.0, abs(expected).max()))


@scores
def test_columns_of_a_layout_are_apart_and_belong_to_their_degree(build: Build, changes: dict[str, Any]) -> None:
    config = build(**changes).model.config
    layout = gate_layout(config)
    assert len(set(layout.place)) == len(layout.place)
    assert [place // layout.width for place in layout.place] == layout.degree


def test_gates_of_the_distance_alone_have_no_layout(build: Build) -> None:
    assert gate_layout(build().model.config) is None
