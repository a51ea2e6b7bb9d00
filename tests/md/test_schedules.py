"""Targets that change with the step."""

from __future__ import annotations

import pytest

from e2former_calc.md.schedules import LinearRamp, check_targets, targets_at


@pytest.mark.parametrize(("step", "expected"), [(0, 100.0), (5, 150.0), (10, 200.0), (99, 200.0)])
def test_ramp_is_linear_and_then_constant(step: int, expected: float) -> None:
    assert LinearRamp(100.0, 200.0, 10).at(step) == pytest.approx(expected)


def test_one_target_serves_all_replicas() -> None:
    assert targets_at(300.0, 4, 3) == [300.0, 300.0, 300.0]


def test_every_replica_can_have_its_own_target() -> None:
    assert targets_at((300.0, LinearRamp(0.0, 10.0, 10)), 4, 2) == [300.0, 4.0]


def test_wrong_number_of_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="2 targets were given for 3 replicas"):
        targets_at((1.0, 2.0), 0, 3)


@pytest.mark.parametrize("target", [-1.0, float("nan"), float("inf"), LinearRamp(1.0, -1.0, 5), (1.0, -1.0)])
def test_bad_targets_are_refused(target: object) -> None:
    with pytest.raises(ValueError, match="`temperature_K` must be at least 0 K and finite"):
        check_targets("temperature_K", target, minimum=0.0, unit="K")  # type: ignore[arg-type]


def test_ramp_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="`steps` of a ramp must be at least 1, got 0"):
        LinearRamp(0.0, 1.0, 0)
