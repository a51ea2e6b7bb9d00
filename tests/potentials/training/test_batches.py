"""Batches: order of structures, joined neighbour lists."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.batches import Batches, reflect
from e2former_calc.potentials.training.loss import Labels


@pytest.fixture
def batches(dataset) -> Batches:
    return Batches(dataset, 4.0)


def test_a_joined_list_equals_the_list_of_the_joined_system(batches):
    system, lists, _ = batches.batch([3, 0, 7])
    fresh = neighbor_list(system, 4.0)
    assert torch.equal(lists.center, fresh.center)
    assert torch.equal(lists.source, fresh.source)
    assert torch.equal(lists.row_ptr, fresh.row_ptr)


def test_labels_follow_the_structures(batches, dataset):
    _, _, labels = batches.batch([5, 2])
    assert labels.energy.tolist() == [dataset.energy[5], dataset.energy[2]]
    assert torch.equal(labels.forces, torch.cat([dataset.forces[5], dataset.forces[2]]))


@pytest.mark.parametrize("batch_size", [1, 5, 12, 30])
def test_every_epoch_sees_every_structure_once(batches, batch_size):
    seen = [i for step in range(60 // batch_size + 1) for i in batches.indices(step, batch_size, seed=4)]
    for epoch in range(4):
        assert sorted(seen[12 * epoch : 12 * (epoch + 1)]) == list(range(12))


def test_epochs_and_seeds_differ(batches):
    first, second = batches.indices(0, 12, seed=0), batches.indices(1, 12, seed=0)
    assert first != second
    assert first != batches.indices(0, 12, seed=1)


def test_an_empty_set_is_refused(dataset):
    with pytest.raises(ValueError, match="there are no structures in water"):
        Batches(dataset.subset([]), 4.0)


def test_mirror_images_have_mirrored_labels_and_the_same_neighbours(dataset):
    cell = torch.diag(torch.tensor([4.0, 5.0, 6.0])) + 0.3
    system = System.stack(
        [System.single(s.positions, s.numbers, cell=cell, pbc=[True] * 3) for s in dataset.systems[:2]]
    )
    labels = Labels(dataset.energy[:2], torch.cat(dataset.forces[:2]), torch.randn(2, 3, 3, dtype=torch.float64))
    mirrored, reflected = reflect(system, labels, [False, True])
    assert torch.equal(mirrored.positions[:3], system.positions[:3])
    assert torch.equal(mirrored.positions[3:, 0], -system.positions[3:, 0])
    assert torch.equal(reflected.forces[3:, 0], -labels.forces[3:, 0])
    assert torch.equal(reflected.stress[1, 0, 1], -labels.stress[1, 0, 1])
    assert torch.equal(reflected.stress[1, 0, 0], labels.stress[1, 0, 0])
    before, after = neighbor_list(system, 4.0), neighbor_list(mirrored, 4.0)
    assert torch.equal(before.source, after.source)
    assert torch.equal(before.shift, after.shift)


def test_mirrors_follow_from_seed_and_step(batches):
    chosen = [batches.mirrored(step, 8, seed=1) for step in range(200)]
    assert chosen == [batches.mirrored(step, 8, seed=1) for step in range(200)]
    assert chosen != [batches.mirrored(step, 8, seed=2) for step in range(200)]
    assert 0.4 < sum(map(sum, chosen)) / 1600 < 0.6
