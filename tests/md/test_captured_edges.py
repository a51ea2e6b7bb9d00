"""Edges chosen by operations of fixed shape are those of a fresh list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from e2former_calc.md.captured_edges import EdgeRule, SelectedEdges, capacity_for, edge_rules, enlarged
from e2former_calc.md.captured_network import pad_coordinates
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.padding import Capacity, PaddedGraph, pad_system
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

RULES = [
    EdgeRule(4.1),
    EdgeRule(4.1, nearest=3),
    EdgeRule(3.0, nearest=1000),
    EdgeRule(4.1, lower=1.5, heavy_sources=True),
    EdgeRule(4.1, lower=1.0, heavy_sources=True, nearest=2),
]


def single(atoms: Atoms) -> System:
    return System.single(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)


def mixed(seed: int) -> System:
    """A molecule, a triclinic crystal in which atoms see several images of each other, and an atom alone."""
    water, crystal = molecule("CH3OH"), bulk("Ar", "fcc", a=4.4)
    crystal = crystal.repeat((1, 2, 1))
    for atoms in (water, crystal):
        atoms.rattle(0.2, seed=seed)
    return System.stack([single(water), single(crystal), single(Atoms("H"))])


def padded(system: System) -> System:
    return pad_system(system, Capacity(system.n_structures + 1, system.n_atoms + 1, ()))


def chosen(edges: SelectedEdges, system: System) -> tuple[list[PaddedGraph], list[int]]:
    graphs, counts = edges.graphs(edges.inputs, *pad_coordinates(system.positions, system.cell))
    return graphs, [int(count) for count in counts]


def expected(rule: EdgeRule, system: System) -> NeighborList:
    fresh = neighbor_list(system, rule.upper)
    squared = squared_length(fresh.vectors(system.positions, system.cell, system.batch))
    fresh = fresh.select((squared >= rule.lower**2) & ((system.numbers[fresh.source] > 1) | (not rule.heavy_sources)))
    return fresh if rule.nearest is None else fresh.nearest(system, rule.nearest)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_the_choice_equals_a_fresh_list_to_the_last_bit(seed: int, rule: EdgeRule) -> None:
    system = mixed(seed)
    edges = SelectedEdges([rule], padded(system))
    edges.load(system, neighbor_list(system, 5.0))
    moves = torch.from_numpy(np.random.default_rng(seed).uniform(-0.25, 0.25, system.positions.shape))
    system = system.with_positions(system.positions + moves)
    (graph,), (count,) = chosen(edges, system)
    fresh = expected(rule, system)
    assert count == fresh.n_edges
    assert torch.equal(graph.center[:count], fresh.center)
    assert torch.equal(graph.source[:count], fresh.source)
    assert torch.equal(graph.row_ptr[:-1], fresh.row_ptr)
    vector = system.positions[fresh.center] - system.positions[fresh.source] - graph.image[:count]
    assert torch.equal(vector, fresh.vectors(system.positions, system.cell, system.batch))


def test_free_slots_join_the_atom_of_padding_with_itself_at_the_cutoff() -> None:
    system = mixed(1)
    edges = SelectedEdges(RULES[:1], padded(system))
    edges.load(system, neighbor_list(system, 5.0))
    (graph,), (count,) = chosen(edges, system)
    assert count < edges.capacity[1] == len(graph.center) == int(graph.row_ptr[-1])
    assert set(graph.center[count:].tolist()) == set(graph.source[count:].tolist()) == {system.n_atoms}
    assert graph.image[count:].unique(dim=0).tolist() == [[4.1, 0.0, 0.0]]


def test_too_many_edges_are_counted_and_stay_inside_the_arrays() -> None:
    system = single(bulk("Ar", "fcc", a=4.4).repeat(2))
    edges = SelectedEdges([EdgeRule(3.0)], padded(system))
    edges.load(replace(system, positions=system.positions * 1.2, cell=system.cell * 1.2), neighbor_list(system, 6.0))
    (graph,), (count,) = chosen(edges, replace(system, positions=system.positions * 0.8, cell=system.cell * 0.8))
    assert count > edges.capacity[1] == len(graph.center)
    assert int(graph.row_ptr.max()) == edges.capacity[1]
    assert edges.grow([count])
    assert edges.capacity[1] >= count
    assert not edges.grow([count])


def test_arrays_are_kept_while_lists_fit() -> None:
    system = mixed(2)
    edges = SelectedEdges(RULES[:1], padded(system))
    neighbors = neighbor_list(system, 5.0)
    assert edges.load(system, neighbors)
    before = edges.inputs
    assert not edges.load(system, neighbors.within(system, 4.2))
    assert edges.inputs is before
    assert chosen(edges, system)[1] == [expected(RULES[0], system).n_edges]


@pytest.mark.parametrize(("edges", "replicas"), [(0, 1), (1, 3), (1000, 4), (1001, 7)])
def test_capacities_have_room_to_spare_in_equal_shares(edges: int, replicas: int) -> None:
    size = capacity_for(edges, replicas)
    assert size % replicas == 0
    assert 1.2 * edges <= size < 1.2 * max(edges, 1) + 32 * replicas


def test_capacities_never_shrink() -> None:
    assert enlarged([100, 200], [50, 200], 1) == ([100, 200], False)
    assert enlarged([100, 200], [50, 201], 1) == ([100, 256], True)


def test_only_simple_selections_have_rules(tiny: EnergyPotential) -> None:
    crystal, water = single(bulk("Cu")), single(molecule("H2O"))
    assert edge_rules(tiny, water) == (EdgeRule(tiny.cutoff, nearest=32),)
    assert tiny.neighbor_cap == "official"
    assert edge_rules(tiny, crystal) is None
