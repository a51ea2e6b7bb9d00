"""Integration of one trajectory, from restart point to restart point."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from e2former_calc.reference_md.calculators import Method
from e2former_calc.reference_md.file import Frame, RestartState
from e2former_calc.reference_md.settings import ReferenceSettings

PS = 1000 * units.fs
BLOW_UP = 10.0
"""Ratio of instantaneous and target temperature at which a thermostatted run is given up."""


class SimulationError(ValueError):
    """The dynamics cannot go on: a calculation failed, numbers are not finite, or the temperature exploded."""


def error_text(error: Exception) -> str:
    """What an error says, or at least what kind it is."""
    return " ".join(str(error).split()) or type(error).__name__


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """Degrees of freedom that share the kinetic energy.

    The thermostat acts on all of them. NVE has no motion of the centre of mass, and molecules no rotation.
    """
    free = int(atoms.get_number_of_degrees_of_freedom())
    if ensemble == "nvt" or atoms.constraints:
        return free
    if atoms.pbc.any():
        return free - 3
    rank = int(np.linalg.matrix_rank(atoms.positions - atoms.positions.mean(0), tol=1e-3))
    return free - 3 - (0, 2, 3, 3)[rank]


def remove_overall_motion(atoms: Atoms) -> None:
    """Remove the momentum of the centre of mass, and of molecules the rotation; nothing if atoms are fixed."""
    if atoms.constraints:
        return
    masses = atoms.get_masses()[:, None]
    velocities = atoms.get_velocities()
    velocities -= (masses * velocities).sum(0) / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        inertia = (masses * arms**2).sum() * np.eye(3) - (masses * arms).T @ arms
        rotation = np.linalg.pinv(inertia, rcond=1e-8) @ np.cross(arms, masses * velocities).sum(0)
        velocities -= np.cross(rotation, arms)
    atoms.set_momenta(masses * velocities)


def first_state(atoms: Atoms, settings: ReferenceSettings, generator: np.random.Generator) -> RestartState:
    """State of step 0: velocities of the temperature; `atoms` get them."""
    spread = np.sqrt(atoms.get_masses()[:, None] * units.kB * settings.temperature)
    atoms.set_momenta(spread * generator.standard_normal((len(atoms), 3)))
    if not settings.is_thermostatted(0):
        remove_overall_motion(atoms)
    return RestartState(0, 0, atoms.positions.copy(), atoms.get_momenta(), _random_state(generator))


def _random_state(generator: np.random.Generator) -> str:
    return json.dumps(generator.bit_generator.state)


def integrator_name(settings: ReferenceSettings) -> str:
    """The algorithms of a run, for people and for comparison."""
    thermostat = "Langevin fixcm=False" if _baoab() is None else "LangevinBAOAB"
    if settings.ensemble == "nvt":
        return thermostat
    return "velocity Verlet" + (f", equilibrated with {thermostat}" if settings.equilibration_steps else "")


def _baoab() -> Any:
    """ASE's BAOAB integrator, None in an ASE that has none."""
    try:
        from ase.md.langevinbaoab import LangevinBAOAB
    except ImportError:
        return None
    return LangevinBAOAB


class Dynamics:
    """A trajectory in motion; `begin` must be called before the first step.

    Args:
        atoms: moved in place.
        settings: how.
        method: makes calculators.
        state: where to begin.
    """

    def __init__(self, atoms: Atoms, settings: ReferenceSettings, method: Method, state: RestartState) -> None:
        self.atoms, self.step, self.state = atoms, state.step, state
        self._settings, self._method = settings, method
        self._generator = np.random.default_rng()
        self._generator.bit_generator.state = json.loads(state.random_state)
        atoms.set_positions(state.positions, apply_constraint=False)
        atoms.set_momenta(state.momenta, apply_constraint=False)
        freedom = max(1, int(atoms.get_number_of_degrees_of_freedom()))
        # Few degrees of freedom fluctuate so much that ten times the mean is no alarm.
        self._hottest = BLOW_UP * (1 + 10 / freedom) * settings.temperature

    def begin(self) -> None:
        """Take a fresh calculator and make this step the `state` to continue from.

        Raises:
            SimulationError: if the structure cannot be calculated; `state` is set all the same.
        """
        atoms = self.atoms
        self.state = RestartState(
            step=self.step, frames=self._settings.frames_before(self.step), positions=atoms.positions.copy(),
            momenta=atoms.get_momenta(), random_state=_random_state(self._generator),
        )  # fmt: skip
        try:
            atoms.calc = self._method.fresh()
            forces = atoms.get_forces()
            self._integrator = self._make_integrator()
        except Exception as error:  # calculators raise errors of any kind
            raise SimulationError(f"step {self.step} failed: {error_text(error)}") from error
        self._refuse_non_finite(forces=forces)
        self._check()

    def advance(self) -> None:
        """One step.

        Raises:
            SimulationError: if it fails, its forces are not finite, or the structure is far too hot.
        """
        try:
            self._integrator.step()
        except Exception as error:  # calculators raise errors of any kind
            raise SimulationError(f"step {self.step + 1} failed: {error_text(error)}") from error
        self.step += 1
        self._check()
        if self.step == self._settings.equilibration_steps and not self._settings.is_thermostatted(self.step):
            remove_overall_motion(self.atoms)

    def frame(self) -> Frame:
        """The present structure; forces include those on fixed atoms.

        Raises:
            SimulationError: if energy or forces are not finite.
        """
        atoms = self.atoms
        energy, forces = float(atoms.get_potential_energy()), atoms.get_forces(apply_constraint=False)
        self._refuse_non_finite(energy=energy, forces=forces)
        return Frame(
            energy=energy, kinetic_energy=float(atoms.get_kinetic_energy()), forces=forces,
            positions=atoms.positions.copy(), velocities=atoms.get_velocities() * PS,
        )  # fmt: skip

    def _make_integrator(self) -> Any:
        settings, kind = self._settings, _baoab()
        timestep, friction = settings.timestep_fs * units.fs, settings.friction_per_ps / PS
        if not settings.is_thermostatted(self.step):
            return VelocityVerlet(self.atoms, timestep)
        arguments: dict[str, Any] = {"temperature_K": settings.temperature, "rng": self._generator}
        if kind is None:
            return Langevin(self.atoms, timestep, friction=friction, fixcm=False, **arguments)
        return kind(self.atoms, timestep, T_tau=1 / friction, **arguments)

    def _check(self) -> None:
        """Raise SimulationError if the thermostat has lost control, or forces were not finite.

        Momenta show the latter without a further call of the calculator, which costs more than small molecules do.
        """
        atoms, settings = self.atoms, self._settings
        self._refuse_non_finite(forces=atoms.get_momenta())
        temperature = atoms.get_temperature()
        if settings.is_thermostatted(self.step) and temperature > self._hottest:
            raise SimulationError(
                f"step {self.step} has {temperature:.0f} K with the thermostat at {settings.temperature:g} K: take a "
                "shorter --timestep-fs, or begin with --relax"
            )

    def _refuse_non_finite(self, **numbers: Any) -> None:
        wrong = [name for name, value in numbers.items() if not np.isfinite(value).all()]
        if wrong:
            raise SimulationError(f"step {self.step} gave {' and '.join(wrong)} that are not finite")
