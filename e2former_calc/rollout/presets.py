"""Conditions that the published tables of rollouts were made with, by system.

They add to `e2former_calc.report.PRESETS`, which hold thresholds and ranges of a family of systems, what is
simulated. Sources: X. Fu et al., Trans. Mach. Learn. Res. (2023), arXiv:2210.07237, and its code for MD17, water and
LiPS; the simulation files of E2Former, arXiv:2501.19216, for MD22.

* MD22: Langevin dynamics with `friction: 0.5`. That number went to ASE without a unit, in inverse ASE time units of
  10.18 fs, and is 49/ps.
* MD17, water, LiPS: one Nosé-Hoover thermostat with a relaxation time of 20 steps. Here it is a chain of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from ase import Atoms, units
from ase.formula import Formula
from jaxtyping import Int

from e2former_calc.report import PRESETS as FAMILIES
from e2former_calc.report import ReportSettings
from e2former_calc.rollout.plan import RolloutPlan

MD22_FRICTION_PER_PS: Final = 0.5 * 1000.0 * units.fs
"""0.5 per ASE time unit, 49.11/ps."""

THERMOSTAT_STEPS: Final = 20
"""Relaxation time of the published Nosé-Hoover thermostat, in steps."""


@dataclass(frozen=True)
class Preset:
    """A published benchmark.

    Attributes:
        system: what it is, for people.
        formula: in Hill order; of a periodic system its smallest unit.
        plan: how it is simulated and judged; reference and start are the user's.
        periodic: whether any multiple of the formula is the system.
    """

    system: str
    formula: str
    plan: RolloutPlan
    periodic: bool = False

    def covers(self, numbers: Int[np.ndarray, " atoms"]) -> bool:
        """Whether atoms with these numbers are the system."""
        formula = Atoms(numbers).get_chemical_formula()
        return self.formula == (reduced(formula) if self.periodic else formula)


def reduced(formula: str) -> str:
    """The smallest unit of a formula, in Hill order."""
    return str(Formula(formula).reduce()[0].format("hill"))


def _molecule(family: str, system: str, formula: str, **conditions: Any) -> Preset:
    """500 K, 0.5 fs, a frame every 50 fs."""
    plan = RolloutPlan(
        temperature_K=500.0, timestep_fs=0.5, every_fs=50.0, report=FAMILIES[family], **conditions
    )  # fmt: skip
    return Preset(system, formula, plan)


def _md17(system: str, formula: str) -> Preset:
    return _molecule(
        "md17", system, formula, time_ps=300.0, thermostat="nose-hoover", relaxation_time_fs=THERMOSTAT_STEPS * 0.5,
        replicas=5,
    )  # fmt: skip


def _md22(system: str, formula: str) -> Preset:
    return _molecule("md22", system, formula, time_ps=100.0, friction_per_ps=MD22_FRICTION_PER_PS, replicas=1)


def _liquid(system: str, formula: str, family: str, *, timestep_fs: float, every_fs: float, time_ps: float) -> Preset:
    settings = FAMILIES[family]
    plan = RolloutPlan(
        temperature_K=settings.temperature_K, timestep_fs=timestep_fs, every_fs=every_fs, time_ps=time_ps, replicas=5,
        thermostat="nose-hoover", relaxation_time_fs=THERMOSTAT_STEPS * timestep_fs, report=settings,
    )  # fmt: skip
    return Preset(system, formula, plan, periodic=True)


PRESETS: Final[Mapping[str, Preset]] = {
    "md22-ac-ala3-nhme": _md22("Ac-Ala3-NHMe", "C12H22N4O4"),
    "md22-dha": _md22("docosahexaenoic acid", "C22H32O2"),
    "md22-stachyose": _md22("stachyose", "C24H42O21"),
    "md22-at-at": _md22("two stacked A-T base pairs", "C20H22N14O4"),
    "md22-at-at-cg-cg": _md22("four stacked base pairs, A-T and C-G", "C38H42N30O8"),
    "md22-buckyball-catcher": _md22("C60 in its catcher", "C120H28"),
    "md22-double-walled-nanotube": _md22("double-walled carbon nanotube", "C326H44"),
    "md17-aspirin": _md17("aspirin", "C9H8O4"),
    "md17-ethanol": _md17("ethanol", "C2H6O"),
    "md17-naphthalene": _md17("naphthalene", "C10H8"),
    "md17-salicylic-acid": _md17("salicylic acid", "C7H6O3"),
    "water": _liquid("liquid water", "H2O", "water", timestep_fs=1.0, every_fs=100.0, time_ps=500.0),
    "lips": _liquid("the electrolyte LiPS", "Li27P12S44", "lips", timestep_fs=0.25, every_fs=12.5, time_ps=50.0),
}
"""Published benchmarks by name."""


def plan_from_dict(values: Mapping[str, Any]) -> RolloutPlan:
    """A plan from fields of `RolloutPlan`; those that are absent are of the preset, or have their defaults.

    Args:
        values: for instance the content of a YAML file; `report` holds fields of `ReportSettings`.

    Raises:
        ValueError: for an unknown field, an unknown preset, or values that make no sense.
    """
    given = dict(values)
    _only(given, RolloutPlan, "a plan")
    name = given.get("preset")
    if name is not None and name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    base = RolloutPlan() if name is None else PRESETS[name].plan
    settings = given.pop("report", None) or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"`report` must hold fields of ReportSettings, got {settings!r}")
    _only(settings, ReportSettings, "`report`")
    try:
        return replace(base, **given, report=replace(base.report, **settings))
    except TypeError as error:
        raise ValueError(f"a plan has a value of the wrong kind: {error}") from error


def check_covered(plan: RolloutPlan, numbers: Int[np.ndarray, " atoms"], *, what: str) -> None:
    """Refuse another system than that of the preset.

    Args:
        plan: with or without a preset.
        numbers: atomic numbers.
        what: what they belong to, for the message.

    Raises:
        ValueError: naming both systems.
    """
    preset = PRESETS.get(plan.preset or "")
    if preset is not None and not preset.covers(numbers):
        raise ValueError(
            f"the preset {plan.preset} is for {preset.system}, {preset.formula}, but {what} is "
            f"{Atoms(numbers).get_chemical_formula()}: choose another preset, or give {what} of that system"
        )


def check_model(plan: RolloutPlan, model: str, formulas: frozenset[str]) -> None:
    """Refuse a model that was made for other systems than that of the preset.

    Args:
        plan: with or without a preset.
        model: its name, for the message.
        formulas: the only ones that it is for, in Hill order; empty: any.

    Raises:
        ValueError: naming both systems.
    """
    preset = PRESETS.get(plan.preset or "")
    if preset is None or not formulas:
        return
    if preset.formula not in ({reduced(formula) for formula in formulas} if preset.periodic else formulas):
        raise ValueError(
            f"the preset {plan.preset} is for {preset.system}, {preset.formula}, and the model {model} only for "
            f"{', '.join(sorted(formulas))}: give a model of that system with --model"
        )


def _only(values: Mapping[str, Any], kind: type[Any], where: str) -> None:
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise ValueError(f"{where} has no fields {', '.join(unknown)}; it knows {', '.join(known)}")
