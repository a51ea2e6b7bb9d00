"""The node-centric baseline: another algorithm, the same energies and forces as the plain module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from e2former_calc.benchmark.baseline_node_centric import AxisProduct, evaluate_node_centric
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.so3 import SphericalHarmonics, coupling_paths, vector_coupling
from e2former_calc.potentials.system import System

BOTH: frozenset[Property] = frozenset({"energy", "forces"})
BASE: dict[str, Any] = {
    "heads": ("test",), "channels": 8, "lmax": 2, "conv_multiplicity": 2, "num_layers": 2, "num_heads": 4,
    "head_width": 4, "num_basis": 12, "max_radius": 4.0, "orders": ("first", "first"), "avg_degree": 8.0,
}  # fmt: skip


def potential(**changes: Any) -> EnergyPotential:
    """Random weights, large enough for every part to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = E2FormerV2(E2FormerV2Config(**(BASE | changes)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim > 1 else 0.2)
    model.eval().requires_grad_(False)
    energies = {"test": torch.linspace(-1.0, 1.0, 119, dtype=torch.float64)}
    return EnergyPotential(
        model.double(), head="test", reference_energies=energies, elements=frozenset({1, 6, 8, 11, 17}),
        force_mode="gradient",
    )  # fmt: skip


def chain() -> System:
    """A molecule with an atom beyond the cutoff of all others."""
    rng = np.random.default_rng(2)
    positions = 1.3 * np.arange(11)[:, None] * [0.6, 0.5, 0.4] + rng.normal(scale=0.4, size=(11, 3))
    positions[-1] += 40.0
    return System.single(positions, rng.choice([1, 6, 8], 11), charge=1, spin=2)


def box() -> System:
    """A skewed cell thinner than the cutoff: many images of every atom."""
    cell = np.array([[3.6, 0.0, 0.0], [0.7, 3.9, 0.0], [0.3, -0.5, 3.3]])
    positions = [[0.2, 0.3, 0.1], [2.1, 1.8, 1.9], [0.4, 2.4, 2.2]]
    return System.single(positions, [11, 17, 8], cell=cell, pbc=True)


SYSTEMS: dict[str, Callable[[], System]] = {
    "molecule": chain, "box": box, "batch": lambda: System.stack([chain(), box()])
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("changes", [
    {}, {"max_neighbors": 5}, {"lmax": 1}, {"lmax": 3}, {"orders": ("first", "zero")}, {"normalization": "softplus"},
    {"normalization": "sigmoid"}, {"embedding_layer_norm": False},
], ids=str)  # fmt: skip
def test_energies_and_forces_equal_those_of_the_module(name: str, changes: dict[str, Any]) -> None:
    model, system = potential(**changes), SYSTEMS[name]()
    expected = model(system, properties=BOTH)
    found = evaluate_node_centric(model)(system, properties=BOTH)
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-9, atol=1e-11)
    scale = float(expected.forces.abs().max())
    torch.testing.assert_close(found.forces, expected.forces, rtol=0.0, atol=1e-9 * scale)


def test_energy_alone_is_the_same() -> None:
    model = evaluate_node_centric(potential())
    found = model(box(), properties=frozenset({"energy"}))
    assert found.forces is None
    assert torch.equal(found.energy, model(box(), properties=BOTH).energy)


def test_isolated_atom_has_no_force() -> None:
    found = evaluate_node_centric(potential())(System.single([[1.0, 2.0, 0.5]], [8]), properties=BOTH)
    assert torch.equal(found.forces, torch.zeros(1, 3, dtype=torch.float64))


def test_atoms_on_the_axis_and_at_the_origin_have_the_right_energy() -> None:
    """Their forces are wrong, as with the official code, but finite."""
    system = System.single([[0.0, 0.0, 0.0], [0.0, 1.1, 0.0], [0.9, -0.3, 0.2]], [8, 1, 1])
    model = potential()
    expected = model(system, properties=BOTH)
    found = evaluate_node_centric(model)(system, properties=BOTH)
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-9, atol=1e-11)
    assert bool(torch.isfinite(found.forces).all())


def test_frames_turn_positions_onto_the_axis() -> None:
    positions = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turn, _, length = AxisProduct(3, positions.device).frames(positions)
    harmonics = SphericalHarmonics(3)
    turned = (turn @ harmonics(positions / length[:, None])[:, :, None])[:, :, 0]
    pole = harmonics(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(turned, pole.expand_as(turned), rtol=0.0, atol=1e-12)


def test_axis_product_is_the_clebsch_gordan_product() -> None:
    draw = torch.Generator().manual_seed(3)
    positions = torch.randn(6, 3, dtype=torch.float64, generator=draw)
    features = torch.randn(6, 9, 2, dtype=torch.float64, generator=draw)
    product = AxisProduct(2, positions.device)
    blocks = [
        torch.einsum("nmc,nk,mko->noc", features[:, a**2 : (a + 1) ** 2], positions, vector_coupling(a, b))
        for a, b in coupling_paths(2)
    ]
    torch.testing.assert_close(product(features, product.frames(positions)), torch.cat(blocks, dim=1))


def test_stress_is_refused() -> None:
    with pytest.raises(ValueError, match="has no stress: ask for energy and forces only"):
        evaluate_node_centric(potential())(box(), properties=frozenset({"energy", "stress"}))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"score": "QKdot_alpha"}, "the attention score is QKdot_alpha"),
    ({"long_range": "node"}, "there is a long-range part, 'node'"),
    ({"norm": False}, "the network has no norms"),
])  # fmt: skip
def test_other_networks_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"covers E2Former-V2 with QK_alpha only: {reason}"):
        evaluate_node_centric(potential(**changes))


def test_describes_itself() -> None:
    prepared = evaluate_node_centric(potential()).prepared
    assert prepared is not None
    assert "node-centric" in prepared.describe()
