"""Sums over the atoms of replicas."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.md.replicas import Replicas


def test_sums_have_the_same_bits_in_every_batch(generator: torch.Generator) -> None:
    sizes = [3, 97, 1, 40]
    values = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=generator) * 1e3
    replicas = Replicas.of_sizes(sizes)
    alone = [Replicas.of_sizes([n]).sum(values[s]) for n, s in zip(sizes, replicas.slices(), strict=True)]
    assert torch.equal(replicas.sum(values), torch.cat(alone))


def test_spread_gives_every_atom_the_value_of_its_replica() -> None:
    replicas = Replicas.of_sizes([2, 1])
    assert replicas.spread(torch.tensor([5.0, 7.0])).tolist() == [5.0, 5.0, 7.0]


def test_first_atoms_and_local_indices() -> None:
    replicas = Replicas.of_sizes([2, 3])
    assert replicas.first_atom.tolist() == [0, 2]
    assert replicas.local_index.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("ids", [[0], [1, 1], [-1, 0], [0, 2**32]])
def test_bad_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="replica ids must be 2 different numbers"):
        Replicas.of_sizes([1, 1], ids=ids)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_empty_replicas_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="every replica needs at least one atom"):
        Replicas.of_sizes(sizes)
