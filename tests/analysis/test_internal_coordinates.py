"""Internal coordinates against ASE, and the backbone of peptides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.analysis.internal_coordinates import (
    InternalCoordinates,
    backbone,
    basin_fractions,
    bond_angles,
    compare_coordinates,
    dihedral_angles,
    dihedral_distributions,
    ramachandran_angles,
    rotatable_dihedrals,
)
from e2former_calc.analysis.readers import open_trajectory
from e2former_calc.analysis.topology import bonds_of_frame, covalent_bonds
from e2former_calc.analysis.trajectory import Trajectory


@pytest.fixture
def terms(ethanol: Trajectory) -> InternalCoordinates:
    return InternalCoordinates.from_bonds(bonds_of_frame(ethanol), 9)


def test_ethanol_has_13_angles_and_12_dihedrals(terms: InternalCoordinates) -> None:
    assert (len(terms.bonds), len(terms.angles), len(terms.dihedrals)) == (8, 13, 12)


def test_angles_are_those_of_ase(ethanol: Trajectory, terms: InternalCoordinates) -> None:
    expected = ethanol.to_atoms(4).get_angles(terms.angles)
    np.testing.assert_allclose(bond_angles(ethanol, terms.angles)[4], expected)


def test_dihedrals_are_those_of_ase(ethanol: Trajectory, terms: InternalCoordinates) -> None:
    difference = dihedral_angles(ethanol, terms.dihedrals)[4] - ethanol.to_atoms(4).get_dihedrals(terms.dihedrals)
    np.testing.assert_allclose((difference + 180) % 360 - 180, 0.0, atol=1e-8)


@pytest.mark.parametrize("angle", [-179.0, -60.0, 0.0, 35.0, 180.0])
def test_sign_of_dihedrals_is_that_of_iupac(angle: float) -> None:
    radians = np.radians(angle)
    positions = np.array([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [np.cos(radians), np.sin(radians), 1.0]]])
    found = dihedral_angles(Trajectory(positions, np.full(4, 6)), np.array([[0, 1, 2, 3]]))
    assert found[0, 0] == pytest.approx(angle, abs=1e-9)


def test_a_straight_angle_is_180_degrees() -> None:
    positions = np.array([[[-1.0, 0, 0], [0, 0, 0], [2.0, 0, 0]]])
    assert bond_angles(Trajectory(positions, np.full(3, 6)), np.array([[0, 1, 2]]))[0, 0] == pytest.approx(180.0)


def test_angles_are_taken_through_the_cell_boundary() -> None:
    atoms = molecule("H2O", cell=[8.0] * 3, pbc=True)
    expected = atoms.get_angle(1, 0, 2)
    atoms.wrap()
    found = bond_angles(Trajectory.from_atoms([atoms]), np.array([[1, 0, 2]]))
    assert found[0, 0] == pytest.approx(expected)


def test_ethanol_is_no_peptide(ethanol: Trajectory) -> None:
    with pytest.raises(ValueError, match="not a peptide"):
        backbone(ethanol.numbers, bonds_of_frame(ethanol))


def test_basins_share_all_frames(rng: np.random.Generator) -> None:
    phi, psi = rng.uniform(-180, 180, size=(2, 500))
    shares = basin_fractions(phi, psi)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert basin_fractions(np.array([-60.0]), np.array([-45.0]))["alpha_R"] == 1.0
    assert basin_fractions(np.array([-70.0]), np.array([145.0]))["PII"] == 1.0
    assert basin_fractions(np.array([-120.0]), np.array([130.0]))["beta"] == 1.0


def test_periodic_coordinates_have_no_seam(rng: np.random.Generator) -> None:
    reference = (180.0 + 5.0 * rng.normal(size=(400, 1)) + 180.0) % 360.0 - 180.0
    rollout = (184.0 + 5.0 * rng.normal(size=(400, 1)) + 180.0) % 360.0 - 180.0
    (found,) = compare_coordinates(rollout, reference, periodic=True)
    assert found.wasserstein == pytest.approx(4.0, abs=1.5)


@pytest.mark.shared
def test_backbone_of_a_capped_tripeptide(shared_dir: Path) -> None:
    peptide = open_trajectory(shared_dir / "datasets" / "md22_Ac-Ala3-NHMe_first98.h5")
    found = backbone(peptide.numbers, bonds_of_frame(peptide.read(0, 1)))
    assert found.phi.shape == found.psi.shape == (3, 4)
    np.testing.assert_array_equal(peptide.numbers[found.phi], [[6, 7, 6, 6]] * 3)
    np.testing.assert_array_equal(found.psi[:-1, 3], found.phi[1:, 1])
    phi, psi = ramachandran_angles(peptide, found)
    assert phi.shape == psi.shape == (98, 3)
    assert np.abs(np.diff(phi, axis=0)).max() < 20


@pytest.mark.shared
def test_left_handed_amino_acids_have_negative_phi(shared_dir: Path) -> None:
    import h5py

    with h5py.File(shared_dir / "datasets" / "ala2_backbone_md.h5") as file:
        run = Trajectory(file["positions"][::20], np.array([6, 7, 6, 6, 7]))
    assert np.mean(dihedral_angles(run, np.array([[0, 1, 2, 3]])) < 0) > 0.95


def test_ethanol_turns_about_two_bonds(ethanol: Trajectory) -> None:
    found = rotatable_dihedrals(ethanol.numbers, bonds_of_frame(ethanol))
    symbols = ["-".join(ethanol.symbols[atom] for atom in atoms) for atoms in found.tolist()]
    assert sorted(min(text, text[::-1]) for text in symbols) == ["C-C-O-H", "H-C-C-O"]


@pytest.mark.parametrize(("name", "axes"), [("C6H6", 0), ("H2O", 0), ("CH3CONH2", 2), ("butadiene", 3)])
def test_rings_and_ends_do_not_turn(name: str, axes: int) -> None:
    atoms = molecule(name)
    assert len(rotatable_dihedrals(atoms.numbers, covalent_bonds(atoms.numbers, atoms.positions))) == axes


def test_torsions_are_histograms_of_dihedrals(ethanol: Trajectory, terms: InternalCoordinates) -> None:
    curves = dihedral_distributions(ethanol, terms.dihedrals, n_bins=24, stop=30, n_blocks=4)
    angles = dihedral_angles(ethanol.read(0, 30), terms.dihedrals)
    for k, curve in enumerate(curves):
        expected = np.histogram(angles[:, k], np.linspace(-180, 180, 25), density=True)[0]
        np.testing.assert_allclose(curve.values(), expected, atol=1e-12)


def test_torsions_in_different_places_differ_by_one(ethanol: Trajectory, terms: InternalCoordinates) -> None:
    one = terms.dihedrals[:1]
    (first,) = dihedral_distributions(ethanol.read(0, 1), one, n_blocks=1)
    (same,) = dihedral_distributions(ethanol.read(0, 1), one, n_blocks=1)
    (mirrored,) = dihedral_distributions(replace(ethanol, positions=-ethanol.positions).read(0, 1), one, n_blocks=1)
    assert first.mae(same) == 0.0
    assert first.mae(mirrored) == pytest.approx(1.0)
