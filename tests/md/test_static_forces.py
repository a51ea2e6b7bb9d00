"""Arrays of fixed shape change nothing: results are those of an evaluation with a fresh list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from e2former_calc.md.captured_edges import HostEdges, SelectedEdges
from e2former_calc.md.captured_replay import Function, Recorder, Replay, compiled, plain, recorder_for, traced
from e2former_calc.md.forces import PotentialForces
from e2former_calc.md.static_forces import CAPACITY, StaticForces, potential_forces
from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.compiled import compiler_available

V2 = E2FormerV2Config(
    heads=("test",), channels=8, lmax=2, conv_multiplicity=2, num_layers=1, num_heads=4, head_width=4, num_basis=12,
    max_radius=4.0, orders=("first",), max_neighbors=80, avg_degree=8.0,
)  # fmt: skip
V1 = E2FormerV1Config(
    variant="scitix", heads=("test",), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=2, head_width=4,
    num_basis=12, max_radius=4.0, pbc_max_radius=4.0, max_neighbors=80, orders=("first",), feed_forward=("s3",),
    encoder_channels=8, encoder_hidden=12, encoder_heads=2, encoder_layers=1, gradient_forces=True,
)  # fmt: skip
LONG = {"long_range": "node", "long_lower": 0.5, "long_upper": 6.0, "long_layers": 1}
BOUND = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Largest difference of forces of about 1 eV/Å: some thousand rounding errors."""


def network(config: Any, *, cap: str = "none", forces: str = "gradient", **changes: Any) -> EnergyPotential:
    """Random weights in float64."""
    config = replace(config, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = E2FormerV1(config) if isinstance(config, E2FormerV1Config) else E2FormerV2(config)
    return EnergyPotential(
        model.eval(), head="test", reference_energies={"test": torch.linspace(-9, 0, 119)},
        elements=frozenset(range(1, 80)), force_mode=forces, neighbor_cap=cap,
    ).double()  # fmt: skip


def like_a_cuda_graph(function: Function, inputs: Sequence[torch.Tensor]) -> Replay:
    """A trace that writes its results to the same places every time."""
    replay = traced(function, inputs)
    places = [tensor.clone() for tensor in replay()]

    def again() -> list[torch.Tensor]:
        for place, values in zip(places, replay(), strict=True):
            place.copy_(values)
        return places

    return again


def stacked(*images: Atoms) -> System:
    return System.stack([System.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc) for a in images])


def ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def crystal() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.2)
    atoms.rattle(0.1, seed=1)
    return atoms


def assert_equal_along_a_walk(
    static: StaticForces, potential: EnergyPotential, system: System, *, strain: float = 0.0, steps: int = 5
) -> None:
    """Against fresh lists, along a random walk of positions and cell."""
    fresh = PotentialForces(potential, system, skin=0.0)
    rng = np.random.default_rng(1)
    positions, cell, stress = system.positions, system.cell, bool(system.pbc.all())
    for _ in range(steps):
        deform = torch.eye(3).double() + strain * torch.from_numpy(rng.normal(size=(3, 3)))
        positions = positions @ deform + torch.from_numpy(rng.normal(size=positions.shape)) * 0.05
        cell = cell @ deform
        found, expected = (f.evaluate(positions, cell, stress=stress) for f in (static, fresh))
        bound = BOUND[potential.dtype] * float(expected.forces.abs().max().clamp(min=1.0))
        assert torch.allclose(found.forces, expected.forces, rtol=0, atol=bound)
        assert torch.allclose(found.energy, expected.energy, rtol=1e-15, atol=bound)
        assert torch.allclose(found.stress, expected.stress, rtol=0, atol=bound, equal_nan=True)


MODELS = {
    "v2": (V2, {}),
    "v2 with few neighbours": (V2, {"cap": "official", "max_neighbors": 4}),
    "v2 with long range": (V2, {"cap": "official", **LONG, "norm": True}),
    "v2 with direct forces": (V2, {"forces": "head", "force_head": "linear"}),
    "v2 legacy": (V2, {"variant": "legacy", "max_neighbors": 5, "cap": "official"}),
    "v1": (V1, {}),
    "v1 with an encoder of all pairs": (V1, {"variant": "microsoft", "cap": "official"}),
}


