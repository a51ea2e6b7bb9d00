"""The variant "legacy": padded columns, their part in the maximum, its own envelope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.e2former_v2.graph import select_graphs, truncated_atoms
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

Build = Callable[..., E2FormerV2]


@pytest.fixture(scope="module")
def legacy(config: E2FormerV2Config) -> E2FormerV2Config:
    return replace(config, variant="legacy", pbc_max_radius=4.0)


@pytest.fixture(scope="module")
def comet() -> System:
    """A clump of five atoms with one more atom further away: their neighbour counts differ."""
    clump = [[0.0, 0.0, 0.0], [1.1, 0.1, 0.0], [0.1, 1.2, 0.1], [0.0, 0.2, 1.3], [1.0, 1.1, 1.2]]
    return System.single([*clump, [4.6, 0.3, 0.2]], [6, 8, 1, 1, 8, 6])


def _graph(config: E2FormerV2Config, system: System, cap: str = "official") -> NeighborList:
    (graph,) = select_graphs(config, system, neighbor_list(system, config.cutoff), cap)  # type: ignore[arg-type]
    return graph


def _lengths(graph: NeighborList, system: System) -> torch.Tensor:
    return graph.vectors(system.positions, system.cell, system.batch).norm(dim=1)


def _potential(model: E2FormerV2, **options: object) -> EnergyPotential:
    reference = {"test": torch.zeros(20)}
    elements = frozenset(range(1, 19))
    return EnergyPotential(
        model,
        head="test",
        reference_energies=reference,
        elements=elements,
        force_mode="gradient",
        **options,  # type: ignore[arg-type]
    )


def test_every_center_has_as_many_columns_as_the_most_crowded_one(legacy: E2FormerV2Config, comet: System) -> None:
    graph = _graph(legacy, comet)
    crowded = int(neighbor_list(comet, 4.0).counts.max())
    assert set(graph.counts.tolist()) == {crowded}


def test_columns_are_the_nearest_images(legacy: E2FormerV2Config, comet: System) -> None:
    graph = _graph(legacy, comet)
    distances = torch.cdist(comet.positions, comet.positions).fill_diagonal_(torch.inf)
    for atom in range(comet.n_atoms):
        nearest = distances[atom].sort().indices[: int(graph.counts[atom])]
        assert sorted(graph.source[graph.center == atom].tolist()) == sorted(nearest.tolist())


def test_columns_beyond_the_cutoff_exist_and_reach_past_it(legacy: E2FormerV2Config, comet: System) -> None:
    beyond = _lengths(_graph(legacy, comet), comet) > legacy.max_radius
    assert 0 < int(beyond.sum()) < len(beyond)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_cap_limits_the_columns(legacy: E2FormerV2Config, comet: System, count: int) -> None:
    capped = replace(legacy, max_neighbors=count)
    assert set(_graph(capped, comet).counts.tolist()) == {count}
    assert set(_graph(capped, comet, "none").counts.tolist()) == {5}


def test_columns_tell_distances_apart_down_to_a_billionth(legacy: E2FormerV2Config) -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 1.5 - 1e-8, 0.0]], [6, 8, 8])
    assert _graph(replace(legacy, max_neighbors=1), system).source[0] == 2


@pytest.mark.parametrize(("count", "truncated"), [(None, 0), (5, 0), (4, 2), (1, 6)])
def test_truncated_atoms_are_those_that_lose_pairs(
    legacy: E2FormerV2Config, comet: System, count: int | None, truncated: int
) -> None:
    found = truncated_atoms(replace(legacy, max_neighbors=count), comet, neighbor_list(comet, 4.0))
    assert int(found.sum()) == truncated


def test_an_isolated_atom_is_its_own_excluded_column(legacy: E2FormerV2Config) -> None:
    graph = _graph(legacy, System.single([[0.3, 0.2, 0.1]], [2]))
    assert (graph.center.tolist(), graph.source.tolist(), graph.shift.tolist()) == ([0], [0], [[0, 0, 0]])


def test_an_isolated_atom_has_an_energy_and_no_force(build: Build, legacy: E2FormerV2Config) -> None:
    potential = _potential(build(variant="legacy", pbc_max_radius=4.0))
    prediction = potential(System.single([[0.3, 0.2, 0.1]], [2]))
    assert prediction.energy.isfinite().all()
    assert prediction.forces.abs().max() == 0


def test_images_come_from_the_reach_of_periodic_images(legacy: E2FormerV2Config) -> None:
    crystal = System.single([[0.1, 0.2, 0.3], [1.4, 1.6, 1.5]], [11, 17], cell=2.9 * np.eye(3), pbc=True)
    complete = neighbor_list(crystal, legacy.max_radius)
    graph = _graph(replace(legacy, max_neighbors=None), crystal)
    inside = graph.select(_lengths(graph, crystal) <= legacy.max_radius)
    assert inside.center.equal(complete.center)
    assert inside.source.equal(complete.source)
    assert inside.shift.equal(complete.shift)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_image_limit_bounds_the_shifts(legacy: E2FormerV2Config, limit: int) -> None:
    chain = System.single([[0.0, 0.0, 0.0]], [2], cell=np.diag([1.2, 0.0, 0.0]), pbc=(True, False, False))
    graph = _graph(replace(legacy, image_limit=limit), chain)
    assert int(graph.shift.abs().max()) == limit


def test_columns_do_not_depend_on_the_cell_an_atom_is_given_in(legacy: E2FormerV2Config) -> None:
    positions, moves = np.array([[0.3, 0.2, 0.1], [1.9, 0.4, 0.3]]), np.array([[2, -3, 0], [-5, 1, 4]])
    found = []
    for shift in (0 * moves, moves):
        crystal = System.single(positions + 2.9 * shift, [11, 17], cell=2.9 * np.eye(3), pbc=True)
        found.append(_lengths(_graph(legacy, crystal), crystal).sort().values)
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)


def test_a_batch_has_the_columns_of_its_structures(legacy: E2FormerV2Config, comet: System, salt: System) -> None:
    together = _graph(legacy, System.stack([comet, salt]))
    alone = [_graph(legacy, system).counts for system in (comet, salt)]
    assert together.counts.equal(torch.cat(alone))


def test_columns_beyond_the_cutoff_change_the_energy(build: Build, comet: System) -> None:
    """They raise the maximum of the softmax although their weight is zero."""
    energies = []
    for extra in (0.0, 1.0):
        positions = comet.positions.numpy() + np.array([[0.0]] * 5 + [[extra]]) * np.array([[1.0, 0.0, 0.0]])
        potential = _potential(build(variant="legacy", pbc_max_radius=4.0))
        energies.append(potential(System.single(positions, comet.numbers.numpy())).energies[1])
    gap = torch.cdist(comet.positions[1:2], comet.positions[5:]).item()
    assert gap < 4.0 < gap + 1.0
    assert abs(energies[0] - energies[1]).item() > 1e-6


def test_envelope_has_exponent_three(build: Build) -> None:
    pair = System.single([[0.0, 0.0, 0.0], [2.3, 0.0, 0.0]], [6, 8])
    envelopes = []
    model = build(variant="legacy", pbc_max_radius=4.0)
    model.embedding.register_forward_pre_hook(lambda module, inputs: envelopes.append(inputs[0].envelope))
    _potential(model)(pair, properties=frozenset({"energy"}))
    x = 2.3 / 4.0
    assert envelopes[0].tolist() == pytest.approx([1 - 10 * x**3 + 15 * x**4 - 6 * x**5] * 2, rel=1e-13)


def test_directions_are_divided_by_a_slightly_longer_distance(build: Build) -> None:
    seen = []
    model = build(variant="legacy", pbc_max_radius=4.0)
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    _potential(model)(System.single([[0.0, 0.0, 0.0], [2.3, 0.0, 0.0]], [6, 8]), properties=frozenset({"energy"}))
    assert seen[0].direction[0, 0].item() == pytest.approx(-2.3 / (2.3 + 1e-8), rel=1e-14)
    assert seen[0].harmonics[0, 1].item() == pytest.approx(-(3**0.5), rel=1e-14)


def test_energy_differs_from_the_main_variant(build: Build, methanol: System) -> None:
    variants = ({}, {"variant": "legacy", "pbc_max_radius": 4.0})
    energies = [_potential(build(**changes))(methanol).energy.item() for changes in variants]
    assert abs(energies[0] - energies[1]) > 1e-4


def test_long_range_is_refused(legacy: E2FormerV2Config, methanol: System) -> None:
    with pytest.raises(ValueError, match="is not available with variant='legacy'"):
        _graph(replace(legacy, long_range="node"), methanol)
