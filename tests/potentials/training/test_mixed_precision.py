"""Node products in bfloat16: close to float32, confined to training, and good enough to learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.mixed_precision import bfloat16_products
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Trainer

SETTINGS = TrainingSettings(
    steps=200, batch_size=4, warmup_steps=10, learning_rate=1e-2, node_matmul_dtype="bfloat16"
)  # fmt: skip
FORCES = frozenset({"energy", "forces"})


def forces(potential, dataset) -> torch.Tensor:
    predicted = potential(dataset.systems[0], properties=FORCES).forces
    assert predicted is not None
    return predicted


def test_forces_differ_by_the_rounding_of_bfloat16(potential, dataset):
    exact = forces(potential, dataset)
    with bfloat16_products(potential.model):
        rounded = forces(potential, dataset)
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 8 * torch.finfo(torch.bfloat16).eps * exact.norm()


def test_nothing_is_left_after_an_error(potential, dataset, monkeypatch):
    exact = forces(potential, dataset)

    def fail(*_):
        raise RuntimeError("inside a layer")

    monkeypatch.setattr(potential.model.blocks[0].feed_forward.gate, "forward", fail)
    with pytest.raises(RuntimeError, match="inside a layer"), bfloat16_products(potential.model):
        forces(potential, dataset)
    monkeypatch.undo()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(forces(potential, dataset), exact)


def test_derivatives_of_forces_are_float32_and_close(potential, dataset):
    def derivatives() -> torch.Tensor:
        predicted = potential(dataset.systems[0], properties=FORCES, create_graph=True).forces
        parameters = list(potential.model.parameters())
        found = torch.autograd.grad(predicted.square().sum(), parameters, allow_unused=True)
        assert all(g is None or g.dtype == torch.float32 for g in found)
        return torch.cat([g.flatten() for g in found if g is not None])

    exact = derivatives()
    with bfloat16_products(potential.model):
        rounded = derivatives()
    assert (rounded - exact).norm() < 16 * torch.finfo(torch.bfloat16).eps * exact.norm()


def test_four_frames_are_learnt(potential, dataset):
    few = Batches(dataset.subset(range(4)), 4.0)
    trainer = Trainer(potential, few, None, SETTINGS)
    before = trainer.evaluate(few)
    trainer.run()
    assert trainer.evaluate(few).forces.mae < 0.3 * before.forces.mae


def test_validation_uses_float32(potential, dataset):
    few = Batches(dataset.subset(range(4)), 4.0)
    rounded = Trainer(potential, few, None, SETTINGS).evaluate(few)
    exact = Trainer(potential, few, None, replace(SETTINGS, node_matmul_dtype="float32")).evaluate(few)
    assert rounded == exact


def test_a_network_without_node_layers_is_refused():
    with (
        pytest.raises(ValueError, match="Linear has no layers for bfloat16 products"),
        bfloat16_products(nn.Linear(2, 2)),
    ):
        pass


@pytest.mark.usefixtures("_untyped")
def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"node_matmul_dtype must be one of .*got 'float16'"):
        TrainingSettings(node_matmul_dtype="float16")
