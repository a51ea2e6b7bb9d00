"""Settings of a training run."""

from __future__ import annotations

import pytest

from e2former_calc.potentials.training.settings import TrainingSettings


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive"),
        ({"weight_decay": -1}, "weight_decay must not be negative"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"force_loss": "l3"}, "force_loss must be one of"),
        ({"final_energy_weight": -2.0}, "final_energy_weight must not be negative"),
        ({"compile": "maybe"}, "compile must be one of"),
        ({"energy_weight": 0, "force_weight": 0}, "all loss weights are zero"),
        ({"stepps": 5}, r"\['stepps'\] do not exist"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings.from_mapping(values)


def test_the_learning_rate_rises_then_falls_to_its_final_fraction():
    settings = TrainingSettings(steps=1000, warmup_steps=100, learning_rate=1.0, final_learning_rate=0.01)
    rates = [settings.rate(step) for step in range(1001)]
    assert max(rates) == pytest.approx(1.0, rel=0.05)
    assert rates[:100] == sorted(rates[:100])
    assert rates[120:] == sorted(rates[120:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_weights_go_from_the_first_to_the_final_value():
    settings = TrainingSettings(steps=100, energy_weight=1.0, final_energy_weight=5.0, force_weight=3.0)
    assert [settings.weights(step).energy for step in (0, 50, 100)] == pytest.approx([1.0, 3.0, 5.0])
    assert settings.weights(70).forces == 3.0


def test_settings_survive_a_dictionary():
    settings = TrainingSettings(steps=7, force_loss="huber")
    assert TrainingSettings.from_mapping(settings.to_dict()) == settings
