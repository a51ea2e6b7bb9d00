"""Norms, activations, bases and initial weights of the original E2Former."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v1 import E2FormerV1
from e2former_calc.potentials.e2former_v1.layers import (
    DegreeLayerNorm,
    LearnedGaussianBasis,
    SeparableLayerNorm,
    SmearedGaussianBasis,
    drop_channels,
    drop_structures,
    smooth_leaky_relu,
)
from e2former_calc.potentials.layers import SO3Linear
from e2former_calc.potentials.radial import GaussianBasis

EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return 3.0 + 2.0 * torch.randn(4, 9, 6, generator=generator, dtype=torch.float64)


def test_degree_norm_gives_every_degree_the_same_mean_square(x):
    y = DegreeLayerNorm(2, 6).double()(x)
    for degree in range(3):
        mean_square = y[:, degree**2 : (degree + 1) ** 2].square().mean((1, 2))
        torch.testing.assert_close(mean_square, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-4)
    assert y[:, 0].mean(1).abs().max().item() < 100 * EPS


def test_separable_norm_balances_all_higher_degrees_together(x):
    y = SeparableLayerNorm(2, 6).double()(x)
    balanced = (y[:, 1:4].square().mean((1, 2)) + y[:, 4:9].square().mean((1, 2))) / 2
    torch.testing.assert_close(balanced, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-4)
    ratio = y[:, 1:] / x[:, 1:]
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=0, atol=100 * EPS)


def test_a_structure_keeps_or_misses_an_update_as_a_whole():
    batch = torch.arange(400).repeat_interleave(3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        kept = drop_structures(torch.ones(1200, 4, 2), batch, 0.25).unflatten(0, (400, 3)).flatten(1)
    assert kept.eq(kept[:, :1]).all()
    assert sorted(set(kept[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    # Five standard deviations of the mean of 400 draws.
    assert abs(kept.mean().item() - 1.0) < 5 * (0.25 / 0.75 / 400) ** 0.5


def test_components_of_a_degree_are_dropped_together():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        kept = drop_channels(torch.ones(50, 9, 6), 0.5)
    for degree in range(3):
        rows = kept[:, degree**2 : (degree + 1) ** 2]
        assert rows.eq(rows[:, :1]).all()
    assert not kept[:, 0].equal(kept[:, 1])
    assert set(kept.flatten().tolist()) == {0.0, 2.0}


def test_smooth_leaky_relu_has_slopes_one_and_a_fifth():
    far = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(smooth_leaky_relu(far), torch.tensor([-10.0, 50.0], dtype=torch.float64))


def test_smeared_basis_is_the_shared_one_with_exact_centres():
    r = torch.linspace(0.1, 6.0, 40, dtype=torch.float64)
    exact, rounded = SmearedGaussianBasis(5.0, 16)(r), GaussianBasis(5.0, 16).double()(r)
    torch.testing.assert_close(exact, rounded, rtol=0, atol=1e-6)


def test_learned_basis_functions_have_unit_area():
    basis = LearnedGaussianBasis(5.0, 4).double().requires_grad_(False)
    basis.std.fill_(0.1)
    r = torch.linspace(-20.0, 25.0, 20001, dtype=torch.float64)
    area = torch.trapezoid(basis(r), r / 5.0, dim=0)
    np.testing.assert_allclose(area.numpy(), 1.0, rtol=1e-9)


def test_fresh_networks_start_without_biases_and_with_bounded_maps(config):
    with torch.random.fork_rng():
        model = E2FormerV1(config)
    for module in model.blocks.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, SO3Linear):
            assert module.weight.abs().max().item() <= module.weight.shape[2] ** -0.5