@pytest.mark.parametrize(
    ("model", "recorder"),
    [*((name, plain) for name in MODELS), ("v2 with few neighbours", traced), ("v2 with long range", traced),
     ("v1", traced)],
)  # fmt: skip
def test_molecules_have_the_forces_of_a_fresh_list(model: str, recorder: Recorder) -> None:
    config, changes = MODELS[model]
    potential, system = network(config, **changes), stacked(ethanol(), molecule("H2O"), Atoms("H"))
    static = StaticForces(potential, system, skin=0.4, recorder=recorder)
    assert_equal_along_a_walk(static, potential, system)
    assert 1 < static.rebuilds < 5


@pytest.mark.parametrize("model", ["v2", "v2 with few neighbours", "v1"])
def test_crystals_that_are_strained_have_the_stress_of_a_fresh_list(model: str) -> None:
    config, changes = MODELS[model]
    potential, system = network(config, **changes), stacked(crystal(), crystal().repeat((2, 1, 1)))
    static = StaticForces(potential, system, skin=0.8, recorder=plain)
    assert_equal_along_a_walk(static, potential, system, strain=2e-3)


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_forces_are_those_of_a_fresh_list(dtype: torch.dtype) -> None:
    potential, system = network(V2).to(dtype), stacked(ethanol(), molecule("H2O"))
    static = StaticForces(potential, system, skin=0.4, recorder=compiled)
    assert_equal_along_a_walk(static, potential, system)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_graph_has_the_forces_of_a_fresh_list() -> None:
    potential, system = network(V2).cuda(), stacked(ethanol(), molecule("H2O")).to("cuda")
    recorder = recorder_for("cuda-graph", torch.device("cuda"))
    assert_equal_along_a_walk(StaticForces(potential, system, skin=0.4, recorder=recorder), potential, system)


@pytest.mark.parametrize("model", ["v2", "v1"])
def test_a_dense_structure_gets_larger_arrays(model: str) -> None:
    potential, system = network(*MODELS[model][:1]), stacked(crystal().repeat(2))
    static = StaticForces(potential, system, skin=0.3, recorder=plain)
    for scale, recordings in ((1.3, 1), (1.0, 2), (1.3, 2)):
        cell, positions = scale * system.cell, scale * system.positions
        found = static.evaluate(positions, cell, stress=False)
        expected = PotentialForces(potential, system, skin=0.0).evaluate(positions, cell, stress=False)
        assert torch.allclose(found.forces, expected.forces, rtol=0, atol=1e-12)
        assert static.recordings == recordings


def test_edges_that_enter_the_cutoff_under_one_list_get_larger_arrays() -> None:
    angles = np.linspace(0.0, 2.0 * np.pi, 20, endpoint=False)
    ring = 6.68 * np.stack([np.cos(angles), np.sin(angles), 0.0 * angles], axis=1)
    potential, system = network(V2), stacked(Atoms("He20", positions=ring))
    static = StaticForces(potential, system, skin=0.8, recorder=plain)
    for scale in (1.0, 0.95):
        positions = scale * system.positions
        found = static.evaluate(positions, system.cell, stress=False)
        expected = PotentialForces(potential, system, skin=0.0).evaluate(positions, system.cell, stress=False)
        assert torch.allclose(found.forces, expected.forces, rtol=0, atol=1e-12)
    assert (static.rebuilds, static.recordings) == (1, 2)


def test_a_broken_replica_gives_nan_and_the_others_their_forces() -> None:
    potential, system = network(V2), stacked(molecule("H2O"), molecule("H2O"))
    static = StaticForces(potential, system, skin=0.5, recorder=plain)
    good = static.evaluate(system.positions, system.cell, stress=False)
    positions = system.positions.clone()
    positions[0] = torch.nan
    result = static.evaluate(positions, system.cell, stress=False)
    assert torch.isnan(result.energy).tolist() == [True, False]
    assert torch.allclose(result.forces[3:], good.forces[3:], rtol=0, atol=1e-13)
    assert "not finite" in static.failures[0]


