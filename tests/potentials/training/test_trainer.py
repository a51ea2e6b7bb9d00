"""The loop learns, and continues bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.distributed import Workers
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Trainer

SETTINGS = TrainingSettings(steps=20, batch_size=3, warmup_steps=2, validate_every=5)


@pytest.fixture
def make(potential, dataset):
    """Trainer on eight frames, validated on four; the network starts the same every time."""
    start = {name: tensor.clone() for name, tensor in potential.model.state_dict().items()}

    def build(settings: TrainingSettings = SETTINGS, **options) -> Trainer:
        potential.model.load_state_dict(start)
        training, validation = Batches(dataset.subset(range(8)), 4.0), Batches(dataset.subset(range(8, 12)), 4.0)
        return Trainer(potential, training, validation, settings, **options)

    return build


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_four_frames_can_be_learnt_by_heart(make, dataset, potential):
    settings = TrainingSettings(steps=400, batch_size=4, warmup_steps=10, learning_rate=1e-2, validate_every=1000)
    few = Batches(dataset.subset(range(4)), 4.0)
    trainer = Trainer(potential, few, None, settings)
    before = trainer.evaluate(few)
    trainer.run()
    after = trainer.evaluate(few)
    assert after.forces.mae < 0.1 * before.forces.mae
    assert after.energy_mae < 0.1 * before.energy_mae


def test_a_resumed_run_equals_an_uninterrupted_one(make, tmp_path):
    whole = make()
    whole.run()
    expected, best = weights(whole), whole.best[0]
    first = make()
    first.run(stop=lambda: first.step == 7)
    first.save(tmp_path / "state.pt", extra={"note": 1})
    second = make()
    assert second.load(tmp_path / "state.pt") == {"note": 1}
    second.run()
    assert torch.equal(weights(second), expected)
    assert second.best[0] == best


def test_other_settings_are_refused_by_name(make, tmp_path):
    trainer = make()
    trainer.save(tmp_path / "state.pt")
    other = make(TrainingSettings(steps=20, batch_size=3, warmup_steps=2, validate_every=5, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"learning_rate was 0\.003, is 0\.5"):
        other.load(tmp_path / "state.pt")


def test_a_setting_that_an_old_state_does_not_know_has_its_default(make, tmp_path):
    make().save(tmp_path / "state.pt")
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    del content["settings"]["node_matmul_dtype"]
    torch.save(content, tmp_path / "state.pt")
    make().load(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="node_matmul_dtype was 'float32', is 'bfloat16'"):
        make(replace(SETTINGS, node_matmul_dtype="bfloat16")).load(tmp_path / "state.pt")


def test_processes_draw_different_dropout(make):
    trainer, draws = make(), []
    for rank in (0, 1, 0):
        trainer.workers = Workers(rank, 2)
        with trainer._seeded():
            draws.append(torch.rand(8))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_the_global_random_state_is_left_alone(make):
    before = torch.get_rng_state()
    make().train_step()
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_keep_their_values(make):
    trainer = make(frozen=("embedding.",))
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    trainer.train_step()
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("embedding."), name


def test_a_frozen_name_that_does_not_exist_is_refused(make):
    with pytest.raises(ValueError, match=r"names no parameter with \['encoder'\]"):
        make(frozen=("encoder",))


def test_freezing_everything_is_refused(make):
    with pytest.raises(ValueError, match="nothing is left to train"):
        make(frozen=("",))


def test_a_loss_that_is_not_finite_stops_the_run(make):
    trainer = make()
    with torch.no_grad():
        next(iter(trainer.network.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="at step 0: lower learning_rate"):
        trainer.run()


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(make, potential):
    trainer = make()
    before = weights(trainer)
    potential.model.blocks[0].feed_forward.last.bias.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(FloatingPointError, match="gradient is nan at step 0"):
        trainer.run()
    assert torch.equal(weights(trainer), before)


def test_the_best_validated_weights_are_kept(make):
    trainer = make()
    trainer.run()
    best = trainer.best[1]
    trainer.finish()
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(parameter, best[name])
        assert not parameter.requires_grad


def test_a_failed_save_leaves_the_old_state(make, tmp_path, monkeypatch):
    trainer = make()
    trainer.save(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
