"""Loss and errors against hand-made numbers."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.loss import Labels, LossCounts, force_loss, loss
from e2former_calc.potentials.training.settings import ForceLoss, TrainingSettings


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
    assert force_loss(error, torch.zeros_like(error), TrainingSettings(force_loss=kind)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(("force", "expected"), [(99.0, 1.0), (150.0, 0.7), (250.0, 0.4), (301.0, 0.1)])
def test_conditional_huber_lowers_its_limit_on_large_forces(force, expected):
    settings = TrainingSettings(force_loss="conditional_huber", huber_delta=1.0)
    labels = torch.tensor([[0.0, force, 0.0]], dtype=torch.float64)
    predicted = labels + torch.tensor([[0.0, 0.0, 9.0]], dtype=torch.float64)
    value = force_loss(predicted, labels, settings)
    assert value == pytest.approx(9.0 - 0.5 * expected, rel=1e-6)


@pytest.mark.parametrize("kind", get_args(ForceLoss))
def test_losses_have_the_gradient_of_finite_differences(kind, system):
    generator = torch.Generator().manual_seed(3)
    labels = Labels(
        *(torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2,), (3, 3), (2, 3, 3)))
    )
    settings = TrainingSettings(
        energy_weight=1.3, force_weight=0.7, stress_weight=0.4, force_loss=kind, huber_delta=1.0
    )

    def value(energy, forces, stress):
        prediction = Prediction(energy, torch.zeros(3, dtype=torch.float64), forces, stress)
        return loss(prediction, labels, system, settings)

    inputs = [
        torch.randn(*s, dtype=torch.float64, generator=generator, requires_grad=True) for s in ((2,), (3, 3), (2, 3, 3))
    ]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-7)


def test_unknown_labels_do_not_count(system):
    nan = float("nan")
    labels = Labels(LABELS.energy.clone(), LABELS.forces.clone())
    labels.energy[1] = nan
    labels.forces[0] = nan
    partial = loss(predicted([2.0, 9.0], [[7.0] * 3, [0.0, 3.0, 4.0], [0.0] * 3]), labels, system, TrainingSettings())
    assert partial == pytest.approx(2.0 * 0.5 + 2.5, rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole(system):
    one, two = System.single([[0, 0, 0], [0, 0, 1]], [1, 8]), System.single([[0, 0, 0]], [8])
    forces = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    whole = loss(predicted([1.5, 4.0], forces.tolist()), LABELS, system, TrainingSettings())
    counts = LossCounts.of(LABELS)
    parts = 0.0
    for k, (part, atoms) in enumerate([(one, slice(0, 2)), (two, slice(2, 3))]):
        energy = torch.tensor([[1.5, 4.0][k]], dtype=torch.float64)
        prediction = Prediction(energy, torch.zeros(part.n_atoms, dtype=torch.float64), forces[atoms])
        labels = Labels(LABELS.energy[k : k + 1], LABELS.forces[atoms])
        parts += float(loss(prediction, labels, part, TrainingSettings(), counts=counts))
    assert parts == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("kind", get_args(ForceLoss))
def test_a_vanishing_force_error_has_a_finite_gradient(kind):
    error = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        force_loss(error, torch.zeros_like(error), TrainingSettings(force_loss=kind)), error
    )
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
