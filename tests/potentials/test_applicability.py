"""Distances from the training data: laws of the measure, independent of any network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from e2former_calc.potentials.applicability import MIN_HELD_OUT, RIDGE, TrainingDomain

CHANNELS = 6


def atoms_like_training(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated descriptors of hydrogen and oxygen atoms."""
    numbers = torch.tensor([1, 1, 8]).repeat(n)
    mixing = torch.linspace(-1, 1, CHANNELS**2).reshape(CHANNELS, CHANNELS) + 0.3 * torch.eye(CHANNELS)
    noise = torch.randn(len(numbers), CHANNELS, generator=generator) @ mixing
    return noise + numbers[:, None].float(), numbers


@pytest.fixture
def domain(generator) -> TrainingDomain:
    x, numbers = atoms_like_training(generator, 200)
    y, other_numbers = atoms_like_training(generator, 100)
    return TrainingDomain.fit(x, numbers, held_out=y, held_out_numbers=other_numbers)


def test_unseen_atoms_of_the_ensemble_are_inside(domain):
    x, numbers = atoms_like_training(torch.Generator().manual_seed(1), 500)
    distance = domain.distance(x, numbers)
    assert float(distance.median()) < 1.0
    assert 0.95 < float((distance < 1.0).double().mean()) < 1.0


def test_distance_is_proportional_to_the_deviation(domain):
    deviation = torch.linspace(0.1, 1.0, CHANNELS)
    numbers = torch.tensor([8, 8])
    near, far = domain.distance(domain.mean[1] + torch.stack([deviation, 10 * deviation]), numbers)
    assert float(far / near) == pytest.approx(10.0, rel=1e-4)


def test_a_direction_without_variance_is_the_most_sensitive(generator):
    x, numbers = atoms_like_training(generator, 200)
    x[:, 2] = 1.0
    domain = TrainingDomain.fit(x, numbers, held_out=x, held_out_numbers=numbers)
    steps = domain.mean[0] + torch.eye(CHANNELS)
    distance = domain.distance(steps, torch.ones(CHANNELS, dtype=torch.int64))
    assert int(distance.argmax()) == 2
    assert torch.isfinite(distance).all()


def test_an_element_without_training_atoms_is_infinitely_far(domain):
    distance = domain.distance(torch.zeros(2, CHANNELS), torch.tensor([1, 6]))
    assert torch.isfinite(distance).tolist() == [True, False]


def test_atoms_are_judged_one_by_one(domain, generator):
    x, numbers = atoms_like_training(generator, 4)
    alone = torch.cat([domain.distance(x[k : k + 1], numbers[k : k + 1]) for k in range(len(numbers))])
    torch.testing.assert_close(domain.distance(x, numbers), alone, rtol=1e-12, atol=0.0)


def test_distances_follow_a_permutation_of_the_atoms(domain, generator):
    x, numbers = atoms_like_training(generator, 5)
    order = torch.randperm(len(numbers), generator=generator)
    torch.testing.assert_close(
        domain.distance(x[order], numbers[order]), domain.distance(x, numbers)[order], rtol=1e-12, atol=0.0
    )


def test_no_atoms_have_no_distances(domain):
    assert domain.distance(torch.zeros(0, CHANNELS), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 3, CHANNELS - 1])
def test_fewer_atoms_than_channels_are_enough(generator, n):
    x, numbers = atoms_like_training(generator, n)
    domain = TrainingDomain.fit(x, numbers, held_out=x[:0], held_out_numbers=numbers[:0])
    distance = domain.distance(x, numbers)
    assert torch.isfinite(distance).all()
    assert float(distance.median()) < 1.0


def test_identical_atoms_have_a_domain():
    x, numbers = torch.ones(10, CHANNELS), torch.full((10,), 6)
    domain = TrainingDomain.fit(x, numbers, held_out=x, held_out_numbers=numbers)
    assert domain.distance(x, numbers).max() == 0.0
    assert domain.distance(x + 100.0, numbers).min() > 10.0


