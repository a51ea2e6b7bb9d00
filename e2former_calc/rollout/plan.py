# ruff: noqa: N815 (units in names)
"""What is simulated, from where, for how long, and what it is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from e2former_calc.md.integrators import Bussi, Integrator, Langevin, NoseHooverChain, VelocityVerlet
from e2former_calc.md.stopping import StoppingRules
from e2former_calc.report import ReportSettings

THERMOSTATS: Final = ("langevin", "nose-hoover", "bussi", "none")
"""The last one is constant energy."""

DEFAULT_TIME_PS: Final = 4.0
"""With 4 replicas of the bundled peptide and the report about three minutes on two CPU cores."""

DEFAULT_EVERY_FS: Final = 4.0
"""Resolves vibrations of hydrogen, up to 4170 1/cm."""

DEFAULT_FRICTION_PER_PS: Final = 10.0
TEMPERATURE_RANGE: Final = (0.1, 5.0)
"""Mean temperatures over 50 fs outside these multiples of the target stop a replica."""

MAY_CHANGE: Final = ("time_ps", "report", "preset", "reference", "structure")
"""What a run that is continued may have otherwise: the frames that are there and those to come do not depend on it."""


@dataclass(frozen=True)
class RolloutPlan:
    """Everything about rollouts except the model.

    Attributes:
        reference: trajectory to compare with, "FILE" or "FILE@START:STOP"; None: the one bundled for the model.
        structure: file or bundled molecule to start from, with the atoms in the order of the reference; None: frames
            of the reference, equally spaced, one for each replica, the first frame for the first.
        temperature_K: of first velocities and thermostat; None: as the reference states it.
        time_ps: length, cut to whole frames.
        timestep_fs: of the integrator.
        every_fs: time between frames, a multiple of the time step.
        replicas: independent runs, as one batch.
        thermostat: one of `THERMOSTATS`; "langevin" is BAOAB, "nose-hoover" a chain.
        friction_per_ps: of langevin; None: as the reference states it, else 10/ps.
        relaxation_time_fs: of nose-hoover and bussi.
        max_force: a replica is stopped when a force exceeds this, in eV/Å.
        seed: of first velocities and noise.
        preset: name of the preset that values come from.
        report: thresholds and ranges; temperature, ensemble, length and frame spacing are those of the run.

    Raises:
        ValueError: for values that make no sense, naming the value.
    """

    reference: str | None = None
    structure: str | None = None
    temperature_K: float | None = None
    time_ps: float = DEFAULT_TIME_PS
    timestep_fs: float = 0.5
    every_fs: float = DEFAULT_EVERY_FS
    replicas: int = 4
    thermostat: str = "langevin"
    friction_per_ps: float | None = None
    relaxation_time_fs: float = 100.0
    max_force: float = 50.0
    seed: int = 0
    preset: str | None = None
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        if self.thermostat not in THERMOSTATS:
            raise ValueError(f"`thermostat` must be one of {', '.join(THERMOSTATS)}, got {self.thermostat!r}")
        for name in ("temperature_K", "time_ps", "timestep_fs", "every_fs", "relaxation_time_fs", "max_force"):
            _check(name, getattr(self, name), lambda value: value > 0, "positive")
        _check("friction_per_ps", self.friction_per_ps, lambda value: value >= 0, "0 or more")
        _check("replicas", self.replicas, lambda value: value >= 1, "at least 1")
        _check("seed", self.seed, lambda value: 0 <= value < 2**64, "from 0 to 2^64 - 1")
        ratio = self.every_fs / self.timestep_fs
        if self.stride < 1 or abs(ratio - self.stride) > 1e-6 * ratio:
            raise ValueError(
                f"`every_fs` must be a multiple of the time step of {self.timestep_fs:g} fs, got {self.every_fs:g}, "
                f"possible is {max(1, self.stride) * self.timestep_fs:g}"
            )
        if self.frames < 2:
            raise ValueError(
                f"`time_ps` = {self.time_ps:g} is shorter than the time between two frames, {self.every_fs:g} fs: "
                "make it longer, or `every_fs` shorter"
            )

    @property
    def stride(self) -> int:
        """Steps between frames."""
        return round(self.every_fs / self.timestep_fs)

    @property
    def frames(self) -> int:
        """Frames of a complete rollout."""
        return int(1000.0 * self.time_ps / self.every_fs + 1e-6) + 1

    @property
    def steps(self) -> int:
        """Steps of a complete rollout; the last one is a frame, so that no early stop goes unnoticed."""
        return (self.frames - 1) * self.stride

    @property
    def length_ps(self) -> float:
        """Time from the first to the last frame of a complete rollout."""
        return 1e-3 * (self.frames - 1) * self.every_fs

    @property
    def ensemble(self) -> str:
        """Constant energy ("nve") without thermostat, else "nvt"."""
        return "nve" if self.thermostat == "none" else "nvt"

    @property
    def stopping(self) -> StoppingRules:
        """Rules for what is lost; broken bonds are left to the report, which sees them in the frames."""
        return StoppingRules(max_force=self.max_force, temperature_window=TEMPERATURE_RANGE)

    def settled(self, attributes: Mapping[str, Any]) -> RolloutPlan:
        """The plan with the temperature and the friction that a reference states, where it leaves them open.

        Args:
            attributes: of the reference, among them `temperature_K` and `friction_per_fs` (1/fs).

        Raises:
            ValueError: if the temperature is not known.
        """
        temperature, friction = self.temperature_K, self.friction_per_ps
        if temperature is None:
            temperature = _positive(attributes.get("temperature_K"))
        if temperature is None:
            raise ValueError("the reference does not state its temperature: give `temperature_K`, or a preset")
        if friction is None:
            stated = _positive(attributes.get("friction_per_fs"))
            friction = DEFAULT_FRICTION_PER_PS if stated is None else 1000.0 * stated
        return replace(self, temperature_K=temperature, friction_per_ps=friction)

    def integrator(self) -> Integrator:
        """The integrator of a settled plan.

        Raises:
            ValueError: if temperature or friction are open.
        """
        if self.thermostat == "none":
            return VelocityVerlet(self.timestep_fs)
        if self.temperature_K is None or self.friction_per_ps is None:
            raise ValueError("`temperature_K` and `friction_per_ps` are open: call `settled` first")
        if self.thermostat == "langevin":
            return Langevin(self.timestep_fs, self.temperature_K, self.friction_per_ps)
        kind = NoseHooverChain if self.thermostat == "nose-hoover" else Bussi
        return kind(self.timestep_fs, self.temperature_K, self.relaxation_time_fs)

    def report_settings(self) -> ReportSettings:
        """What the report judges by: a rollout that is shorter than planned is not complete."""
        return replace(
            self.report, temperature_K=self.temperature_K, ensemble=self.ensemble, expected_ps=self.length_ps,
            frame_spacing_fs=self.every_fs,
        )  # fmt: skip

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """What makes frames of this plan others than those of an earlier one, in words.

        Args:
            earlier: that plan, as `to_dict` gives it.
        """
        return [
            f"{name} was {earlier.get(name)}, is {value}"
            for name, value in self.to_dict().items()
            if name not in MAY_CHANGE and earlier.get(name) != value
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, which `plan_from_dict` reads."""
        return asdict(self)


def _check(name: str, value: float | None, allowed: Callable[[float], bool], wanted: str) -> None:
    if value is not None and not (math.isfinite(value) and allowed(value)):
        raise ValueError(f"`{name}` must be {wanted}, got {value:g}")


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
