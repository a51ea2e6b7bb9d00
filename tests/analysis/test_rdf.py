"""Laws and closed forms of g(r)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, make_supercell
from ase.neighborlist import neighbor_list

from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.rdf import MDSIM_RDF, RadialDistribution, first_shell_A, radial_distributions
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

PAIRS = [("O", "O"), ("O", "H"), ("H", "H"), ("*", "*")]
FAR = RdfSettings(r_max_A=11.0, n_bins=60)


def by_neighbour_list(trajectory: Trajectory, pair: tuple[str, str], edges: np.ndarray) -> np.ndarray:
    """Ordered pairs with all images, from ASE's list."""
    counts = np.zeros(len(edges) - 1)
    for frame in range(len(trajectory)):
        atoms = trajectory.to_atoms(frame)
        i, j, distance = neighbor_list("ijd", atoms, edges[-1])
        symbols = np.array(atoms.get_chemical_symbols())
        wanted = np.ones(len(i), bool) if pair[0] == "*" else (symbols[i] == pair[0]) & (symbols[j] == pair[1])
        counts += np.histogram(distance[wanted], edges)[0]
    return counts


def ordered_counts(result: RadialDistribution) -> np.ndarray:
    edges = result.g.edges
    return result.g.numerators.sum(axis=0) * 4 / 3 * np.pi * np.diff(edges**3)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("r_max_A", [3.5, 11.0], ids=["nearest images", "many images"])
def test_counts_are_those_of_a_neighbour_list(gas: Trajectory, pair: tuple[str, str], r_max_A: float) -> None:
    few = gas.read(0, 4)
    (result,) = radial_distributions(few, [pair], RdfSettings(r_max_A=r_max_A, n_bins=40))
    expected = by_neighbour_list(few, pair, result.g.edges)
    np.testing.assert_allclose(ordered_counts(result), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [RdfSettings(r_max_A=3.5, n_bins=20), MDSIM_RDF])
