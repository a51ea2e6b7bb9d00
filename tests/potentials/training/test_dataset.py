"""Labelled structures: what they are, parts of them, and the split."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset, DatasetError, split


def labelled(numbers: Sequence[Sequence[int]], source: str = "random.xyz") -> Dataset:
    """Structures with random positions and labels, one for each list of atomic numbers."""
    generator = torch.Generator().manual_seed(len(numbers))
    positions = [torch.randn(len(z), 3, generator=generator, dtype=torch.float64) for z in numbers]
    return Dataset(
        systems=tuple(System.single(x.numpy(), z) for x, z in zip(positions, numbers, strict=True)),
        energy=torch.randn(len(numbers), generator=generator, dtype=torch.float64),
        forces=tuple(-x for x in positions),
        stress=(None,) * len(numbers),
        source=source,
    )


def test_elements_are_those_that_occur() -> None:
    assert labelled([[1, 1], [8, 1, 1], [6]]).elements == {1, 6, 8}


def test_formulas_are_in_hill_order() -> None:
    assert labelled([[8, 1, 6, 1, 6, 1, 1, 1, 1], [1, 8, 1], [8, 1, 1]]).formulas == {"C2H6O", "H2O"}


def test_compositions_count_atoms() -> None:
    elements, counts = labelled([[8, 1, 1], [6, 8]]).compositions
    assert elements.tolist() == [1, 6, 8]
    assert counts.tolist() == [[2, 0, 1], [0, 1, 1]]


def test_atomic_numbers_outside_the_table_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"must be 1 ... 118, random.xyz has \[0, 120\]"):
        _ = labelled([[1, 0], [120]]).elements


def test_subset_keeps_structures_and_labels_together() -> None:
    dataset = labelled([[1], [1, 6], [1, 6, 7]])
    part = dataset.subset([2, 0])
    assert [system.n_atoms for system in part.systems] == [3, 1]
    assert torch.equal(part.energy, dataset.energy[[2, 0]])
    assert torch.equal(part.forces[0], dataset.forces[2])


def test_subset_refuses_a_frame_that_does_not_exist() -> None:
    with pytest.raises(DatasetError, match=r"frame 2 does not exist: random.xyz has 2 frames"):
        labelled([[1], [6]]).subset([0, 2])


def test_empty_subset_has_no_elements() -> None:
    part = labelled([[1]]).subset([])
    assert len(part) == 0
    assert part.elements == part.formulas == frozenset()


def test_join_of_the_parts_is_the_whole() -> None:
    dataset = labelled([[1], [1, 6], [7]])
    joined = Dataset.join([dataset.subset([0]), dataset.subset([1, 2])])
    assert torch.equal(joined.energy, dataset.energy)
    assert joined.systems == dataset.systems


def test_join_names_each_source_once() -> None:
    one, two = labelled([[1]], "a.xyz"), labelled([[1]], "b.xyz")
    assert Dataset.join([one, two, one]).source == "a.xyz; b.xyz"


def test_join_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="give at least one data set"):
        Dataset.join([])


def test_numbers_of_labels_must_agree() -> None:
    whole = labelled([[1], [6]])
    with pytest.raises(DatasetError, match="one entry per frame, got 2, 1, 2 and 2"):
        Dataset(whole.systems, whole.energy[:1], whole.forces, whole.stress, "a.xyz")


def test_forces_must_fit_the_atoms() -> None:
    whole = labelled([[1, 1]])
    with pytest.raises(DatasetError, match=r"forces of frame 0 have shape \(1, 3\) but the structure has 2 atoms"):
        Dataset(whole.systems, whole.energy, (whole.forces[0][:1],), whole.stress, "a.xyz")


def test_frames_are_single_structures() -> None:
    whole = labelled([[1], [6]])
    stacked = System.stack(whole.systems)
    with pytest.raises(DatasetError, match="frame 0 holds 2 structures"):
        Dataset((stacked,), whole.energy[:1], (torch.zeros(2, 3, dtype=torch.float64),), (None,), "a.xyz")


@pytest.mark.parametrize("validation", [0, 1, 19])
def test_split_uses_every_frame_once(validation: int) -> None:
    training, held_out = split(labelled([[1]] * 20), validation, seed=3)
    assert len(held_out) == validation
    assert sorted(training + held_out) == list(range(20))


def test_split_depends_on_the_seed_alone() -> None:
    dataset = labelled([[1]] * 50)
    assert split(dataset, 10, seed=1) == split(dataset, 10, seed=1)
    assert split(dataset, 10, seed=1) != split(dataset, 10, seed=2)


def test_split_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    split(labelled([[1]] * 5), 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("validation", "message"), [(3, "leaves no training frame of the 3"), (-1, "got -1")])
def test_impossible_splits_are_refused(validation: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        split(labelled([[1]] * 3), validation, seed=0)
