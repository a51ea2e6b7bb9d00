"""The compiled training step gives the loss and the gradients of the plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ase import Atoms

from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.compiled import (
    CannotCompileError,
    CompiledLoss,
    batch_capacity,
    compiler_available,
)
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.loss import LossCounts, loss
from e2former_calc.potentials.training.settings import LossWeights, TrainingSettings
from e2former_calc.potentials.training.trainer import COMPILE_FROM_STEPS, Trainer

SETTINGS = TrainingSettings(batch_size=3, energy_weight=1.0, force_weight=1.0, stress_weight=20.0)
WEIGHTS, CUTOFF = LossWeights(1.5, 0.7, 20.0), 4.0


@pytest.fixture
def mixed(dataset: Dataset) -> Dataset:
    """Water molecules, one free atom, and ice with a stress."""
    generator = torch.Generator().manual_seed(5)
    ice = Atoms("OHHOHH", positions=torch.rand(6, 3, generator=generator).numpy() * 3.0, cell=[3.6] * 3, pbc=True)
    ice.positions += torch.arange(6)[:, None].numpy() * 0.8
    systems = (System.single(ice.positions, ice.numbers, cell=ice.cell.array, pbc=ice.pbc),
               System.single([[0.0, 0, 0]], [1]))  # fmt: skip
    forces = tuple(torch.randn(s.n_atoms, 3, generator=generator, dtype=torch.float64) for s in systems)
    stress = torch.randn(3, 3, generator=generator, dtype=torch.float64) * 0.01
    extra = Dataset(
        systems, torch.tensor([3.0, 1.0], dtype=torch.float64), forces, (stress + stress.T, None), "made up"
    )
    return Dataset.join([dataset, extra])


def compiled_loss(potential, batches, settings=SETTINGS, *, backend="eager") -> CompiledLoss:
    return CompiledLoss(
        potential.double(), dict(potential.model.named_parameters()), settings, stress=True,
        capacity=batch_capacity(potential, batches, settings.batch_size), elements=frozenset({1, 8}), backend=backend,
    )  # fmt: skip


def assert_equals_plain(compiled: CompiledLoss, batches: Batches, indices: list[int]) -> None:
    potential = compiled.potential
    system, lists, labels = batches.batch(indices)
    counts = LossCounts.of(labels)
    value, gradients = compiled(system, potential.graphs(system, lists), labels, weights=WEIGHTS, counts=counts)
    properties = frozenset({"energy", "forces", "stress"})
    prediction = potential(system, properties=properties, neighbors=lists, create_graph=True)
    expected = loss(prediction, labels, system, compiled.settings, weights=WEIGHTS, counts=counts)
    parameters = list(compiled.parameters.values())
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-12)
    for got, want in zip(gradients, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True):
        assert torch.allclose(got, torch.zeros_like(got) if want is None else want, rtol=1e-9, atol=1e-11)


def test_traced_steps_equal_plain_ones_for_batches_of_any_size(potential, mixed):
    batches = Batches(mixed, CUTOFF)
    compiled = compiled_loss(potential, batches)
    for indices in ([0, 1, 2], [12, 3, 4], [13], [5, 13]):
        assert_equals_plain(compiled, batches, indices)
    assert potential.model.implementation == "blocked"


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiled_steps_equal_plain_ones(potential, mixed):
    batches = Batches(mixed, CUTOFF)
    compiled = compiled_loss(potential, batches, backend="inductor")
    for indices in ([0, 1, 2], [12, 3, 4]):
        assert_equals_plain(compiled, batches, indices)


def test_dropout_cannot_be_compiled(potential, dataset):
    potential.model.config = replace(potential.model.config, alpha_dropout=0.1)
    for block in potential.model.blocks:
        block.attention.config = potential.model.config
    potential.model.train()
    batches = Batches(dataset, CUTOFF)
    system, lists, labels = batches.batch([0, 1])
    graphs, counts = potential.graphs(system, lists), LossCounts.of(labels)
    with pytest.raises(CannotCompileError, match="set alpha_dropout to 0"):
        compiled_loss(potential, batches)(system, graphs, labels, weights=WEIGHTS, counts=counts)


ENCODER = {"encoder": "dit", "encoder_hidden": 4, "encoder_heads": 2, "encoder_layers": 1}


@pytest.fixture
def original_potential() -> Callable[..., EnergyPotential]:
    """The original E2Former with random weights; keyword arguments change its configuration."""
    config = E2FormerV1Config(
        variant="modular", heads=("default",), channels=4, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=2,
        head_width=2, num_basis=8, max_radius=4.0, pbc_max_radius=4.0, max_neighbors=1000, orders=("first",),
        normalization="smooth_softmax", alpha_dropout=0.0, energy_shift=2.0, encoder_channels=4,
    )  # fmt: skip

    def build(**changes: Any) -> EnergyPotential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = E2FormerV1(replace(config, **changes))
        return EnergyPotential(
            model, head="default", reference_energies={"default": torch.zeros(119)}, elements=frozenset({1, 8}),
            force_mode="gradient", neighbor_cap="none",
        )  # fmt: skip

    return build


def test_traced_steps_of_the_original_e2former_equal_plain_ones(original_potential, mixed):
    batches = Batches(mixed, CUTOFF)
    compiled = compiled_loss(original_potential(**ENCODER), batches)
    for indices in ([12, 0, 1], [13]):
        assert_equals_plain(compiled, batches, indices)


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "changes",
    [ENCODER, {"orders": ("all",), "score": "dot_alpha", "lmax": 2, "channels": 8}],
    ids=["encoder", "all orders"],
)
def test_compiled_steps_of_the_original_e2former_equal_plain_ones(original_potential, mixed, changes):
    batches = Batches(mixed, CUTOFF)
    compiled = compiled_loss(original_potential(**changes), batches, backend="inductor")
    for indices in ([12, 0, 1], [13]):
        assert_equals_plain(compiled, batches, indices)


def test_clusters_cannot_be_compiled_and_are_trained_plainly(original_potential, dataset, monkeypatch):
    monkeypatch.setattr("e2former_calc.potentials.training.trainer.compiler_available", lambda _: True)
    settings = TrainingSettings(batch_size=2, steps=COMPILE_FROM_STEPS)
    trainer = Trainer(original_potential(clusters="kmeans"), Batches(dataset, CUTOFF), None, settings)
    assert trainer.compiled is not None
    with pytest.warns(UserWarning, match=r"edges of any length \(clusters\).*; training goes on without compiling"):
        trainer.train_step()
    trainer.train_step()
    assert (trainer.step, trainer.compiled) == (2, None)


def test_a_network_that_cannot_be_traced_is_named(potential, dataset, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a value of a tensor is needed")

    batches = Batches(dataset, CUTOFF)
    system, lists, labels = batches.batch([0, 1])
    graphs, counts = potential.graphs(system, lists), LossCounts.of(labels)
    compiled = compiled_loss(potential, batches)
    monkeypatch.setattr(potential.model, "forward", fails)
    with pytest.raises(CannotCompileError, match="tracing the training step failed: a value of a tensor is needed"):
        compiled(system, graphs, labels, weights=WEIGHTS, counts=counts)


def test_capacity_is_exact_for_structures_of_one_size(potential, dataset):
    capacity = batch_capacity(potential, Batches(dataset, CUTOFF), 4)
    assert (capacity.structures, capacity.atoms) == (5, 13)


def test_batches_beyond_the_capacity_are_trained_plainly(potential, mixed, monkeypatch):
    monkeypatch.setattr("e2former_calc.potentials.training.compiled.SPARE", -100.0)
    settings = replace(SETTINGS, compile="always", steps=2)
    trainer = Trainer(potential, Batches(mixed, CUTOFF), None, settings)
    assert trainer.compiled is not None
    trainer.run()
    plain = replace(settings, compile="never")
    assert trainer.step == plain.steps


def test_short_runs_are_not_compiled(potential, dataset):
    assert Trainer(potential, Batches(dataset, CUTOFF), None, SETTINGS.__class__(steps=100)).compiled is None
