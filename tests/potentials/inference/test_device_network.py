"""The form for devices, with reference kernels on the host, is the plain module up to the error of its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from e2former_calc.checkpoint import load_potential
from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.inference import (
    choose_execution,
    device_layers,
    device_network,
    execution,
    obstacles,
    prepare,
)
from e2former_calc.potentials.inference.device_network import DeviceNetwork
from e2former_calc.potentials.inference.device_prepared import BF16_TOLERANCE, DevicePrepared
from e2former_calc.potentials.inference.fixed_shape import FixedShapeForm, without_padding
from e2former_calc.potentials.kernels.fused_attention import AttentionEdges
from e2former_calc.potentials.kernels.spline import TabulatedFunctions, evaluate_spline
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.padding import Capacity, PaddedGraph, pad_graph, pad_system
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

Build = Callable[..., EnergyPotential]

TABLE_ERROR = 1e-6
"""Bound on differences (eV, eV/Å, eV/Å^3) in float64, relative to the largest force or 1 eV/Å."""
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softplus": {"normalization": "softplus"},
    "sigmoid, mixed orders": {"normalization": "sigmoid", "orders": ("zero", "first")},
    "zero order": {"orders": ("zero", "zero")},
    "capped": {"max_neighbors": 5, "embedding_layer_norm": False},
    "lmax 3": {"lmax": 3, "num_heads": 8, "channels": 24, "num_layers": 1, "orders": ("first",)},
}


@pytest.fixture(scope="module")
def on_device(build: Build) -> Build:
    """A potential with the form for devices; the same one for the same arguments."""
    made: dict[str, EnergyPotential] = {}

    def on_device(dtype: torch.dtype = torch.float64, **changes: Any) -> EnergyPotential:
        key = repr((dtype, sorted(changes.items())))
        if key not in made:
            potential = build(dtype, **changes)
            potential.prepared = DevicePrepared(potential, kernels="reference")
            made[key] = potential
        return made[key]

    return on_device


def plainly(potential: EnergyPotential, system: System) -> Prediction:
    """The prediction of the plain module."""
    attached, potential.prepared = potential.prepared, None
    try:
        return potential(system)
    finally:
        potential.prepared = attached


def largest_force(prediction: Prediction) -> float:
    assert prediction.forces is not None
    return max(1.0, float(prediction.forces.abs().max()))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_device_form_equals_plain_module(on_device: Build, variant: str, system: System) -> None:
    potential = on_device(**VARIANTS[variant])
    plain, fused = plainly(potential, system), potential(system)
    bound = TABLE_ERROR * largest_force(plain)
    for name in ("energies", "energy", "forces", "stress"):
        expected, found = getattr(plain, name), getattr(fused, name)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bound * system.n_atoms, equal_nan=True)


@pytest.mark.parametrize("normalization", ["softmax", "softplus", "sigmoid"])
def test_single_precision_errs_as_the_plain_module_does(on_device: Build, normalization: str, cluster: System) -> None:
    exact = plainly(on_device(normalization=normalization), cluster).forces
    rounded = on_device(torch.float32, normalization=normalization)
    errors = [float((run.forces - exact).abs().max()) for run in (rounded(cluster), plainly(rounded, cluster))]
    assert rounded(cluster).forces.dtype == torch.float64
    # Both sum the same terms in another order; derivatives of tables with rounded differences err ten times as much.
    assert errors[0] < 4.0 * errors[1]


@pytest.mark.parametrize(("dtype", "energy", "force"), [("float32", 1e-6, 1e-5), ("float64", 1e-7, 1e-6)])
def test_errors_of_a_bundled_model_stay_below_the_aim(
    dtype: str, energy: float, force: float, generator: torch.Generator
) -> None:
    """eV per atom and eV/Å; errors of tables alone, in float64, below a tenth of those allowed in float32."""
    atoms = molecule("CH3CONH2")
    moves = 0.05 * torch.randn(len(atoms), 3, generator=generator, dtype=torch.float64)
    system = System.single(torch.from_numpy(atoms.positions) + moves, atoms.numbers)
    exact = load_potential("ala3-gfn2", device="cpu", dtype="float64", implementation="blocked")(system)
    potential = load_potential("ala3-gfn2", device="cpu", dtype=dtype, implementation="blocked")
    potential.prepared = DevicePrepared(potential, kernels="reference")
    found = potential(system)
    torch.testing.assert_close(found.energies, exact.energies, rtol=0.0, atol=energy)
    torch.testing.assert_close(found.forces, exact.forces, rtol=0.0, atol=force)


def test_forces_are_the_gradient_of_the_energy(on_device: Build, cluster: System) -> None:
    potential, step = on_device(), 1e-4
    forces = potential(cluster).forces
    for atom, axis in ((0, 0), (21, 2)):
        energies = []
        for sign in (1.0, -1.0):
            positions = cluster.positions.clone()
            positions[atom, axis] += sign * step
            energies.append(float(potential(cluster.with_positions(positions)).energy))
        slope = (energies[0] - energies[1]) / (2.0 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, abs=1e-5 * max(1.0, abs(slope)))


def test_repeated_calls_are_bitwise_equal(on_device: Build, cluster: System) -> None:
    potential = on_device(torch.float32)
    assert torch.equal(potential(cluster).forces, potential(cluster).forces)


def test_result_does_not_depend_on_batch_mates(on_device: Build, cluster: System) -> None:
    potential = on_device()
    together = potential(System.stack([cluster, cluster, cluster]))
    torch.testing.assert_close(together.forces[-cluster.n_atoms :], potential(cluster).forces, rtol=0.0, atol=1e-12)


def test_list_with_skin_changes_nothing(on_device: Build, cluster: System) -> None:
    potential = on_device()
    skinned = potential(cluster, neighbors=neighbor_list(cluster, potential.cutoff + 1.0))
    torch.testing.assert_close(skinned.forces, potential(cluster).forces, rtol=0.0, atol=1e-12)


def test_energy_alone_equals_energy_with_forces(on_device: Build, cluster: System) -> None:
    alone = on_device()(cluster, properties=frozenset({"energy"}))
    assert alone.forces is None
    assert torch.equal(alone.energy, on_device()(cluster).energy)


def test_first_call_in_inference_mode_gives_forces(build: Build, cluster: System) -> None:
    potential = build()
    expected = potential(cluster).forces
    potential.prepared = DevicePrepared(potential, kernels="reference")
    with torch.inference_mode():
        found = potential(cluster).forces
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TABLE_ERROR * 10.0)


def test_charge_and_spin_reach_the_device_form(on_device: Build, cluster: System) -> None:
    potential = on_device()
    charged = replace(cluster, charge=cluster.charge - 2)
    potential(cluster)
    expected = plainly(potential, charged).energy
    torch.testing.assert_close(potential(charged).energy, expected, rtol=0.0, atol=1e-5)


def test_distance_from_training_data_is_that_of_the_plain_module(build: Build, cluster: System, generator) -> None:
    potential = build()
    whitening = torch.randn(3, 8, 8, generator=generator)
    potential.domain = TrainingDomain(torch.tensor([1, 6, 8]), torch.randn(3, 8, generator=generator), whitening)
    expected = potential(cluster).extrapolation
    potential.prepared = DevicePrepared(potential, kernels="reference")
    torch.testing.assert_close(potential(cluster).extrapolation, expected, rtol=1e-6, atol=1e-6)


def test_rounded_products_change_forces_by_their_rounding(build: Build, on_device: Build, cluster: System) -> None:
    potential, exact = build(torch.float32), on_device(torch.float32)(cluster)
    potential.prepared = DevicePrepared(potential, kernels="reference", matmul_precision="bf16")
    difference = float((potential(cluster).forces - exact.forces).abs().max())
    assert 1e-5 * largest_force(exact) < difference < BF16_TOLERANCE * largest_force(exact)
    assert "matrix products in bf16" in execution(potential)


def test_rounded_products_leave_global_settings_alone(build: Build, cluster: System) -> None:
    before = torch.get_float32_matmul_precision()
    potential = build(torch.float32)
    potential.prepared = DevicePrepared(potential, kernels="reference", matmul_precision="bf16")
    potential(cluster)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.usefixtures("_untyped")
def test_unknown_precision_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="`matmul_precision` must be 'float32' or 'bf16', got 'tf32'"):
        DeviceNetwork(build().model, "test", n_knots=12, kernels="reference", matmul_precision="tf32")


def test_rounded_products_are_refused_on_the_host(build: Build) -> None:
    with pytest.raises(ValueError, match="matmul_precision='bf16' needs a CUDA device"):
        prepare(build(), elements=[1], matmul_precision="bf16")


def test_self_check_refuses_a_wrong_form(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_layers, "GATE_SCALAR_GAIN", 1.0)
    potential = build()
    with pytest.raises(ValueError, match=r"failed its self-check on elements \[1\].*use implementation='blocked'"):
        DevicePrepared(potential, kernels="reference").cover(potential, [1])


@pytest.fixture
def claims_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Potentials that say they are on a CUDA device."""
    monkeypatch.setattr(EnergyPotential, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


@pytest.mark.usefixtures("claims_cuda")
def test_auto_takes_triton_kernels_on_a_cuda_device(build: Build) -> None:
    potential = choose_execution(build(torch.float32), "auto")
    assert execution(potential) == "fused (triton kernels)"


@pytest.mark.usefixtures("claims_cuda")
def test_missing_triton_is_an_obstacle_on_a_cuda_device(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else object())
    assert obstacles(build()) == ["the package triton is not installed"]


@pytest.mark.usefixtures("claims_cuda")
@pytest.mark.parametrize("score", ["QKdot_alpha", "QKdotS_alpha"])
def test_gates_that_depend_on_the_direction_are_an_obstacle_on_a_cuda_device(build: Build, score: str) -> None:
    assert obstacles(build(score=score)) == [f"the attention score {score} has kernels for the CPU alone"]


def test_other_devices_are_an_obstacle(build: Build) -> None:
    assert obstacles(build().to("meta")) == ["the device is meta; fused kernels run on CPU and CUDA devices"]


def padded(potential: EnergyPotential, system: System) -> tuple[FixedShapeForm, PaddedGraph, Tensor]:
    """The form in arrays of fixed shape, with some unused slots; its graph and its positions."""
    (graph,) = potential.graphs(system)
    whole = pad_system(system, Capacity(system.n_structures + 1, system.n_atoms + 1, ()))
    room = pad_graph(graph, system, atoms=whole.n_atoms, edges=graph.n_edges + 37)
    return potential.prepared.fixed_shape(potential, whole), room, whole.positions


def test_padding_changes_nothing(on_device: Build, system: System) -> None:
    potential = on_device()
    form, graph, positions = padded(potential, system)
    energies, forces, strain = form(graph, positions)
    expected = potential(system)
    n_atoms = system.n_atoms
    torch.testing.assert_close(forces[:n_atoms], expected.forces, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(
        energies[:n_atoms] + potential.reference[system.numbers], expected.energies, rtol=0.0, atol=1e-12
    )
    assert not strain[-1].any()


def test_padding_is_left_to_no_program(on_device: Build, cluster: System) -> None:
    _, graph, _ = padded(on_device(), cluster)
    index = without_padding(graph)
    assert index.row_ptr[-1] == index.source_ptr[-1] == index.n_edges - 37
    assert not torch.isin(index.by_source[:-37], torch.arange(index.n_edges - 37, index.n_edges)).any()


def test_later_elements_leave_a_form_as_it_is(build: Build) -> None:
    potential = build()
    potential.prepared = DevicePrepared(potential, kernels="reference")
    form, graph, positions = padded(potential, System.single([[0.0, 0.0, 0.0], [1.1, 0.0, 0.3]], [8, 8]))
    before = form(graph, positions)
    potential.prepared.cover(potential, [1])
    assert all(torch.equal(old, new) for old, new in zip(before, form(graph, positions), strict=True))


def test_forms_are_told_apart(on_device: Build, cluster: System) -> None:
    potentials = on_device(), on_device(normalization="sigmoid")
    made = [padded(potential, cluster) for potential in potentials]
    for potential, (form, graph, positions) in zip(potentials, made, strict=True):
        expected = potential(cluster).forces
        torch.testing.assert_close(form(graph, positions)[1][:-1], expected, rtol=0.0, atol=1e-12)


def slot_attention(
    query: Tensor, key: Tensor, value: Tensor, edges: AttentionEdges, index: Any, **_: Any
) -> Tensor:  # fmt: skip
    """Sigmoid attention of first order over all slots, those of padding included: a function of fixed shape."""
    assert isinstance(edges.radial, TabulatedFunctions)
    gate, amplitude = evaluate_spline(edges.radial).chunk(2, dim=1)
    score = gate * (query[index.center] * key[index.source]).sum(-1) / sqrt(query.shape[2])
    weight = torch.sigmoid(score) * amplitude * edges.envelope[:, None]
    message = weight.repeat(1, value.shape[2] // query.shape[1])[:, None] * value[index.source]
    terms = edges.direction[:, :, None, None] * message[:, None]
    return value.new_zeros(len(value), 3, *value.shape[1:]).index_add(0, index.center, terms)


def slot_embedding(functions: TabulatedFunctions, harmonics: Tensor, index: Any, **_: Any) -> Tensor:
    """The input features over all slots."""
    parts = zip(harmonics.split((1, 3, 5), dim=1), evaluate_spline(functions).chunk(3, dim=1), strict=True)
    terms = torch.cat([rows[:, :, None] * radial[:, None] for rows, radial in parts], dim=1)
    return terms.new_zeros(index.n_atoms, *terms.shape[1:]).index_add(0, index.center, terms)


HOST_VALUES = {"_local_scalar_dense", "lift_fresh_copy", "nonzero", "item", "masked_select"}
"""Operations that read a value on the host, or copy one from it."""


def test_recorded_operations_around_the_kernels_follow_their_inputs(
    on_device: Build, cluster: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = on_device(normalization="sigmoid")
    form, graph, positions = padded(potential, cluster)
    monkeypatch.setattr(device_layers, "fused_attention", slot_attention)
    monkeypatch.setattr(device_network, "edge_embedding", slot_embedding)

    def function(positions: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        return form.evaluate(PaddedGraph(*columns), positions)

    columns = graph.center, graph.source, graph.image, graph.row_ptr
    recorded = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(positions, *columns)
    # Nothing that depends on values has been recorded, and every shape is a number.
    names = {getattr(node.target, "__name__", str(node.target)).split(".")[0] for node in recorded.graph.nodes}
    assert not names & HOST_VALUES
    monkeypatch.undo()
    moved = positions + 0.01 * torch.sin(torch.arange(float(positions.numel()))).double().view_as(positions)
    found, expected, before = recorded(moved, *columns)[1], form(graph, moved)[1], form(graph, positions)[1]
    assert not torch.allclose(expected, before, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