def test_cell_list_and_brute_force_agree(
    gas: Trajectory, settings: RdfSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = replace(settings, r_max_A=3.5)
    few = gas.read(0, 5)
    brute = radial_distributions(few, PAIRS, near)
    monkeypatch.setattr("e2former_calc.analysis.pair_counts.CELL_LIST_PAIRS", 0)
    for first, second in zip(brute, radial_distributions(few, PAIRS, near), strict=True):
        np.testing.assert_allclose(first.g.values(), second.g.values(), atol=1e-12)


def test_batches_of_frames_change_nothing(gas: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    near = RdfSettings(r_max_A=3.5, n_bins=20)
    whole = radial_distributions(gas.read(0, 7), PAIRS, near)
    monkeypatch.setattr("e2former_calc.analysis.pair_counts.CACHE_NUMBERS", 60)
    for first, second in zip(whole, radial_distributions(gas.read(0, 7), PAIRS, near), strict=True):
        np.testing.assert_array_equal(first.g.numerators, second.g.numerators)


def test_ideal_gas_is_one_within_error(gas: Trajectory) -> None:
    for result in radial_distributions(gas, PAIRS, RdfSettings(r_max_A=3.8, n_bins=5)):
        deviation = (result.g.values() - 1.0)[1:] / result.g.errors()[1:]
        assert np.abs(deviation).max() < 4.5
        assert result.g.values()[-1] == pytest.approx(1.0, abs=0.03)


def test_coordination_number_of_an_ideal_gas(gas: Trajectory) -> None:
    (result,) = radial_distributions(gas, [("O", "H")], RdfSettings(r_max_A=3.8, n_bins=10))
    expected = 20 / gas.volumes_A3[0] * 4 / 3 * np.pi * result.g.edges[1:] ** 3
    np.testing.assert_allclose(result.coordination_numbers()[3:], expected[3:], rtol=0.05)


def test_coordination_numbers_of_a_lattice() -> None:
    crystal = Trajectory.from_atoms([bulk("Cu", a=3.6)])
    (result,) = radial_distributions(crystal, [("Cu", "Cu")], RdfSettings(r_max_A=5.3, n_bins=530))
    numbers = result.coordination_numbers()
    shells = [12, 18, 42, 54]
    for k, expected in enumerate(shells, start=1):
        radius = 3.6 * np.sqrt(k / 2)
        assert numbers[np.searchsorted(result.g.edges, radius + 0.02)] == pytest.approx(expected)


@pytest.mark.parametrize("pair", PAIRS)
def test_invariant_under_replication_of_the_cell(gas: Trajectory, pair: tuple[str, str]) -> None:
    frame = gas.read(0, 1)
    large = Trajectory.from_atoms([make_supercell(frame.to_atoms(0), np.diag([2, 1, 2]))])
    settings = RdfSettings(r_max_A=8.7, n_bins=41, normalization="density")
    small_g, large_g = (radial_distributions(source, [pair], settings)[0].g.values() for source in (frame, large))
    np.testing.assert_allclose(small_g, large_g, atol=1e-9)


def test_invariant_under_wrapping(gas: Trajectory, rng: np.random.Generator) -> None:
    shifts = rng.integers(-3, 4, size=gas.positions.shape) @ np.asarray(gas.cell)
    moved = replace(gas, positions=gas.positions + shifts)
    first, second = (radial_distributions(source, [("O", "H")], FAR, n_blocks=1)[0] for source in (gas, moved))
    assert first.g.mae(second.g) < 1e-3


def test_molecules_are_left_out(rng: np.random.Generator) -> None:
    cell = 12.0 * np.eye(3)
    centers = rng.random((50, 20, 1, 3)) * 12.0
    bonds = rng.normal(size=(50, 20, 1, 3))
    bonds /= np.linalg.norm(bonds, axis=-1, keepdims=True)
    positions = np.concatenate([centers, centers + bonds], axis=2).reshape(50, 40, 3)
    dimers = Trajectory(positions, np.ones(40, dtype=int), cell=cell)
    settings = RdfSettings(r_max_A=5.0, n_bins=5)
    (bonded,) = radial_distributions(dimers, [("H", "H")], settings)
    (free,) = radial_distributions(dimers, [("H", "H")], settings, molecule_of=np.repeat(np.arange(20), 2))
    assert bonded.g.values()[0] > 5.0
    assert np.abs((free.g.values()[1:] - 1.0) / free.g.errors()[1:]).max() < 4.5


def test_excluded_pairs_are_not_in_the_density(gas: Trajectory) -> None:
    settings = RdfSettings(r_max_A=3.8, n_bins=3)
    molecule_of = np.repeat(np.arange(3), 10)
    (free,) = radial_distributions(gas, [("*", "*")], settings, molecule_of=molecule_of)
    assert free.g.denominators.sum() == pytest.approx(300 * (30 * 29 - 3 * 10 * 9) / gas.volumes_A3[0])
    assert free.g.values()[-1] == pytest.approx(1.0, abs=0.03)


def test_images_of_the_own_molecule_count() -> None:
    pair = Trajectory(np.array([[[0.0, 0, 0], [1.0, 0, 0]]]), np.array([1, 1]), cell=4.0 * np.eye(3))
    settings = RdfSettings(r_max_A=3.5, n_bins=35)
    (result,) = radial_distributions(pair, [("H", "H")], settings, molecule_of=np.array([0, 0]))
    counts = ordered_counts(result)
    assert counts[9:11].sum() == 0.0
    assert counts[29:31].sum() == pytest.approx(2.0)


def test_volume_of_every_frame_counts(gas: Trajectory) -> None:
    swollen = Trajectory(1.5 * gas.positions, gas.numbers, cell=1.5 * np.asarray(gas.cell))
    both = Trajectory(
        np.concatenate([gas.positions, swollen.positions]),
        gas.numbers,
        cell=np.concatenate([gas.cells(), swollen.cells()]),
    )
    (result,) = radial_distributions(both, [("*", "*")], RdfSettings(r_max_A=3.8, n_bins=4))
    np.testing.assert_allclose(result.g.values()[1:], 1.0, atol=0.04)


def test_molecules_without_a_cell_are_refused(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="has no cell"):
        radial_distributions(ethanol, [("C", "H")])


def test_slabs_are_refused(gas: Trajectory) -> None:
    slab = replace(gas, pbc=np.array([True, True, False]))
    with pytest.raises(TrajectoryError, match="three periodic directions"):
        radial_distributions(slab, [("O", "O")])


def test_absent_elements_are_refused(gas: Trajectory) -> None:
    with pytest.raises(ValueError, match="no element 'Xe' here, only H, O"):
        radial_distributions(gas, [("O", "Xe")])


@pytest.mark.parametrize("change", [{"normalization": "none"}, {"images": "some"}, {"n_bins": 0}])
def test_settings_are_checked(change: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        RdfSettings(**change)


@pytest.mark.parametrize(("structure", "a_A", "between_A"), [("fcc", 3.6, (2.55, 3.60)), ("bcc", 2.9, (2.51, 4.10))])
def test_first_shell_of_a_crystal_ends_between_two_shells(
    rng: np.random.Generator, structure: str, a_A: float, between_A: tuple[float, float]
) -> None:
    crystal = bulk("Cu", structure, a=a_A, cubic=True).repeat(3)
    positions = crystal.positions + 0.05 * rng.normal(size=(10, len(crystal), 3))
    shaking = Trajectory(positions, crystal.numbers, cell=crystal.cell.array)
    (partial,) = radial_distributions(shaking, [("Cu", "Cu")], RdfSettings(r_max_A=6.0, n_bins=120))
    end = first_shell_A(partial.g)
    assert end is not None
    assert between_A[0] < end < between_A[1]


def test_a_shell_beyond_the_range_has_no_end(gas: Trajectory) -> None:
    crystal = Trajectory.from_atoms([bulk("Cu", a=3.6)])
    (partial,) = radial_distributions(crystal, [("Cu", "Cu")], RdfSettings(r_max_A=3.0, n_bins=60))
    assert first_shell_A(partial.g) is None
    (nothing,) = radial_distributions(crystal, [("Cu", "Cu")], RdfSettings(r_max_A=2.0, n_bins=60))
    assert first_shell_A(nothing.g) is None