def test_results_are_not_overwritten_by_the_next_evaluation() -> None:
    potential, system = network(V2), stacked(molecule("H2O"))
    static = StaticForces(potential, system, skin=0.5, recorder=like_a_cuda_graph)
    first = static.evaluate(system.positions, system.cell, stress=False)
    kept = first.forces.clone()
    static.evaluate(system.positions + 0.1 * torch.rand(3, 3), system.cell, stress=False)
    assert torch.equal(first.forces, kept)


class TestDeferredChecks:
    """With `check_every` above 1 nothing is read on the host until `settle`."""

    def walk(self, static: StaticForces, system: System, distances: list[float]) -> list[torch.Tensor]:
        """Forces with the first atom moved by these distances (Å) along x."""
        found = []
        for distance in distances:
            positions = system.positions.clone()
            positions[0, 0] += distance
            found.append(static.evaluate(positions, system.cell, stress=False).forces)
        return found

    def pair(self) -> tuple[StaticForces, StaticForces, System]:
        potential, system = network(V2), stacked(ethanol(), ethanol())
        deferred = StaticForces(potential, system, skin=0.4, recorder=plain, check_every=4)
        return deferred, StaticForces(potential, system, skin=0.0, recorder=plain), system

    def test_a_good_list_settles(self) -> None:
        deferred, fresh, system = self.pair()
        path = [0.0, 0.03, 0.06, 0.09]
        found, expected = self.walk(deferred, system, path), self.walk(fresh, system, path)
        assert deferred.settle()
        assert deferred.rebuilds == 1
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))

    def test_a_list_that_did_not_hold_does_not_settle_and_the_repeated_steps_are_right(self) -> None:
        deferred, fresh, system = self.pair()
        assert deferred.settle()
        path = [0.0, 0.1, 1.5, 3.0]
        self.walk(deferred, system, path)
        assert not deferred.settle()
        found, expected = self.walk(deferred, system, path), self.walk(fresh, system, path)
        assert deferred.settle()
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))

    def test_positions_that_are_not_finite_do_not_settle(self) -> None:
        deferred, _, system = self.pair()
        self.walk(deferred, system, [0.0, float("nan"), 0.0])
        assert not deferred.settle()

    def test_a_cell_that_changed_does_not_settle(self) -> None:
        potential, system = network(V2), stacked(crystal())
        deferred = StaticForces(potential, system, skin=0.4, recorder=plain, check_every=4)
        for cell in (system.cell, 1.0001 * system.cell):
            deferred.evaluate(system.positions, cell, stress=False)
        assert not deferred.settle()

    def test_arrays_that_overflowed_do_not_settle_and_grow(self) -> None:
        deferred, _, system = self.pair()
        self.walk(deferred, system, [0.0])
        assert deferred.settle()
        deferred.note(torch.tensor([0.0, 0.0, 1e6], dtype=torch.float64))
        assert not deferred.settle()

    def test_a_skin_that_would_be_used_up_is_renewed_in_time(self) -> None:
        deferred, _, system = self.pair()
        self.walk(deferred, system, [0.0, 0.05, 0.1, 0.15])
        assert deferred.settle()
        self.walk(deferred, system, [0.2, 0.25, 0.3, 0.35])
        assert deferred.settle()
        assert deferred.rebuilds == 2


def test_memory_brings_back_list_and_capacity_also_for_fewer_replicas() -> None:
    potential, system = network(V2), stacked(ethanol(), ethanol(), ethanol())
    static = StaticForces(potential, system, skin=0.5, recorder=plain)
    static.evaluate(system.positions, system.cell, stress=False)
    memory = static.memory()
    other = StaticForces(potential, stacked(ethanol()), skin=0.5, recorder=plain)
    part = {name: values[:9] if name == "positions" else values[1:2] for name, values in memory.items()}
    other.recall(part)
    assert 3 * other.memory()[CAPACITY].sum() == memory[CAPACITY].sum()
    assert torch.equal(other.memory()["positions"], system.positions[:9])
    assert other.rebuilds == 0


