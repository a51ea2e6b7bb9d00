"""Loss and errors against hand-made numbers."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.loss import ErrorAccumulator, Labels, force_loss, loss
from e2former_calc.potentials.training.settings import TrainingSettings


@pytest.fixture
def system() -> System:
    one, two = System.single([[0, 0, 0], [0, 0, 1]], [1, 8]), System.single([[0, 0, 0]], [8])
    return System.stack([one, two])


def predicted(energy, forces, stress=None) -> Prediction:
    energy = torch.tensor(energy, dtype=torch.float64)
    return Prediction(energy, torch.zeros(3, dtype=torch.float64), torch.tensor(forces, dtype=torch.float64), stress)


LABELS = Labels(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))


def test_energy_loss_is_per_atom(system):
    settings = TrainingSettings(energy_weight=1.0, force_weight=0.0)
    assert loss(predicted([2.0, 2.0], [[0.0] * 3] * 3), LABELS, system, settings) == pytest.approx(0.25)


@pytest.mark.parametrize(("kind", "expected"), [("norm", 5 / 3), ("squared", 25 / 3), ("huber", (5 - 0.05) / 3)])
def test_force_losses(kind, expected):
    error = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert force_loss(error, TrainingSettings(force_loss=kind)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["norm", "squared", "huber"])
def test_a_vanishing_force_error_has_a_finite_gradient(kind):
    error = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(force_loss(error, TrainingSettings(force_loss=kind)), error)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_missing_stresses_do_not_count(system):
    stress = torch.ones(2, 3, 3, dtype=torch.float64)
    target = torch.stack([torch.zeros(3, 3, dtype=torch.float64), torch.full((3, 3), torch.nan, dtype=torch.float64)])
    labels = Labels(LABELS.energy, LABELS.forces, target)
    settings = TrainingSettings(energy_weight=0.0, force_weight=0.0, stress_weight=2.0)
    assert loss(predicted([1.0, 2.0], [[0.0] * 3] * 3, stress), labels, system, settings) == pytest.approx(2.0)


def test_forces_are_demanded_if_they_have_weight(system):
    energies = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="no forces were predicted"):
        loss(Prediction(energies, torch.zeros(3, dtype=torch.float64)), LABELS, system, TrainingSettings())


def test_errors_are_in_milli_units_and_by_element(system):
    accumulator = ErrorAccumulator()
    accumulator.add(predicted([1.2, 2.0], [[0.1] * 3, [0.2] * 3, [0.4] * 3]), LABELS, system)
    errors = accumulator.errors()
    assert errors.energy_mae == pytest.approx(50.0)
    assert errors.force_mae == pytest.approx(700 / 3)
    assert errors.force_mae_by_element == pytest.approx({1: 100.0, 8: 300.0})


def test_no_structures_have_no_errors():
    with pytest.raises(ValueError, match="no structures"):
        ErrorAccumulator().errors()
