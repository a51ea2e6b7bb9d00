"""Errors against hand-made numbers."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.errors import Comparison
from e2former_calc.potentials.training.loss import Labels

NAN = float("nan")


@pytest.fixture
def comparison() -> Comparison:
    one, two = System.single([[0, 0, 0], [0, 0, 1]], [1, 8]), System.single([[0, 0, 0]], [8])
    labels = Labels(torch.tensor([1.0, 2.0]).double(), torch.tensor([[1.0, 0, 0], [0, 0, 2.0], [0, 3.0, 0]]).double())
    forces = labels.forces + torch.tensor([[0.1] * 3, [0.2] * 3, [0.4] * 3]).double()
    prediction = Prediction(torch.tensor([1.2, 2.0]).double(), torch.zeros(3).double(), forces)
    comparison = Comparison()
    comparison.add(prediction, labels, System.stack([one, two]))
    return comparison


def test_errors_are_in_milli_units(comparison):
    errors = comparison.errors()
    assert errors.energy_mae == pytest.approx(50.0)
    assert errors.energy_rmse == pytest.approx(100.0 / 2**0.5)
    assert errors.forces.mae == pytest.approx(700 / 3)
    assert errors.forces.rmse == pytest.approx(1e3 * (0.21 / 3) ** 0.5)


def test_elements_have_their_own_errors(comparison):
    by_element = comparison.errors().by_element
    assert {z: e.mae for z, e in by_element.items()} == pytest.approx({1: 100.0, 8: 300.0})
    assert by_element[1].rmse == pytest.approx(100.0)
    assert by_element[1].cosine == pytest.approx(1.1 / (1.1**2 + 0.02) ** 0.5)


def test_unknown_labels_have_no_error():
    comparison = Comparison()
    labels = Labels(torch.tensor([NAN, 2.0]).double(), torch.tensor([[NAN] * 3, [1.0, 0, 0]]).double())
    system = System.stack([System.single([[0, 0, 0]], [1]), System.single([[0, 0, 0]], [8])])
    prediction = Prediction(torch.zeros(2).double(), torch.zeros(2).double(), torch.zeros(2, 3).double())
    comparison.add(prediction, labels, system)
    errors = comparison.errors()
    assert (errors.energy_mae, errors.forces.mae) == pytest.approx((2000.0, 1000.0 / 3))
    assert set(errors.by_element) == {8}


def test_no_structures_have_no_errors():
    with pytest.raises(ValueError, match="no structures"):
        Comparison().errors()


def test_errors_need_forces():
    system, labels = System.single([[0, 0, 0]], [1]), Labels(torch.zeros(1).double(), torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match="need predicted forces"):
        Comparison().add(Prediction(torch.zeros(1).double(), torch.zeros(1).double()), labels, system)