def test_memory_of_larger_arrays_replaces_the_present_ones() -> None:
    potential, system = network(V2), stacked(crystal().repeat(2))
    dense, sparse = (StaticForces(potential, system, skin=0.3, recorder=traced) for _ in "ab")
    dense.evaluate(0.8 * system.positions, 0.8 * system.cell, stress=False)
    first = dense.evaluate(system.positions, system.cell, stress=False)
    sparse.evaluate(1.4 * system.positions, 1.4 * system.cell, stress=False)
    sparse.recall(dense.memory())
    assert torch.equal(sparse.evaluate(system.positions, system.cell, stress=False).forces, first.forces)
    assert torch.equal(sparse.memory()[CAPACITY], dense.memory()[CAPACITY])


def test_the_memory_of_a_plain_provider_is_understood() -> None:
    potential, system = network(V2), stacked(ethanol())
    eager = potential_forces(potential, system, skin=0.5, execution="eager", fixed_cell=True)
    eager.evaluate(system.positions, system.cell, stress=False)
    static = potential_forces(potential, system, skin=0.5, execution="static", fixed_cell=True)
    static.recall(eager.memory())
    eager.recall(static.memory())
    forces = [p.evaluate(system.positions, system.cell, stress=False).forces for p in (eager, static)]
    assert torch.allclose(*forces, rtol=0, atol=1e-12)
    assert static.rebuilds == 0


def test_the_way_to_choose_edges_fits_the_model() -> None:
    molecules, crystals = stacked(ethanol()), stacked(crystal())
    kinds = {
        (name, cap, len(system.pbc.any(-1).nonzero())): type(
            StaticForces(network(config, cap=cap), system, skin=0.5, recorder=plain)._source
        )
        for name, config in (("v1", V1), ("v2", V2))
        for cap in ("none", "official")
        for system in (molecules, crystals)
    }
    selected = {key for key, kind in kinds.items() if kind is SelectedEdges}
    assert selected == {("v2", "none", 0), ("v2", "none", 1), ("v2", "official", 0)}
    assert {kind for key, kind in kinds.items() if key not in selected} == {HostEdges}


def test_potentials_of_other_kinds_are_refused(potentials: Any, cluster: Atoms) -> None:
    with pytest.raises(ValueError, match=r"LennardJones is no EnergyPotential, .*; use execution='eager'"):
        StaticForces(potentials.LennardJones(), stacked(cluster), skin=0.5, recorder=plain)


def test_networks_without_elements_are_refused() -> None:
    class Looks(E2FormerV2):
        def forward(self, system: Any, edges: Any, *, head: str, forces: bool = False) -> Any:  # type: ignore[override]
            return super().forward(system, edges, head=head, forces=forces)

    potential = network(V2)
    potential.model = Looks(V2).eval()
    with pytest.raises(ValueError, match=r"Looks has no keyword `elements`.*; use execution='eager'"):
        StaticForces(potential, stacked(ethanol()), skin=0.5, recorder=plain)


def test_networks_in_training_are_refused() -> None:
    potential = network(V2)
    potential.model.train()
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\) first"):
        StaticForces(potential, stacked(ethanol()), skin=0.5, recorder=plain)


def test_networks_with_clusters_are_refused() -> None:
    potential, system = network(V1, clusters="kmeans", variant="modular"), stacked(ethanol())
    static = StaticForces(potential, system, skin=0.5, recorder=plain)
    with pytest.raises(ValueError, match=r"edges of any length \(clusters\).*: use execution='eager'"):
        static.evaluate(system.positions, system.cell, stress=False)


def test_stress_of_direct_forces_is_refused() -> None:
    potential, system = network(V2, forces="head", force_head="linear"), stacked(crystal())
    static = StaticForces(potential, system, skin=0.5, recorder=plain)
    with pytest.raises(ValueError, match="no consistent stress: use forces='gradient'"):
        static.evaluate(system.positions, system.cell, stress=True)


@pytest.mark.parametrize(("changes", "message"), [({"check_every": 0}, "at least 1, got 0"), ({"skin": -1.0}, "skin")])
def test_bad_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticForces(network(V2), stacked(ethanol()), **{"skin": 0.5, "recorder": plain, **changes})
