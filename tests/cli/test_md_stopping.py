"""Stopping rules on the command line: what can be said, and what a rule that is broken leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.build import molecule
from click.testing import Result

from e2former_calc.cli.md_stopping import Stopping
from e2former_calc.md.stopping import StoppingRules

from .conftest import Run, saved


def rules(*texts: str) -> StoppingRules:
    return Stopping(max_force=50.0, stop_rule=texts, check_every=10).rules(has_thermostat=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature-window", {"temperature_window": (0.1, 5.0)}),
        ("temperature-window=0.5:2", {"temperature_window": (0.5, 2.0)}),
        ("min-distance-ratio", {"min_distance_ratio": 0.6}),
        ("min-distance-ratio=0.7", {"min_distance_ratio": 0.7}),
        ("max-bond-change", {"max_bond_change": 0.5}),
        ("max-bond-change=1", {"max_bond_change": 1.0}),
        ("keep-fragments", {"keep_fragments": True}),
    ],
)
def test_a_rule_has_a_usual_bound_or_a_given_one(text: str, expected: dict[str, Any]) -> None:
    assert rules(text) == StoppingRules(**expected)


def test_without_the_option_only_forces_count() -> None:
    assert rules() == StoppingRules()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("heat",), "--stop-rule heat: choose from temperature-window, min-distance-ratio, max-bond-change, keep-fr"),
        (("keep-fragments",) * 2, "--stop-rule keep-fragments was given twice"),
        (("keep-fragments=1",), "keep-fragments has no bound, give the name alone"),
        (("max-bond-change=big",), "--stop-rule max-bond-change=big needs a number, such as max-bond-change=0.5"),
        (("temperature-window=3",), "needs LOW:HIGH, such as temperature-window=0.1:5"),
        (("max-bond-change=0",), "`max_bond_change` must be positive, got 0.0"),
        (("temperature-window=5:1",), "`temperature_window` must be two ascending multiples"),
    ],
)
def test_rules_that_make_no_sense_are_refused(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules(*texts)


def test_a_temperature_window_needs_a_thermostat() -> None:
    stopping = Stopping(max_force=50.0, stop_rule=("temperature-window",), check_every=10)
    with pytest.raises(ValueError, match="compares with the temperature of a thermostat, and --ensemble nve has none"):
        stopping.rules(has_thermostat=False)


def two_strangers(distance: float) -> Atoms:
    """Two water molecules whose oxygen atoms are at a distance."""
    water, other = molecule("H2O"), molecule("H2O")
    other.rotate(180, "x")
    other.positions += water.positions[0] + [0, 0, distance] - other.positions[0]
    return water + other


class Scene:
    """A run of one structure with one rule in the current folder."""

    def __init__(self, run: Run, model: Path, atoms: Atoms, *options: object) -> None:
        path = saved(Path("start.xyz"), atoms)
        common = ("--steps", 40, "--friction-per-ps", 0.1, "--every", 1, "--max-force", 1e9, "--out", "run")
        self.result: Result = run("md", path, "--model", model, *common, *options)

    @property
    def stopped(self) -> Any:
        return json.loads(Path("run-summary.json").read_text())["results"]["replicas"][0]["stopped"]


HEAT = ("--temperature-K", 30000)


@pytest.mark.parametrize(
    ("atoms", "options", "rule", "sentence"),
    [
        (molecule("H2O"), ("--stop-rule", "temperature-window=0.98:0.99"), "TEMPERATURE", "over 50 fs was outside"),
        (molecule("H2O"), (*HEAT, "--stop-rule", "max-bond-change=0.3"), "BOND", "a bond changed by more than 0.3 Å"),
        (molecule("H2O"), (*HEAT, "--stop-rule", "keep-fragments"), "FRAGMENTS", "the number of molecules changed"),
        (
            two_strangers(2.1),
            (*HEAT, "--stop-rule", "min-distance-ratio=1.5"),
            "DISTANCE",
            "came closer than 1.5 times",
        ),
    ],
)
def test_a_broken_rule_is_told_with_its_step_and_last_good_state(
    run: Run, model: Path, atoms: Atoms, options: tuple[object, ...], rule: str, sentence: str
) -> None:
    scene = Scene(run, model, atoms, "--timestep-fs", 1, "--check-every", 2, "--steps", 100, *options)
    assert scene.result.exit_code == 2, scene.result.output
    stopped = scene.stopped
    assert stopped["rule"] == rule
    assert sentence in stopped["message"]
    assert f"stopped at step {stopped['step']}: " in scene.result.stdout
    assert stopped["last_good_step"] == stopped["step"] - (1 if rule == "TEMPERATURE" else 2)
    last = ase.io.read("run-final.extxyz")
    assert (last.info["step"], last.info["stopped_at_step"]) == (stopped["last_good_step"], stopped["step"])
    frames = {frame.info["step"]: frame for frame in ase.io.read("run.h5md", ":")}
    assert last.positions == pytest.approx(frames[stopped["last_good_step"]].positions, abs=1e-7)


@pytest.mark.parametrize(
    "rule", ["temperature-window=0:99", "max-bond-change=3", "keep-fragments", "min-distance-ratio"]
)
def test_a_rule_that_is_kept_stops_nothing(run: Run, model: Path, rule: str) -> None:
    scene = Scene(
        run, model, molecule("H2O"), "--temperature-K", 50, "--steps", 20, "--check-every", 5, "--stop-rule", rule
    )
    assert scene.result.exit_code == 0, scene.result.output
    assert scene.stopped is None
