"""How a reference trajectory is run: temperature, times, ensemble, and which steps are recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass

ENSEMBLES = ("nvt", "nve")

_OPTIONS = {"temperature": "--temperature-K"}


@dataclass(frozen=True)
class ReferenceSettings:
    """How a trajectory is run.

    Attributes:
        temperature: of the thermostat and of the first velocities, in K.
        time_ps: recorded time; the first frame is at 0.
        ensemble: "nvt" (Langevin) or "nve" (velocity Verlet; equilibrated with the thermostat).
        friction_per_ps: of the thermostat.
        timestep_fs: of the integrator.
        every_fs: time between frames, a multiple of the time step.
        equilibration_ps: time before the first frame.
        relax: go to a minimum before.
        seed: of velocities and thermostat.
        restart_every: steps between points from which a run can continue.

    Raises:
        ValueError: for values that make no sense, naming the option.
    """

    temperature: float
    time_ps: float
    ensemble: str = "nvt"
    friction_per_ps: float = 10.0
    timestep_fs: float = 0.5
    every_fs: float = 5.0
    equilibration_ps: float = 0.5
    relax: bool = False
    seed: int = 0
    restart_every: int = 50

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"the ensemble must be nvt or nve, got {self.ensemble!r}")
        for name in ("temperature", "timestep_fs", "every_fs", "friction_per_ps", "restart_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{_option(name)} must be positive, got {getattr(self, name):g}")
        for name in ("time_ps", "equilibration_ps", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{_option(name)} must not be negative, got {getattr(self, name):g}")
        steps = self.every_fs / self.timestep_fs
        if self.stride < 1 or abs(steps - self.stride) > 1e-6 * steps:
            raise ValueError(
                f"--every-fs {self.every_fs:g} must be a multiple of --timestep-fs {self.timestep_fs:g}, "
                f"for example {max(1, self.stride) * self.timestep_fs:g}"
            )

    @property
    def stride(self) -> int:
        """Steps between frames."""
        return round(self.every_fs / self.timestep_fs)

    @property
    def equilibration_steps(self) -> int:
        """Steps before the first frame."""
        return round(1000 * self.equilibration_ps / self.timestep_fs)

    @property
    def frames(self) -> int:
        """Frames of the complete trajectory."""
        return int(1000 * self.time_ps / self.every_fs + 1e-6) + 1

    @property
    def steps(self) -> int:
        """Steps of the complete trajectory, equilibration included."""
        return self.equilibration_steps + (self.frames - 1) * self.stride

    def is_frame(self, step: int) -> bool:
        """True if the structure after `step` steps is recorded."""
        recorded = step - self.equilibration_steps
        return recorded >= 0 and recorded % self.stride == 0

    def frames_before(self, step: int) -> int:
        """Frames recorded before `step`."""
        return max(0, -(-(step - self.equilibration_steps) // self.stride))

    def is_restart_point(self, step: int) -> bool:
        """True if a run can continue from `step`."""
        return step % self.restart_every == 0 or step == self.equilibration_steps

    def is_thermostatted(self, step: int) -> bool:
        """True if the thermostat acts in the step that begins at `step`."""
        return self.ensemble == "nvt" or step < self.equilibration_steps


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")
