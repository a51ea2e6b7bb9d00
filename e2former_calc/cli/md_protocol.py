"""From the options of `e2former md` to an integrator, and warnings of choices that give wrong results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ase import Atoms
from ase.constraints import FixCom

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.extrapolation import check_inside
from e2former_calc.md.integrators import (
    AdaptiveQuantumThermalBath,
    Bussi,
    Integrator,
    Langevin,
    MonteCarloBarostat,
    NoseHooverChain,
    QuantumThermalBath,
    StochasticCellRescaling,
    VelocityVerlet,
)
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.schedules import LinearRamp, Target
from e2former_calc.md.simulation import Simulation

ENSEMBLES = ("nve", "nvt", "npt")
QUANTUM_BATHS: dict[str, type[QuantumThermalBath | AdaptiveQuantumThermalBath]] = {
    "qtb": QuantumThermalBath,
    "adqtb": AdaptiveQuantumThermalBath,
}
RESCALINGS: dict[str, type[StochasticCellRescaling | AnisotropicCellRescaling]] = {
    "cell-rescaling": StochasticCellRescaling,
    "anisotropic-cell-rescaling": AnisotropicCellRescaling,
}
THERMOSTATS = ("langevin", "bussi", "nose-hoover", *QUANTUM_BATHS)
BAROSTATS = (*RESCALINGS, "monte-carlo")

MAX_FRICTION_PER_PS = 20.0
MAX_TIMESTEP_FS = 1.0
LIGHT_HYDROGEN_AMU = 1.5


@dataclass(frozen=True)
class Protocol:
    """What is simulated; see the help of the command for each option.

    Raises:
        ValueError: for options that contradict each other.
    """

    ensemble: str
    thermostat: str | None
    barostat: str | None
    temperature: float
    final_temperature: float | None
    pressure_bar: float
    timestep_fs: float
    friction_per_ps: float | None
    relaxation_time_fs: float
    pressure_relaxation_time_fs: float
    compressibility_per_bar: float
    fix_com: bool
    steps: int | None
    time_ps: float | None

    def __post_init__(self) -> None:
        if not 0.0 < self.timestep_fs < math.inf:
            raise ValueError(f"--timestep-fs must be positive and finite, got {self.timestep_fs}")
        if (self.steps is None) == (self.time_ps is None):
            raise ValueError("give the length of the run as --steps or as --time-ps, one of them")
        if self.time_ps is not None and not 0.0 <= self.time_ps < math.inf:
            raise ValueError(f"--time-ps must be 0 or more and finite, got {self.time_ps}")
        if self.ensemble == "nve" and (self.thermostat or self.final_temperature is not None):
            raise ValueError("--thermostat and --final-temperature-K need --ensemble nvt or npt, not nve")
        if self.ensemble != "npt" and self.barostat:
            raise ValueError(f"--barostat needs --ensemble npt, not {self.ensemble}")
        if self.ensemble == "npt" and self.thermostat in QUANTUM_BATHS:
            raise ValueError(
                f"--thermostat {self.thermostat} samples no classical ensemble, which barostats need: use it with "
                "--ensemble nvt, or --thermostat langevin"
            )
        if self.barostat in RESCALINGS and self.thermostat not in (None, "langevin"):
            raise ValueError(
                f"--barostat {self.barostat} works with --thermostat langevin, not {self.thermostat}: use "
                "--barostat monte-carlo"
            )

    @property
    def total_steps(self) -> int:
        """Number of steps from the beginning to the end."""
        return round(1000.0 * (self.time_ps or 0.0) / self.timestep_fs) if self.steps is None else self.steps

    @property
    def target(self) -> Target:
        """Temperature of the thermostat."""
        if self.final_temperature is None:
            return self.temperature
        return LinearRamp(self.temperature, self.final_temperature, max(1, self.total_steps))

    @property
    def friction(self) -> float:
        """In 1/ps; quantum thermal baths need more, as zero-point energy leaks from stiff to soft motions."""
        usual = 20.0 if self.thermostat in QUANTUM_BATHS else 1.0
        return usual if self.friction_per_ps is None else self.friction_per_ps

    def constrained(self, atoms: Atoms) -> Atoms:
        """A copy of the structure that also keeps its centre of mass, if that is asked for."""
        atoms = atoms.copy()
        if self.fix_com and not any(isinstance(constraint, FixCom) for constraint in atoms.constraints):
            atoms.set_constraint([*atoms.constraints, FixCom()])
        return atoms

    def integrator(self, *, has_stress: bool) -> Integrator:
        """The integrator; `has_stress` says whether the model has a stress.

        Raises:
            ValueError: for values out of range, or cell rescaling without a stress.
        """
        if self.ensemble == "nve":
            return VelocityVerlet(self.timestep_fs)
        if self.thermostat in QUANTUM_BATHS:
            return QUANTUM_BATHS[self.thermostat](self.timestep_fs, self.target, self.friction)
        if self.ensemble == "nvt":
            return self._thermostat()
        barostat = self.barostat
        if barostat is None:
            barostat = "cell-rescaling" if has_stress and self.thermostat in (None, "langevin") else "monte-carlo"
        if barostat == "monte-carlo":
            return MonteCarloBarostat(self._thermostat(), self.pressure_bar)
        if not has_stress:
            raise ValueError(
                f"--barostat {barostat} needs the stress, which a force head does not give: use --forces gradient or "
                "--barostat monte-carlo"
            )
        return RESCALINGS[barostat](
            self.timestep_fs, self.target, self.pressure_bar, friction_per_ps=self.friction,
            pressure_relaxation_time_fs=self.pressure_relaxation_time_fs,
            compressibility_per_bar=self.compressibility_per_bar,
        )  # fmt: skip

    def _thermostat(self) -> Langevin | Bussi | NoseHooverChain:
        if self.thermostat == "bussi":
            return Bussi(self.timestep_fs, self.target, self.relaxation_time_fs)
        if self.thermostat == "nose-hoover":
            return NoseHooverChain(self.timestep_fs, self.target, self.relaxation_time_fs)
        return Langevin(self.timestep_fs, self.target, self.friction)


def doubts(protocol: Protocol, integrator: Integrator, atoms: Atoms, *, conservative: bool) -> Iterator[str]:
    """Sentences about choices that run but give doubtful results, with the reason and what to do.

    `conservative` says whether the forces of the model are the gradient of its energy.
    """
    bath = integrator.thermostat if isinstance(integrator, MonteCarloBarostat) else integrator
    friction = getattr(bath, "friction_per_ps", 0.0)
    if friction > MAX_FRICTION_PER_PS:
        yield (
            f"a friction of {friction:g}/ps (above {MAX_FRICTION_PER_PS:g}/ps) rules the motion: "
            "diffusion, spectra and folding become slower than they are; 1/ps is enough to hold the temperature"
        )
    light = (atoms.numbers == 1) & (atoms.get_masses() < LIGHT_HYDROGEN_AMU)
    if protocol.timestep_fs > MAX_TIMESTEP_FS and light.any():
        yield (
            f"a time step of {protocol.timestep_fs:g} fs is too long for {int(light.sum())} light hydrogen atoms, "
            f"whose bonds vibrate with a period of about 9 fs: use up to {MAX_TIMESTEP_FS:g} fs, or heavier masses"
        )
    if protocol.ensemble == "npt" and not conservative:
        yield (
            "this model has no stress, so that the pressure is controlled by Monte Carlo moves of the volume, which "
            "need energies only"
        )
    if not conservative:
        effect = "heats or cools the system steadily" if protocol.ensemble == "nve" else "works against the thermostat"
        yield (
            "forces from a network head are not the gradient of an energy: energy is not conserved, which "
            f"{effect}; use --forces gradient"
        )


class DomainWatch:
    """Warns, once for each replica, when a simulation leaves what the model was trained on.

    Args:
        calculator: of the model; if it does not know its training data nothing is done.
    """

    def __init__(self, calculator: E2FormerCalculator) -> None:
        self._calculator = calculator
        self._known = getattr(calculator.potential, "domain", None) is not None and calculator.outside != "ignore"
        self._warned: set[int] = set()

    @property
    def warned(self) -> list[int]:
        """Replicas that were warned of."""
        return sorted(self._warned)

    def __call__(self, simulation: Simulation) -> None:
        """Look at all replicas that run, after the first step; costs one energy evaluation each."""
        if not self._known or simulation.step == 0:
            return
        for replica, runs in enumerate(simulation.state.running.tolist()):
            if runs and replica not in self._warned:
                self._look(simulation, replica)

    def _look(self, simulation: Simulation, replica: int) -> None:
        atoms = simulation.atoms(replica)

        def complain(_key: str, problem: str) -> None:
            self._warned.add(replica)
            warnings.warn(f"replica {replica}, step {simulation.step}: {problem}", UserWarning, stacklevel=2)

        distances = self._calculator.get_extrapolation(atoms)
        check_inside(atoms.numbers, distances, refuse=False, complain=complain)
