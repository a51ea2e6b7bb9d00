"""Bonds, fragments and nearest images."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.analysis.topology import (
    bond_lengths,
    bonds_of_frame,
    covalent_bonds,
    fragment_counts,
    molecules,
    nearest_image,
    plane_spacings,
    whole_molecules,
)
from e2former_calc.analysis.trajectory import Trajectory


@pytest.mark.parametrize(("name", "bonds"), [("H2O", 2), ("CH3CH2OH", 8), ("C6H6", 12), ("CH4", 4)])
def test_chemical_bonds(name: str, bonds: int) -> None:
    atoms = molecule(name)
    assert len(covalent_bonds(atoms.numbers, atoms.positions)) == bonds


def test_bonds_reach_through_the_cell_boundary() -> None:
    atoms = molecule("H2O", cell=[8.0, 8.0, 8.0], pbc=True)
    atoms.wrap()
    found = bonds_of_frame(Trajectory.from_atoms([atoms]))
    assert found.tolist() == [[0, 1], [0, 2]]
    lengths = bond_lengths(Trajectory.from_atoms([atoms]), found)
    np.testing.assert_allclose(lengths, atoms.get_distances(0, [1, 2], mic=True)[None])


def test_two_molecules_are_two() -> None:
    assert molecules(6, np.array([[0, 1], [0, 2], [3, 4], [3, 5]])).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_molecule_that_breaks_is_counted_where_it_breaks(ethanol: Trajectory) -> None:
    positions = ethanol.positions.copy()
    positions[25:, 3] += 5.0
    counts = fragment_counts(replace(ethanol, positions=positions))
    assert counts.tolist() == [1] * 25 + [2] * 15


def test_nearest_image_is_the_shortest_within_half_the_plane_spacing(gas: Trajectory) -> None:
    cells = gas.cells()[:20]
    vectors = gas.positions[:20, 1:] - gas.positions[:20, :-1]
    found = np.linalg.norm(nearest_image(vectors, cells, np.ones(3, bool)), axis=-1)
    shifts = np.array(list(product(range(-2, 3), repeat=3)))
    shortest = np.linalg.norm(vectors[:, :, None] + (shifts @ cells)[:, None], axis=-1).min(axis=2)
    inside = shortest < 0.5 * plane_spacings(cells).min()
    assert inside.sum() > 50
    np.testing.assert_allclose(found[inside], shortest[inside])


def test_open_directions_are_not_wrapped() -> None:
    vectors = np.array([[[7.0, 7.0, 7.0]]])
    for cell in (8.0 * np.eye(3), np.array([[8.0, 0, 0], [1.0, 8.0, 0], [0, 0, 0.0]])):
        moved = nearest_image(vectors, cell[None], np.array([True, True, False]))
        assert moved[0, 0, 2] == pytest.approx(7.0)
        assert np.abs(moved[0, 0, :2]).max() < 4.5


def test_molecules_are_made_whole_across_boundaries(rng: np.random.Generator) -> None:
    cell = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [0.0, 1.0, 9.0]])
    atoms = molecule("CH3CH2OH")
    shaking = atoms.positions + 0.02 * rng.normal(size=(5, 9, 3)) + rng.random((5, 1, 3)) @ cell
    bonds = covalent_bonds(atoms.numbers, atoms.positions)
    cut = np.linalg.solve(cell.T, shaking.reshape(-1, 3).T).T % 1.0 @ cell
    found = whole_molecules(Trajectory(cut.reshape(5, 9, 3), atoms.numbers, cell=cell), bonds)
    np.testing.assert_allclose(found - found[:, :1], shaking - shaking[:, :1], atol=1e-9)


def test_open_molecules_are_whole(ethanol: Trajectory) -> None:
    np.testing.assert_array_equal(whole_molecules(ethanol, bonds_of_frame(ethanol)), ethanol.positions)
