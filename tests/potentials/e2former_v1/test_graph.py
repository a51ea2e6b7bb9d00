"""Edges of the blocks and pairs of the encoders, with and without the official losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v1 import graph
from e2former_calc.potentials.e2former_v1.expansion import periodic_images
from e2former_calc.potentials.e2former_v1.graph import attention_pairs, encoder_pairs, truncated_atoms
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System

CELL = np.array([[4.4, 0.0, 0.0], [0.5, 4.7, 0.0], [-0.3, 0.4, 4.1]])


@pytest.fixture
def crystal() -> System:
    positions = [[0.4, 0.5, 0.6], [2.4, 2.6, 2.3], [1.1, 3.2, 0.9]]
    return System.single(positions, [11, 17, 8], cell=CELL, pbc=True)


def keys(pairs: NeighborList) -> set[tuple[int, ...]]:
    rows = torch.cat([pairs.center[:, None], pairs.source[:, None], pairs.shift], dim=1)
    return {tuple(row) for row in rows.tolist()}


def test_without_cap_every_pair_within_the_cutoff_is_an_edge(config, crystal):
    complete = neighbor_list(crystal, 4.0)
    assert keys(attention_pairs(config, crystal, complete, "none")) == keys(complete)


def test_official_cap_keeps_the_nearest(config, crystal):
    complete = neighbor_list(crystal, 4.0)
    few = replace(config, max_neighbors=5)
    assert keys(attention_pairs(few, crystal, complete, "official")) == keys(complete.nearest(crystal, 5))
    assert truncated_atoms(few, crystal, complete).tolist() == [True, True, False]


def test_periodic_and_molecular_structures_have_their_own_radius(config, crystal, methanol):
    wide = replace(config, variant="microsoft", max_radius=2.0)
    system = System.stack([crystal, methanol])
    pairs = attention_pairs(wide, system, neighbor_list(system, wide.cutoff), "none")
    expected = len(neighbor_list(crystal, 4.0).center) + len(neighbor_list(methanol, 2.0).center)
    assert pairs.n_edges == expected


def test_few_repetitions_of_the_cell_lose_pairs(config, crystal):
    small = replace(config, image_limit=0, max_neighbors=100)
    complete = neighbor_list(crystal, 4.0)
    found = attention_pairs(small, crystal, complete, "official")
    assert 0 < found.n_edges < complete.n_edges
    assert truncated_atoms(small, crystal, complete).all()


def test_few_image_atoms_lose_pairs(config, crystal):
    complete = neighbor_list(crystal, 4.0)
    small = replace(config, image_atoms=8, max_neighbors=100)
    assert attention_pairs(small, crystal, complete, "official").n_edges < complete.n_edges
    large = replace(config, image_atoms=1000, max_neighbors=100)
    assert attention_pairs(large, crystal, complete, "official").n_edges == complete.n_edges


@pytest.mark.parametrize("changes", [{}, {"max_neighbors": 4}, {"image_limit": 0}, {"image_atoms": 9}])
def test_short_way_to_the_official_edges_leads_to_the_same_edges(config, crystal, monkeypatch, changes):
    complete, chosen = neighbor_list(crystal, 4.0), replace(config, **changes)
    found = attention_pairs(chosen, crystal, complete, "official")
    monkeypatch.setattr(graph, "_nothing_else_is_lost", lambda *arguments: False)
    assert keys(attention_pairs(chosen, crystal, complete, "official")) == keys(found)


def test_edges_do_not_depend_on_the_cell_that_atoms_are_given_in(config, crystal):
    moves = np.array([[3, 0, -2], [0, 0, 0], [-1, 5, 0]])
    moved = crystal.with_positions(crystal.positions + torch.from_numpy(moves @ CELL))
    counts = [
        attention_pairs(config, system, neighbor_list(system, 4.0), "official").counts.tolist()
        for system in (crystal, moved)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("official", [True, False])
def test_directions_without_periodicity_have_no_images(config, crystal, official):
    slab = replace(crystal, pbc=torch.tensor([[True, True, False]]))
    images = periodic_images(config, slab, 0, official=official, wrap=False)
    assert not images.shift[:, 2].any()
    assert images.shift[:, :2].any()


def test_encoder_of_microsoft_sees_every_atom_of_a_molecule(config, methanol):
    micro = replace(config, variant="microsoft", encoder="dit", max_radius=1.0, pbc_max_radius=1.0)
    pairs = encoder_pairs(micro, methanol, neighbor_list(methanol, 1.0), "official")
    assert pairs.counts.tolist() == [6] * 6


def test_encoder_of_modular_sees_itself_and_what_is_in_reach(config, methanol):
    modular = replace(config, variant="modular", encoder="dit", pbc_max_radius=1.5)
    pairs = encoder_pairs(modular, methanol, neighbor_list(methanol, 4.0), "none")
    atoms = torch.arange(6)
    assert {(i, i, 0, 0, 0) for i in atoms.tolist()} <= keys(pairs)
    assert pairs.n_edges == 6 + neighbor_list(methanol, 1.5).n_edges
