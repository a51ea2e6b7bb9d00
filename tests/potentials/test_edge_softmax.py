"""Softmax over the edges of each atom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.edge_softmax import edge_softmax
from e2former_calc.potentials.neighbors import NeighborList

EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def edges() -> NeighborList:
    """Three, no and two edges at three atoms."""
    center, source = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 2, 0, 0, 1])
    return NeighborList.from_pairs(center, source, torch.zeros(5, 3, dtype=torch.int64), n_atoms=3, cutoff=1.0)


@pytest.fixture
def score(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 2, generator=generator, dtype=torch.float64)


def test_weights_of_each_atom_are_its_softmax(edges, score):
    expected = torch.cat([score[:3].softmax(0), score[3:].softmax(0)])
    torch.testing.assert_close(edge_softmax(score, edges), expected, rtol=0, atol=10 * EPS)


def test_an_envelope_multiplies_the_exponentials(edges, score):
    envelope = torch.linspace(0.2, 1.0, 5, dtype=torch.float64)[:, None]
    expected = edge_softmax(score + envelope.log(), edges)
    torch.testing.assert_close(edge_softmax(score, edges, envelope), expected, rtol=0, atol=10 * EPS)


def test_an_edge_without_envelope_has_no_weight(edges, score):
    envelope = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    weight = edge_softmax(score, edges, envelope)
    assert not weight[1].any()
    torch.testing.assert_close(weight[[0, 2]], score[[0, 2]].softmax(0), rtol=0, atol=10 * EPS)


def test_an_atom_whose_edges_all_lack_an_envelope_gets_nothing(edges, score):
    envelope = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    score.requires_grad_(True)
    weight = edge_softmax(score, edges, envelope)
    assert not weight[:3].any()
    assert torch.autograd.grad(weight.square().sum(), score)[0].isfinite().all()


def test_large_scores_do_not_overflow(edges, score):
    assert edge_softmax(score + 1e4, edges).isfinite().all()
