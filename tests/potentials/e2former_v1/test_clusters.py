"""Attention to clusters: assignment, symmetry, derivatives, and what the user must supply."""

from __future__ import annotations

import sys
from dataclasses import replace

import h5py
import pytest
import torch
from scipy.spatial.transform import Rotation

from e2former_calc.potentials.e2former_v1 import FixedClusters, KMeansClusters, OfficialKMeans
from e2former_calc.potentials.e2former_v1.cluster_rules import cluster_count
from e2former_calc.potentials.system import System

KMEANS = {"variant": "modular", "clusters": "kmeans"}
FRAGMENTS = {"variant": "lsr", "clusters": "fragments", "force_head": "gated"}
IDS = tuple(i // 12 for i in range(60))
EPS = torch.finfo(torch.float64).eps


@pytest.fixture(params=["kmeans", "fragments"])
def potential(request, build):
    if request.param == "kmeans":
        return build(**KMEANS)
    potential = build(**FRAGMENTS)
    potential.model.cluster_rule = FixedClusters(IDS)
    return potential


def forces_and_energy(potential, system):
    prediction = potential(system, properties=frozenset({"energy", "forces"}))
    return prediction.forces, prediction.energy


@pytest.mark.parametrize(("atoms", "clusters"), [(1, 1), (3, 1), (29, 1), (30, 2), (44, 2), (45, 3), (72, 4)])
def test_number_of_clusters_is_the_official_one(atoms, clusters):
    assert cluster_count(atoms) == clusters


def test_own_k_means_does_not_depend_on_the_order_of_atoms(chain):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = replace(chain, positions=chain.positions[order], numbers=chain.numbers[order])
    before, after = KMeansClusters()(chain)[order], KMeansClusters()(shuffled)
    pairs = {tuple(pair) for pair in torch.stack([before, after], dim=1).tolist()}
    assert len(pairs) == 4


def test_own_k_means_does_not_depend_on_the_batch(chain, methanol):
    together = KMeansClusters()(System.stack([methanol, chain]))
    assert together[6:].equal(KMeansClusters()(chain))


@pytest.mark.shared
def test_official_k_means_is_that_of_the_official_code(shared_dir):
    pytest.importorskip("sklearn")
    with h5py.File(shared_dir / "fixtures" / "e2former_v1" / "h_cluster_first_QK" / "cases.h5") as file:
        for case in file.values():
            given = case["input"]
            system = System.single(given["positions"][()], given["numbers"][()])
            assert OfficialKMeans()(system).tolist() == given["cluster_ids"][()].tolist()


def test_official_k_means_asks_for_scikit_learn(chain, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="OfficialKMeans needs scikit-learn"):
        OfficialKMeans()(chain)


def test_clusters_matter(build, chain):
    energies = []
    for ids in (IDS, tuple(i // 20 for i in range(60))):
        potential = build(**FRAGMENTS)
        potential.model.cluster_rule = FixedClusters(ids)
        energies.append(forces_and_energy(potential, chain)[1].item())
    assert abs(energies[0] - energies[1]) > 1e-3


def test_rotation_and_translation_leave_the_energy(potential, chain):
    matrix = torch.from_numpy(Rotation.random(rng=2).as_matrix())
    moved = chain.with_positions(chain.positions @ matrix.T + 500.0)
    (forces, energy), (turned, after) = (forces_and_energy(potential, s) for s in (chain, moved))
    assert abs(after - energy).item() < 1e7 * EPS
    torch.testing.assert_close(turned, forces @ matrix.T, rtol=0, atol=1e7 * EPS)


def test_forces_are_the_gradient_for_a_fixed_assignment(potential, chain):
    direction = torch.randn(60, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def energy(step):
        system = chain.with_positions(chain.positions + step * direction)
        return potential(system, properties=frozenset({"energy"})).energy.item()

    h = 1e-4
    slope = (energy(-2 * h) - 8 * energy(-h) + 8 * energy(h) - energy(2 * h)) / (12 * h)
    work = (forces_and_energy(potential, chain)[0] * direction).sum().item()
    assert work == pytest.approx(-slope, abs=1e-7)


def test_structures_of_a_batch_do_not_see_each_other(build, chain, methanol):
    potential = build(**KMEANS)
    together = forces_and_energy(potential, System.stack([methanol, chain]))
    alone = [forces_and_energy(potential, system) for system in (methanol, chain)]
    torch.testing.assert_close(together[0], torch.cat([f for f, _ in alone]), rtol=0, atol=1e6 * EPS)
    torch.testing.assert_close(together[1], torch.cat([e for _, e in alone]), rtol=0, atol=1e6 * EPS)


def test_centres_may_be_given(build, chain):
    potential = build(**FRAGMENTS)
    means = torch.stack([chain.positions[12 * k : 12 * k + 12].mean(0) for k in range(5)])
    energies = []
    for centres in (None, means, means + 0.1):
        rows = None if centres is None else tuple(tuple(row) for row in centres.tolist())
        potential.model.cluster_rule = FixedClusters(IDS, rows)
        energies.append(forces_and_energy(potential, chain)[1].item())
    assert energies[1] == pytest.approx(energies[0], abs=1e-9)
    assert abs(energies[2] - energies[0]) > 1e-5


def test_fragments_must_be_supplied(build, methanol):
    with pytest.raises(ValueError, match=r"assignment of the 6 atoms to fragments: .* as clusters=\[0, 0, 1"):
        build(**FRAGMENTS)(methanol)


def test_clusters_of_another_structure_are_refused(build, methanol):
    potential = build(**FRAGMENTS)
    potential.model.cluster_rule = FixedClusters((0, 0, 1))
    with pytest.raises(ValueError, match="clusters were given for 3 atoms, but a structure has 6"):
        potential(methanol)


def test_cluster_numbers_have_no_gaps():
    with pytest.raises(ValueError, match=r"without gaps, got \[0, 2\]"):
        FixedClusters((0, 2))


def test_every_cluster_has_a_centre():
    with pytest.raises(ValueError, match="1 centres were given for 2 clusters"):
        FixedClusters((0, 1), ((0.0, 0.0, 0.0),))
