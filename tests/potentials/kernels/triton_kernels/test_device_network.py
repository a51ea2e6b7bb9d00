"""The network on Triton kernels against the network on reference kernels: energies, forces, dE/dstrain."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.inference.device_network import DeviceAtoms, DeviceNetwork
from e2former_calc.potentials.inference.fixed_shape import FixedShapeForm
from e2former_calc.potentials.kernels.geometry import Structures
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.padding import PaddedGraph, pad_graph
from e2former_calc.potentials.system import System

BASE: dict[str, Any] = {
    "heads": ("test",), "channels": 4, "lmax": 1, "conv_multiplicity": 1, "num_layers": 2, "num_heads": 2,
    "head_width": 2, "num_basis": 4, "max_radius": 3.0, "orders": ("first", "zero"), "avg_degree": 2.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softplus": {"normalization": "softplus"},
    "sigmoid, lmax 2": {"normalization": "sigmoid", "lmax": 2, "num_layers": 1, "orders": ("first",)},
}


def network(implementation: KernelImplementation, device: torch.device, **changes: Any) -> DeviceNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = E2FormerV2(E2FormerV2Config(**(BASE | changes))).double().eval().to(device)
    made = DeviceNetwork(model, "test", n_knots=25, kernels=implementation)
    made.tables.cover([1, 8])
    return made


def structures() -> System:
    """A molecule, an atom alone, and a crystal in which atoms see images of themselves."""
    molecule = System.single([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [-0.2, 0.9, 0.3], [7.0, 7.0, 7.0]], [8, 1, 1, 1])
    crystal = System.single([[0.1, 0.0, 0.0]], [8], cell=[[2.5, 0.0, 0.3], [0.0, 3.2, 0.0], [0.0, 0.1, 3.4]], pbc=True)
    return System.stack([molecule, crystal])


def form(implementation: KernelImplementation, device: torch.device, **changes: Any) -> FixedShapeForm:
    made, system = network(implementation, device, **changes), structures()
    n_atoms, channels = system.n_atoms + 1, made.config.channels
    batch = torch.cat([system.batch, torch.tensor([2])]).to(device)
    row = torch.tensor([1, 0, 0, 0, 1, 0], device=device)
    condition = torch.linspace(-1.0, 1.0, n_atoms * channels, dtype=torch.float64, device=device).view(n_atoms, -1)
    return FixedShapeForm(made, DeviceAtoms(made.device_tables(), row, Structures.from_batch(batch, 3), condition))


def inputs(device: torch.device) -> tuple[Tensor, ...]:
    """Positions and the columns of a graph with unused slots."""
    system = structures()
    graph = neighbor_list(system, BASE["max_radius"])
    room = pad_graph(graph, system, atoms=system.n_atoms + 1, edges=graph.n_edges + 5)
    positions = torch.cat([system.positions, torch.zeros(1, 3, dtype=torch.float64)])
    return tuple(x.to(device) for x in (positions, room.center, room.source, room.image, room.row_ptr))


def evaluate(made: FixedShapeForm, positions: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    return made(PaddedGraph(*columns), positions)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_network_on_kernels_equals_network_on_reference(variant: str, device: torch.device) -> None:
    results = [evaluate(form(k, device, **VARIANTS[variant]), *inputs(device)) for k in ("triton", "reference")]
    for found, expected in zip(*results, strict=True):
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


def test_recorded_network_follows_its_inputs(device: torch.device) -> None:
    made, (positions, *columns) = form("triton", device), inputs(device)
    recorded = make_fx(partial(evaluate, made), tracing_mode="fake")(positions, *columns)
    moved = positions + 0.05 * torch.sin(torch.arange(positions.numel(), device=device).double()).view_as(positions)
    for found, expected in zip(recorded(moved, *columns), evaluate(made, moved, *columns), strict=True):
        assert torch.equal(found, expected)
