"""Invariances of every distribution: rotation, translation, order of the atoms, size of the cell, direction of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from ase.build import make_supercell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from e2former_calc.analysis.angles import Triple, angle_distribution
from e2former_calc.analysis.correlation import mean_squared_displacement
from e2former_calc.analysis.distances import distance_distribution
from e2former_calc.analysis.histograms import BlockedHistogram
from e2former_calc.analysis.internal_coordinates import dihedral_distributions
from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.rdf import radial_distributions
from e2former_calc.analysis.trajectory import Trajectory

FAR = RdfSettings(r_max_A=8.0, n_bins=40)
ONE_COUNT = 3
"""Distances that rounding may move across the edge of a bin."""

Observable = Callable[[Trajectory], BlockedHistogram]
OBSERVABLES: dict[str, Observable] = {
    "g(r)": lambda source: radial_distributions(source, [("O", "H")], FAR, n_blocks=2)[0].g,
    "ADF": lambda source: angle_distribution(source, Triple.neighbours("O", "H", "O", 4.0), n_bins=30, n_blocks=2),
}
gas_observables = pytest.mark.parametrize("observable", OBSERVABLES.values(), ids=OBSERVABLES.keys())


def counts(curve: BlockedHistogram) -> np.ndarray:
    return curve.numerators.sum(axis=0)


def assert_same_but_for_rounding(first: BlockedHistogram, second: BlockedHistogram) -> None:
    size = np.abs(counts(first)).sum()
    assert np.abs(counts(first) - counts(second)).sum() <= ONE_COUNT * size / first.denominators.sum() + 1e-9 * size
    np.testing.assert_allclose(first.denominators, second.denominators, rtol=1e-9, atol=ONE_COUNT)


@gas_observables
def test_nothing_differs_from_itself(gas: Trajectory, observable: Observable) -> None:
    few = gas.read(0, 20)
    assert observable(few).mae(observable(few)) == 0.0


@gas_observables
def test_rotation_of_atoms_and_cell_changes_nothing(gas: Trajectory, observable: Observable) -> None:
    few, turn = gas.read(0, 20), Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    turned = replace(few, positions=few.positions @ turn, cell=np.asarray(few.cell) @ turn)
    assert_same_but_for_rounding(observable(few), observable(turned))


@gas_observables
def test_order_of_the_atoms_changes_nothing(gas: Trajectory, observable: Observable, rng: np.random.Generator) -> None:
    few, order = gas.read(0, 20), rng.permutation(30)
    shuffled = Trajectory(few.positions[:, order], few.numbers[order], cell=few.cell)
    assert_same_but_for_rounding(observable(few), observable(shuffled))


@gas_observables
def test_direction_of_time_changes_nothing(gas: Trajectory, observable: Observable) -> None:
    few = gas.read(0, 20)
    backwards = replace(few, positions=few.positions[::-1])
    np.testing.assert_allclose(counts(observable(few)), counts(observable(backwards)), rtol=1e-12, atol=1e-12)


@gas_observables
def test_replicas_of_the_cell_change_nothing(gas: Trajectory, observable: Observable) -> None:
    frame = gas.read(0, 1)
    large = Trajectory.from_atoms([make_supercell(frame.to_atoms(0), np.diag([1, 2, 2]))])
    settings_ = replace(FAR, normalization="density")
    if observable is OBSERVABLES["g(r)"]:
        small, big = (radial_distributions(s, [("O", "H")], settings_, n_blocks=1)[0].g for s in (frame, large))
    else:
        small, big = observable(frame), observable(large)
    np.testing.assert_allclose(small.values(), big.values(), atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.5, 2.0))
def test_distances_scale_with_the_molecule(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    molecule = Trajectory(rng.normal(size=(5, 6, 3)), np.array([1, 1, 6, 6, 8, 8]))
    larger = replace(molecule, positions=scale * molecule.positions)
    first, second = (
        distance_distribution(m, r_max_A=r, n_bins=20).total for m, r in ((molecule, 4.0), (larger, 4 * scale))
    )
    assert np.abs(counts(first) * 4.0 / 20 - counts(second) * 4.0 * scale / 20).sum() <= ONE_COUNT


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_torsions_know_no_rotation_but_a_mirror(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain = Trajectory(rng.normal(size=(30, 4, 3)), np.full(4, 6))
    turn = Rotation.random(rng=rng).as_matrix()
    four = np.array([[0, 1, 2, 3]])
    (first,), (turned,), (mirrored,) = (
        dihedral_distributions(replace(chain, positions=positions), four, n_bins=12, n_blocks=1)
        for positions in (chain.positions, chain.positions @ turn + 3.0, -chain.positions)
    )
    np.testing.assert_allclose(first.values(), turned.values(), atol=1e-12)
    np.testing.assert_allclose(first.values()[::-1], mirrored.values(), atol=1e-12)


def test_displacements_know_no_frame_of_reference(gas: Trajectory, rng: np.random.Generator) -> None:
    walk = rng.normal(size=(200, 5, 3)).cumsum(axis=0)
    turned = walk @ Rotation.random(rng=rng).as_matrix() + 7.0
    first, second = mean_squared_displacement(walk), mean_squared_displacement(turned)
    np.testing.assert_allclose(first, second, rtol=1e-9)
    np.testing.assert_allclose(first, mean_squared_displacement(walk[::-1]), rtol=1e-9)
