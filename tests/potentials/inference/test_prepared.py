"""The prepared form is the plain module, up to the error of its tables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from e2former_calc.checkpoint import load_potential
from e2former_calc.potentials.inference import network, obstacles, prepare, prepared, workspace
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

Build = Callable[..., EnergyPotential]

TABLE_ERROR = 1e-6
"""Bound on differences (eV, eV/Å, eV/Å^3) in float64, relative to the largest force or 1 eV/Å."""
WIDE: dict[str, Any] = {"channels": 32, "num_heads": 8}

VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softplus": {"normalization": "softplus"},
    "sigmoid": {"normalization": "sigmoid"},
    "no layer norm in the embedding": {"embedding_layer_norm": False},
    "mixed orders": {"orders": ("zero", "first")},
    "capped": {"max_neighbors": 5},
    "direction gate": {"score": "QKdot_alpha"},
    "direction gate, sigmoid, zero order": {
        "score": "QKdot_alpha", "normalization": "sigmoid", "orders": ("zero", "first"),
    },
    "solid gate": {"score": "QKdotS_alpha"},
    "solid gate, softplus, lmax 3": {
        "score": "QKdotS_alpha", "normalization": "softplus", "lmax": 3, "num_heads": 8, "num_layers": 1,
        "orders": ("zero",),
    },
    "lmax 3": {"lmax": 3, "num_heads": 8, "channels": 24, "num_layers": 1, "orders": ("first",)},
}  # fmt: skip
scores = pytest.mark.parametrize("score", ["QK_alpha", "QKdot_alpha", "QKdotS_alpha"])


def fused(potential: EnergyPotential) -> EnergyPotential:
    """The prepared form, with tables for the elements that occur alone, which is faster."""
    return prepare(potential, elements=())


def predictions(potential: EnergyPotential, system: System) -> tuple[Prediction, Prediction]:
    """Of the plain module and of the prepared form."""
    plain = potential(system)
    return plain, fused(potential)(system)


def largest_force(prediction: Prediction) -> float:
    assert prediction.forces is not None
    return max(1.0, float(prediction.forces.abs().max()))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_prepared_form_equals_plain_module(build: Build, variant: str, system: System) -> None:
    plain, own = predictions(build(**VARIANTS[variant]), system)
    bound = TABLE_ERROR * largest_force(plain)
    for name in ("energies", "energy", "forces", "stress"):
        expected, found = getattr(plain, name), getattr(own, name)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bound * system.n_atoms, equal_nan=True)


@scores
def test_single_precision_differs_by_rounding(build: Build, cluster: System, score: str) -> None:
    exact = build(score=score, **WIDE)(cluster)
    single = fused(build(torch.float32, score=score, **WIDE))(cluster)
    torch.testing.assert_close(single.forces, exact.forces, rtol=0.0, atol=1e-4 * largest_force(exact))


@scores
def test_forces_are_the_gradient_of_the_energy(build: Build, cluster: System, score: str) -> None:
    potential, step = fused(build(score=score)), 1e-4
    forces = potential(cluster).forces
    for atom, axis in ((0, 0), (7, 1), (21, 2)):
        energies = []
        for sign in (1.0, -1.0):
            positions = cluster.positions.clone()
            positions[atom, axis] += sign * step
            energies.append(float(potential(cluster.with_positions(positions)).energy))
        slope = (energies[0] - energies[1]) / (2.0 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, abs=1e-5 * max(1.0, abs(slope)))


@scores
def test_repeated_calls_are_bitwise_equal(build: Build, cluster: System, score: str) -> None:
    potential = fused(build(torch.float32, score=score, **WIDE))
    first, second = potential(cluster), potential(cluster)
    assert torch.equal(first.forces, second.forces)


@scores
def test_result_does_not_depend_on_batch_mates(build: Build, cluster: System, score: str) -> None:
    potential = fused(build(score=score))
    alone = potential(cluster)
    together = potential(System.stack([cluster, cluster, cluster]))
    assert torch.equal(together.forces[-cluster.n_atoms :], alone.forces)


HEADS = {"linear": {"force_head": "linear"}, "painn": {"force_head": "painn"}, "escn": {"energy_head": "escn"}}


def with_heads(build: Build, name: str) -> EnergyPotential:
    """A network with other heads than the usual one; those on spheres look into random directions."""
    potential = build(**HEADS[name])
    potential.force_mode = "gradient" if name == "escn" else "head"
    generator = torch.Generator().manual_seed(3)
    for label, buffer in potential.model.named_buffers():
        if label.endswith(("sampling", "points")):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return potential


@pytest.mark.parametrize("name", list(HEADS))
def test_other_heads_give_what_the_plain_module_gives(build: Build, name: str, system: System) -> None:
    properties = frozenset({"energy", "forces"})
    plain = with_heads(build, name)(system, properties=properties)
    own = fused(with_heads(build, name))(system, properties=properties)
    bound = TABLE_ERROR * largest_force(plain)
    torch.testing.assert_close(own.energies, plain.energies, rtol=0.0, atol=bound)
    torch.testing.assert_close(own.forces, plain.forces, rtol=0.0, atol=bound)
    assert own.force_source == plain.force_source


def test_stress_of_an_energy_head_on_spheres(build: Build, system: System) -> None:
    plain, own = with_heads(build, "escn")(system), fused(with_heads(build, "escn"))(system)
    torch.testing.assert_close(own.stress, plain.stress, rtol=0.0, atol=TABLE_ERROR, equal_nan=True)


@scores
def test_threads_change_no_bit(
    build: Build, cluster: System, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(network, "MIN_WORK_PER_THREAD", 1)
    potential = fused(build(torch.float32, score=score, **WIDE))
    many = System.stack([cluster] * 8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(potential(many).forces)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_machine_code_from_disk_gives_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "forces.py"
    script.write_text(
        "import hashlib, torch\n"
        "from e2former_calc import E2FormerCalculator\n"
        "from ase.build import molecule\n"
        "torch.set_num_threads(1)\n"
        "forces = E2FormerCalculator('ethanol-rmd17', implementation='fused').get_forces(molecule('CH3CH2OH'))\n"
        "print(hashlib.sha256(forces.tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script)]
    compiled, loaded = (subprocess.check_output(command, env=environment, text=True) for _ in range(2))
    assert compiled == loaded


def test_list_with_skin_changes_nothing(build: Build, system: System) -> None:
    potential = prepare(build())
    fresh = potential(system)
    skinned = potential(system, neighbors=neighbor_list(system, potential.cutoff + 1.0))
    torch.testing.assert_close(skinned.forces, fresh.forces, rtol=0.0, atol=1e-12)


@scores
def test_energy_alone_equals_energy_with_forces(build: Build, cluster: System, score: str) -> None:
    potential = fused(build(score=score))
    alone = potential(cluster, properties=frozenset({"energy"}))
    assert alone.forces is None
    assert torch.equal(alone.energy, potential(cluster).energy)


def test_energy_first_and_forces_later(build: Build, cluster: System) -> None:
    potential = prepare(build(num_layers=3, orders=("first",) * 3))
    alone = potential(cluster, properties=frozenset({"energy"}))
    expected = build(num_layers=3, orders=("first",) * 3)(cluster)
    assert torch.equal(alone.energy, potential(cluster).energy)
    torch.testing.assert_close(alone.energy, expected.energy, rtol=0.0, atol=1e-5)


def test_maps_computed_again_change_no_bit(build: Build, cluster: System, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fused(build())(cluster)
    monkeypatch.setattr(workspace, "KEPT_BYTES", 0)
    assert torch.equal(fused(build())(cluster).forces, kept.forces)


@scores
@pytest.mark.parametrize(("limit", "value"), [("BLOCK", 5), ("KEPT_SHARE", 0.0)])
def test_small_blocks_and_layers_computed_again_change_no_bit(
    build: Build, cluster: System, limit: str, value: float, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fused(build(score=score))(cluster)
    monkeypatch.setattr(workspace, limit, value)
    assert torch.equal(fused(build(score=score))(cluster).forces, usual.forces)


def test_layers_computed_again_need_less_memory(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(num_layers=4, orders=("first",) * 4).model.config
    needed = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(workspace, "KEPT_SHARE", share)
        space = workspace.Workspace(config, 100, torch.float32, n_products=160, differentiable=True, threads=1)
        needed.append(len({id(memory.value) for memory in space.layers}))
    assert needed == [4, 1]


def test_too_little_memory_says_how_much_is_needed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = prepare(build(), elements=[1])

    def refuse(*shape: int, **options: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("e2former_calc.potentials.inference.workspace.torch.empty", refuse)
    system = System.single(torch.arange(30.0).reshape(10, 3).numpy(), [1] * 10)
    with pytest.raises(MemoryError, match=r"10 atoms need about 0\.0 GiB.*fewer atoms or replicas at once"):
        potential(system)


def test_new_elements_extend_the_tables(build: Build, cluster: System) -> None:
    potential = prepare(build(), elements=[1])
    expected = build()(cluster)
    torch.testing.assert_close(potential(cluster).energy, expected.energy, rtol=0.0, atol=1e-5)
    assert [check.elements for check in potential.prepared.checks] == [(1,), (1, 6, 8)]


def test_charge_and_spin_reach_the_prepared_form(build: Build, cluster: System) -> None:
    potential = prepare(build())
    charged = System(**(cluster.__dict__ | {"charge": cluster.charge - 2}))
    plain = build()(charged)
    potential(cluster)
    torch.testing.assert_close(potential(charged).energy, plain.energy, rtol=0.0, atol=1e-5)


def test_casting_ends_the_prepared_form(build: Build) -> None:
    potential = prepare(build(), elements=[1])
    assert potential.float().prepared is None


def test_training_ends_the_prepared_form(build: Build) -> None:
    assert prepare(build(), elements=[1]).train().prepared is None


def test_graph_is_kept_when_asked_for(build: Build, cluster: System) -> None:
    prediction = prepare(build(), elements=[1])(cluster, create_graph=True)
    assert prediction.forces.grad_fn is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"long_range": "node"}, "long-range part 'node'"),
        ({"norm": False}, "no norms"),
        ({"variant": "legacy"}, "variant 'legacy'"),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_refused_by_name(build: Build, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"fused.*{reason}.*use implementation='blocked'"):
        prepare(build(**changes))


def test_missing_numba_is_an_obstacle(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert obstacles(build()) == ["the package numba is not installed"]


def test_self_check_refuses_a_wrong_form(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MIN_KNOTS", 12)
    monkeypatch.setattr(prepared, "KNOTS_PER_BASIS_FUNCTION", 1)
    with pytest.raises(ValueError, match=r"failed its self-check on elements \[1\].*use implementation='blocked'"):
        prepare(build(), elements=[1])


def test_self_check_says_how_large_differences_are(build: Build) -> None:
    (check,) = prepare(build(), elements=[1, 8]).prepared.checks
    assert 0.0 < check.force < TABLE_ERROR * check.largest_force


@pytest.mark.shared
@pytest.mark.parametrize(
    "folder",
    [
        "tiny_32x2L", "medium_64x3L_two_heads", "lmax3_qkdot_truncated_neighbors", "qkdots_sigmoid_mixed_orders",
    ],
)  # fmt: skip
def test_prepared_form_gives_official_forces(shared_dir: Path, folder: str) -> None:
    path = shared_dir / "fixtures" / "e2former_v2" / folder
    with h5py.File(path / "cases.h5") as file:
        for name, case in file["cases"].items():
            potential = _official(path, case.attrs["head"])
            arrays = {key: case[key][()] for key in ("positions", "numbers", "cell", "pbc")}
            state = {"charge": int(case.attrs["charge"]), "spin": int(case.attrs["multiplicity"])}
            prediction = potential(System.single(**arrays, **state), properties=frozenset({"energy", "forces"}))
            difference = abs(prediction.forces.numpy() - case["forces"][()]).max()
            assert difference < TABLE_ERROR, name


@cache
def _official(path: Path, head: str) -> EnergyPotential:
    return prepare(load_potential(path / "checkpoint.pt", head=head, dtype="float64"), elements=[1])