def test_a_rare_element_borrows_from_the_others(generator):
    x, numbers = atoms_like_training(generator, 200)
    x, numbers = torch.cat([x, x[:1]]), torch.cat([numbers, torch.tensor([17])])
    domain = TrainingDomain.fit(x, numbers, held_out=x[:0], held_out_numbers=numbers[:0])
    rare, frequent = domain.distance(x[:50], torch.full((50,), 17)), domain.distance(x[:50], torch.ones(50).long())
    assert 0.1 < float(rare.median() / frequent.median()) < 10.0


def test_the_limit_comes_from_the_held_out_atoms(generator):
    x, numbers = atoms_like_training(generator, 200)
    wide = TrainingDomain.fit(x, numbers, held_out=5 * x, held_out_numbers=numbers)
    narrow = TrainingDomain.fit(x, numbers, held_out=x, held_out_numbers=numbers)
    assert float(wide.distance(x, numbers).median()) < 0.5 * float(narrow.distance(x, numbers).median())


def test_few_held_out_atoms_do_not_set_the_limit_alone(generator):
    x, numbers = atoms_like_training(generator, 200)
    few = (numbers == 8).nonzero()[: MIN_HELD_OUT - 1, 0]
    typical = TrainingDomain.fit(x, numbers, held_out=x, held_out_numbers=numbers)
    domain = TrainingDomain.fit(x, numbers, held_out=0 * x[few] + x.mean(0), held_out_numbers=numbers[few])
    assert float((domain.distance(x, numbers) / typical.distance(x, numbers)).max()) < 1.5


def test_rounding_of_the_descriptors_does_not_matter(domain, generator):
    x, numbers = atoms_like_training(generator, 50)
    eps = torch.finfo(torch.float32).eps
    rounded = domain.distance(x * (1 + 4 * eps), numbers)
    assert float((rounded - domain.distance(x, numbers)).abs().max()) < 400 * eps * RIDGE**-0.5


def test_without_atoms_there_is_no_domain():
    none, numbers = torch.zeros(0, CHANNELS), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="no atoms to describe"):
        TrainingDomain.fit(none, numbers, held_out=none, held_out_numbers=numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": torch.tensor([8, 1])}, r"`elements` must be ascending atomic numbers, got \[8, 1\]"),
        ({"elements": torch.tensor([0, 1])}, r"`elements` must be ascending atomic numbers, got \[0, 1\]"),
        ({"elements": torch.tensor([1, 119])}, r"`elements` must be ascending atomic numbers, got \[1, 119\]"),
        ({"mean": torch.zeros(2, CHANNELS).double()}, r"`mean` must be float32 of shape \(2, 6\), got float64"),
        ({"mean": torch.full((2, CHANNELS), torch.nan)}, "`mean` holds numbers that are not finite"),
        ({"whitening": torch.full((2, CHANNELS, CHANNELS), torch.inf)}, "`whitening` holds numbers that are not"),
    ],
)
def test_broken_tensors_are_refused_by_name(domain, change, message):
    with pytest.raises(ValueError, match=message):
        replace(domain, **change)


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": torch.zeros(0, dtype=torch.int64)}, r"`elements` must be a list .* got int64 of shape \(0,\)"),
        ({"elements": torch.tensor([1.0, 8.0])}, r"`elements` must be a list of atomic numbers, got float32"),
        ({"mean": torch.zeros(3, CHANNELS)}, r"`mean` must be float32 of shape \(2, 6\), got float32 of .*3, 6"),
        ({"mean": torch.tensor(1.0)}, r"`mean` must be float32 of shape \(2, 0\)"),
        ({"whitening": torch.zeros(2, CHANNELS, 5)}, r"`whitening` must be float32 of shape \(2, 6, 6\)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_by_name(domain, change, message):
    with pytest.raises(ValueError, match=message):
        replace(domain, **change)
