"""Invariant encoders: symmetry, derivatives, and independence of other structures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation

from e2former_calc.potentials.system import System

EPS = torch.finfo(torch.float64).eps
ENCODERS = [
    {"variant": "modular", "encoder": "dit"},
    {"variant": "modular", "encoder": "transformer"},
    {"variant": "microsoft", "encoder": "dit"},
]


@pytest.fixture(params=ENCODERS, ids=lambda changes: " ".join(changes.values()))
def potential(request, build):
    return build(**request.param)


@pytest.fixture
def water() -> System:
    return System.single([[0.1, 0.2, -0.1], [0.1, 1.1, 0.3], [0.9, -0.2, -0.4]], [8, 1, 1])


def predict(potential, system):
    return potential(system, properties=frozenset({"energy", "forces"}))


def test_the_encoder_matters(potential, build, methanol):
    plain = build(variant=potential.model.config.variant)
    assert abs(predict(plain, methanol).energy - predict(potential, methanol).energy).item() > 1e-3


def test_smaller_structures_of_a_batch_see_no_padding(potential, methanol, water):
    """The official code attends to padding atoms at the origin."""
    together = predict(potential, System.stack([water, methanol]))
    alone = [predict(potential, system) for system in (water, methanol)]
    torch.testing.assert_close(together.energy, torch.cat([p.energy for p in alone]), rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(together.forces, torch.cat([p.forces for p in alone]), rtol=0, atol=1e5 * EPS)


def test_rotation_and_order_of_atoms_leave_the_energy(potential, methanol):
    matrix = torch.from_numpy(Rotation.random(rng=5).as_matrix())
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = replace(methanol, positions=(methanol.positions @ matrix.T)[order], numbers=methanol.numbers[order])
    before, after = predict(potential, methanol), predict(potential, other)
    torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(after.forces, (before.forces @ matrix.T)[order], rtol=0, atol=1e5 * EPS)


def test_forces_are_the_gradient(potential, methanol):
    direction = torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def energy(step):
        return predict(potential, methanol.with_positions(methanol.positions + step * direction)).energy.item()

    h = 1e-4
    slope = (energy(-2 * h) - 8 * energy(-h) + 8 * energy(h) - energy(2 * h)) / (12 * h)
    assert (predict(potential, methanol).forces * direction).sum().item() == pytest.approx(-slope, abs=1e-7)


def test_second_derivatives_exist(potential, methanol):
    hessian = potential.hessian(methanol)
    assert hessian.isfinite().all()
    sums = hessian.reshape(18, 6, 3).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e7 * EPS)


@pytest.mark.parametrize("cap", ["official", "none"])
@pytest.mark.parametrize("changes", ENCODERS, ids=lambda changes: " ".join(changes.values()))
def test_periodic_structures_have_finite_forces_that_add_up_to_zero(build, changes, cap):
    positions = [[0.1, 0.0, 0.2], [2.7, 0.1, -0.1]]
    salt = System.single(positions, [11, 17], cell=[[0, 2.9, 2.8], [2.8, 0.1, 2.9], [2.7, 2.8, 0]], pbc=True)
    forces = predict(build(cap=cap, **changes), salt).forces
    assert forces.abs().max().item() > 1e-4
    assert forces.sum(0).abs().max().item() < 1e5 * EPS
