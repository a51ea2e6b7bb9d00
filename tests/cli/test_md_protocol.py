"""From options to integrators, and warnings of doubtful choices."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixCom

from e2former_calc import E2FormerCalculator
from e2former_calc.cli.md_protocol import DomainWatch, Protocol, doubts
from e2former_calc.md.integrators import (
    AdaptiveQuantumThermalBath,
    Bussi,
    Langevin,
    MonteCarloBarostat,
    NoseHooverChain,
    QuantumThermalBath,
    StochasticCellRescaling,
    VelocityVerlet,
)
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Simulation

WATER = molecule("H2O")


def protocol(**changes: Any) -> Protocol:
    """300 K Langevin dynamics with some options changed."""
    defaults: dict[str, Any] = {
        "ensemble": "nvt", "thermostat": None, "barostat": None, "temperature": 300.0, "final_temperature": None,
        "pressure_bar": 1.0, "timestep_fs": 0.5, "friction_per_ps": 1.0, "relaxation_time_fs": 100.0,
        "pressure_relaxation_time_fs": 1000.0, "compressibility_per_bar": 4.5e-5, "fix_com": False, "steps": 100,
        "time_ps": None,
    }  # fmt: skip
    return Protocol(**(defaults | changes))


@pytest.mark.parametrize(
    ("options", "has_stress", "expected"),
    [
        ({"ensemble": "nve"}, True, VelocityVerlet(0.5)),
        ({}, True, Langevin(0.5, 300.0, 1.0)),
        ({"thermostat": "bussi"}, True, Bussi(0.5, 300.0, 100.0)),
        ({"thermostat": "nose-hoover"}, True, NoseHooverChain(0.5, 300.0, 100.0)),
        ({"ensemble": "npt"}, True, StochasticCellRescaling(0.5, 300.0, 1.0)),
        ({"ensemble": "npt"}, False, MonteCarloBarostat(Langevin(0.5, 300.0, 1.0), 1.0)),
        ({"ensemble": "npt", "thermostat": "bussi"}, True, MonteCarloBarostat(Bussi(0.5, 300.0, 100.0), 1.0)),
        ({"ensemble": "npt", "barostat": "monte-carlo"}, True, MonteCarloBarostat(Langevin(0.5, 300.0, 1.0), 1.0)),
        ({"thermostat": "qtb", "friction_per_ps": 9.0}, True, QuantumThermalBath(0.5, 300.0, 9.0)),
        ({"thermostat": "adqtb", "friction_per_ps": None}, True, AdaptiveQuantumThermalBath(0.5, 300.0, 20.0)),
        ({"friction_per_ps": None}, True, Langevin(0.5, 300.0, 1.0)),
        (
            {"ensemble": "npt", "barostat": "anisotropic-cell-rescaling", "pressure_bar": 5.0},
            True,
            AnisotropicCellRescaling(0.5, 300.0, 5.0),
        ),
        ({"final_temperature": 100.0}, True, Langevin(0.5, LinearRamp(300.0, 100.0, 100), 1.0)),
    ],
)
def test_options_choose_the_integrator(options: dict[str, Any], has_stress: bool, expected: Any) -> None:
    assert protocol(**options).integrator(has_stress=has_stress) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nve", "thermostat": "bussi"}, "need --ensemble nvt or npt, not nve"),
        ({"barostat": "monte-carlo"}, "--barostat needs --ensemble npt, not nvt"),
        ({"ensemble": "npt", "barostat": "cell-rescaling", "thermostat": "bussi"}, "use --barostat monte-carlo"),
        ({"ensemble": "npt", "thermostat": "qtb"}, "--thermostat qtb samples no classical ensemble"),
        (
            {"ensemble": "npt", "barostat": "anisotropic-cell-rescaling", "thermostat": "bussi"},
            "--barostat anisotropic-cell-rescaling works with --thermostat langevin, not bussi",
        ),
        ({"time_ps": 1.0}, "one of them"),
        ({"steps": None, "time_ps": -1.0}, "--time-ps must be 0 or more and finite, got -1.0"),
        ({"timestep_fs": 0.0}, "--timestep-fs must be positive and finite, got 0.0"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(**options)


@pytest.mark.parametrize("barostat", ["cell-rescaling", "anisotropic-cell-rescaling"])
def test_cell_rescaling_needs_a_stress(barostat: str) -> None:
    with pytest.raises(ValueError, match="use --forces gradient or --barostat monte-carlo"):
        protocol(ensemble="npt", barostat=barostat).integrator(has_stress=False)


def said(options: Protocol, *, conservative: bool = True, atoms: Atoms = WATER) -> str:
    """All doubts in one text."""
    integrator = options.integrator(has_stress=conservative)
    return " | ".join(doubts(options, integrator, atoms, conservative=conservative))


def test_usual_choices_raise_no_doubt() -> None:
    assert said(protocol()) == ""
    assert said(protocol(ensemble="nve", timestep_fs=1.0)) == ""


@pytest.mark.parametrize(
    "options",
    [{}, {"thermostat": "qtb"}, {"ensemble": "npt"}]
    + [{"ensemble": "npt", "barostat": name} for name in ("monte-carlo", "anisotropic-cell-rescaling")],
)
def test_strong_friction_is_doubtful(options: dict[str, Any]) -> None:
    assert "a friction of 50/ps (above 20/ps) rules the motion" in said(protocol(friction_per_ps=50.0, **options))
    assert said(protocol(friction_per_ps=20.0, **options)) == ""


def test_thermostats_without_friction_are_not_doubted() -> None:
    assert said(protocol(friction_per_ps=50.0, thermostat="bussi")) == ""


def test_long_steps_are_doubtful_with_light_hydrogen_only() -> None:
    heavy = WATER.copy()
    heavy.set_masses([16.0, 3.0, 3.0])
    long = protocol(timestep_fs=2.0)
    assert "too long for 2 light hydrogen atoms" in said(long)
    assert said(long, atoms=heavy) == ""


@pytest.mark.parametrize(("ensemble", "effect"), [("nve", "heats or cools"), ("nvt", "works against the thermostat")])
def test_forces_of_a_head_are_doubtful(ensemble: str, effect: str) -> None:
    assert effect in said(protocol(ensemble=ensemble), conservative=False)


def test_pressure_without_stress_is_explained() -> None:
    assert "controlled by Monte Carlo moves" in said(protocol(ensemble="npt"), conservative=False)


class Simulated(Simulation):
    """Two replicas at a step."""

    def __init__(self, step: int) -> None:
        self.now = step

    step = property(lambda self: self.now)  # type: ignore[assignment]
    state = property(lambda self: SimpleNamespace(running=torch.tensor([True, True])))  # type: ignore[assignment]

    def atoms(self, replica: int = 0) -> Atoms:
        atoms: Atoms = WATER.copy()
        atoms.info["replica"] = replica
        return atoms


class Judge(E2FormerCalculator):
    """A calculator for which replica 1 is far outside."""

    def __init__(self) -> None:
        self.outside = "auto"

    potential = property(lambda self: SimpleNamespace(domain="somewhere"))  # type: ignore[assignment]

    def get_extrapolation(self, atoms: Atoms) -> Any:
        return np.array([0.5, 9.0 if atoms.info["replica"] == 1 else 0.4, 0.6])


def test_leaving_the_training_data_is_told_once() -> None:
    watch = DomainWatch(Judge())
    with pytest.warns(UserWarning, match=r"replica 1, step 10: atom 1 \(H\) is in surroundings unlike the training"):
        watch(Simulated(10))
    assert watch.warned == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(Simulated(20))


def test_the_start_is_judged_elsewhere() -> None:
    watch = DomainWatch(Judge())
    watch(Simulated(0))
    assert watch.warned == []


def test_the_center_of_mass_is_fixed_on_request_only_and_once() -> None:
    assert not protocol().constrained(WATER).constraints
    fixed = protocol(fix_com=True).constrained(WATER)
    assert [type(constraint) for constraint in fixed.constraints] == [FixCom]
    assert len(protocol(fix_com=True).constrained(fixed).constraints) == 1
    assert not WATER.constraints


def test_a_ramp_lasts_as_long_as_the_run() -> None:
    ramp = replace(protocol(), final_temperature=500.0, steps=None, time_ps=0.1).target
    assert ramp == LinearRamp(300.0, 500.0, 200)
