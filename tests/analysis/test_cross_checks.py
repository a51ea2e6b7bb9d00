"""The same observables by independent programs, where these are installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.analysis.correlation import mean_squared_displacement
from e2former_calc.analysis.distances import distance_distribution
from e2former_calc.analysis.geometry import radii_of_gyration, rmsd
from e2former_calc.analysis.internal_coordinates import dihedral_angles
from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.rdf import radial_distributions
from e2former_calc.analysis.trajectory import Trajectory

SINGLE = 2e-6
"""Rounding of positions of some Å in single precision, in Å."""


@pytest.fixture
def mda() -> Iterator[Any]:
    """MDAnalysis; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("MDAnalysis")


@pytest.fixture
def freud() -> Iterator[Any]:
    """The freud library; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("freud")


@pytest.fixture
def liquid(rng: np.random.Generator) -> Trajectory:
    """Atoms of two elements at random in a box, in the precision of single numbers."""
    lengths = np.array([16.0, 18.0, 20.0])
    positions = (rng.random((30, 120, 3)) * lengths).astype(np.float32).astype(np.float64)
    return Trajectory(positions, np.repeat([8, 1], [40, 80]), cell=np.diag(lengths), times_fs=10.0 * np.arange(30))


@pytest.fixture
def shaking(rng: np.random.Generator) -> Trajectory:
    """Ethanol in the precision of single numbers."""
    atoms = molecule("CH3CH2OH")
    positions = (atoms.positions + 0.1 * rng.normal(size=(40, 9, 3))).astype(np.float32).astype(np.float64)
    return Trajectory(positions, atoms.numbers)


def universe(mda: Any, trajectory: Trajectory) -> Any:
    """The trajectory as MDAnalysis has it."""
    found = mda.Universe.empty(trajectory.n_atoms, trajectory=False)
    found.add_TopologyAttr("names", trajectory.symbols)
    found.add_TopologyAttr("masses", trajectory.masses)
    box = None
    if trajectory.is_periodic:
        box = np.array([*np.diagonal(trajectory.cells()[0]), 90.0, 90.0, 90.0], dtype=np.float32)
    memory = pytest.importorskip("MDAnalysis.coordinates.memory").MemoryReader
    found.load_new(trajectory.positions.astype(np.float32), format=memory, dimensions=box)
    return found


@pytest.mark.parametrize("pair", [("O", "O"), ("O", "H"), ("H", "H")])
def test_g_of_r_is_that_of_mdanalysis(mda: Any, liquid: Trajectory, pair: tuple[str, str]) -> None:
    rdf = pytest.importorskip("MDAnalysis.analysis.rdf")
    everything = universe(mda, liquid)
    groups = [everything.select_atoms(f"name {symbol}") for symbol in pair]
    same = pair[0] == pair[1]
    if same:
        groups[1] = groups[0]
    other = rdf.InterRDF(*groups, nbins=60, range=(1e-6, 7.0), exclusion_block=(1, 1) if same else None, norm="none")
    counts = other.run().results.count
    (ours,) = radial_distributions(liquid, [pair], RdfSettings(r_max_A=7.0, n_bins=60))
    own = ours.g.numerators.sum(axis=0) * 4 / 3 * np.pi * np.diff(ours.g.edges**3)
    moved = np.abs(own - counts).sum()
    assert moved <= max(4, 10 * SINGLE / (7.0 / 60) * counts.sum())


def test_h_of_r_is_that_of_mdanalysis(mda: Any, shaking: Trajectory) -> None:
    rdf = pytest.importorskip("MDAnalysis.analysis.rdf")
    atoms = universe(mda, shaking).atoms
    other = rdf.InterRDF(atoms, atoms, nbins=50, range=(1e-6, 5.0), exclusion_block=(1, 1), norm="none").run()
    ours = distance_distribution(shaking, r_max_A=5.0, n_bins=50).total
    own = 2.0 * ours.numerators.sum(axis=0) * 5.0 / 50
    assert np.abs(own - other.results.count).sum() <= 4


def test_gyration_and_rmsd_are_those_of_mdanalysis(mda: Any, shaking: Trajectory) -> None:
    rms = pytest.importorskip("MDAnalysis.analysis.rms")
    other = universe(mda, shaking)
    radii = np.array([other.atoms.radius_of_gyration() for _ in other.trajectory])
    np.testing.assert_allclose(radii_of_gyration(shaking), radii, atol=10 * SINGLE)
    deviations = [rms.rmsd(frame, shaking.positions[0], center=True, superposition=True) for frame in shaking.positions]
    np.testing.assert_allclose(rmsd(shaking, shaking.positions[0]), deviations, atol=10 * SINGLE)


def test_dihedrals_are_those_of_mdanalysis(mda: Any, shaking: Trajectory) -> None:
    distances = pytest.importorskip("MDAnalysis.lib.distances")
    four = np.array([[3, 0, 1, 2], [0, 1, 2, 8]])
    ours = dihedral_angles(shaking, four)
    for k, atoms in enumerate(four):
        others = distances.calc_dihedrals(*(shaking.positions[:, atom] for atom in atoms))
        difference = (ours[:, k] - np.degrees(others) + 180.0) % 360.0 - 180.0
        np.testing.assert_allclose(difference, 0.0, atol=1e-3)


def test_g_of_r_is_that_of_freud(freud: Any, liquid: Trajectory) -> None:
    other = freud.density.RDF(bins=30, r_max=7.0, r_min=0.0, normalization_mode="finite_size")
    box = freud.box.Box(*np.diagonal(liquid.cells()[0]))
    for frame in liquid.positions:
        other.compute((box, box.wrap(frame)), reset=False)
    (ours,) = radial_distributions(liquid, [("*", "*")], RdfSettings(r_max_A=7.0, n_bins=30))
    assert np.abs(ours.g.values() - np.asarray(other.rdf))[2:].max() < 0.01


def test_displacements_are_those_of_freud(freud: Any, rng: np.random.Generator) -> None:
    walk = rng.normal(size=(100, 10, 3)).cumsum(axis=0)
    other = freud.msd.MSD(mode="window").compute(walk.astype(np.float32)).msd
    np.testing.assert_allclose(mean_squared_displacement(walk), other, rtol=1e-4, atol=1e-3)
