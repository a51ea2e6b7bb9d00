"""Steps per second of molecular dynamics beside the loop of ASE, on the same structures with the same model.

Run as a program it measures one case: reads it as JSON from stdin, writes the results as JSON to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from ase import Atoms, units
from ase.md.bussi import Bussi as AseBussi
from ase.md.langevin import Langevin as AseLangevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet as AseVelocityVerlet

from e2former_calc.benchmark.dynamics_case import DynamicsCase, Measurement, Timing, measurement
from e2former_calc.benchmark.free_atoms import FreeAtoms, NoForces, gas
from e2former_calc.benchmark.runner import BenchmarkError, builtin_structure
from e2former_calc.benchmark.shapes import NetworkShape, shape_potential
from e2former_calc.benchmark.step_parts import measure_memory, measure_step
from e2former_calc.benchmark.timing import timed
from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.checkpoint.loading import load_potential
from e2former_calc.md.integrators import Bussi, Integrator, Langevin, NoseHooverChain, VelocityVerlet
from e2former_calc.md.integrators.cell_rescaling import StochasticCellRescaling
from e2former_calc.md.simulation import Simulation
from e2former_calc.potentials.interface import Potential
from e2former_calc.potentials.potential import EnergyPotential

TIMESTEP_FS: Final = 0.5
TEMPERATURE_K: Final = 300.0
FRICTION_PER_PS: Final = 5.0
RELAXATION_FS: Final = 100.0
PRESSURE_BAR: Final = 650.0
"""About that of the free atoms, so that their cell keeps its size."""

SKIN_A: Final = 0.5
"""Of the neighbour lists of `Simulation`."""

MAX_STEPS: Final = 256
"""Steps of a timed run; random numbers are made for as many steps at a time."""

Run = Callable[[int], Any]
"""Makes so many steps."""

Times = dict[tuple[str, int, int], list[tuple[float, float]]]
"""Wall and processor time of a step (µs) in every repeat, by competitor."""


@dataclass(frozen=True)
class Competitor:
    """One engine in a race.

    Attributes:
        what: engine and integrator.
        run: makes steps.
        baseline: the competitor it is compared with, by name, replicas and threads.
        replicas, threads: of the run.
    """

    what: str
    run: Run
    baseline: tuple[str, int, int]
    replicas: int = 1
    threads: int = 1

    @property
    def key(self) -> tuple[str, int, int]:
        """By which others refer to it."""
        return self.what, self.replicas, self.threads


def run_dynamics_in_subprocess(case: DynamicsCase) -> list[Measurement]:
    """Measure one case in a fresh Python process.

    Raises:
        BenchmarkError: if it fails or dies.
    """
    process = subprocess.run(
        [sys.executable, "-P", "-m", "e2former_calc.benchmark.dynamics"],
        input=json.dumps(case.to_dict()),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message; probably out of memory"]
        raise BenchmarkError(f"{case.name}: {lines[-1]}")
    return [measurement(case.part, entry) for entry in json.loads(process.stdout)]


def measure_dynamics(case: DynamicsCase) -> list[Measurement]:
    """Measure one case in this process; changes the number of threads of torch.

    Raises:
        BenchmarkError: if a run ends before its last step.
        FileNotFoundError, ValueError: if there is no such structure or model.
    """
    if case.part == "memory":
        return list(measure_memory(case, simulation(gas(case.atoms), FreeAtoms(), velocity_verlet(), case)))
    if case.part == "step":
        torch.set_num_threads(case.threads[0])
        atoms = start_of(case)
        integrators = (velocity_verlet(), langevin())
        parts: list[Measurement] = []
        for integrator in integrators:
            potential = potential_of(case)
            parts += measure_step(case, simulation(atoms, potential, integrator, case), potential)
        return parts
    entrants = {"loop": loop_entrants, "models": model_entrants, "replicas": replica_entrants}[case.part]
    return [*race(case, list(entrants(case)))]


def race(case: DynamicsCase, competitors: Sequence[Competitor]) -> list[Timing]:
    """Time all competitors in turn, so that they see the same load of the machine."""
    steps = {one.key: _steps_that_fit(one, case.seconds) for one in competitors}
    times: Times = {one.key: [] for one in competitors}
    for _ in range(case.repeats):
        for one in competitors:
            torch.set_num_threads(one.threads)
            start = time.process_time()
            milliseconds, _ = timed(lambda one=one: one.run(steps[one.key]))  # type: ignore[misc]
            processor = 1e3 * (time.process_time() - start)
            times[one.key].append((1e3 * milliseconds / steps[one.key], 1e3 * processor / steps[one.key]))
    return [_timing(case, one, times) for one in competitors]


def loop_entrants(case: DynamicsCase) -> Iterator[Competitor]:
    """Every integrator on free atoms, against ASE where it has the same ensemble."""
    atoms = gas(case.atoms)
    warm(atoms, case.seed)
    for name, dynamics in ase_dynamics(atoms).items():
        yield Competitor(f"ASE {name}", dynamics.run, baseline=(f"ASE {name}", 1, 1))
    pairs: dict[str, tuple[Integrator, str]] = {
        "VelocityVerlet": (velocity_verlet(), "VelocityVerlet"),
        "Langevin": (langevin(), "Langevin"),
        "Bussi": (Bussi(TIMESTEP_FS, TEMPERATURE_K, RELAXATION_FS), "Bussi"),
        "NoseHooverChain": (NoseHooverChain(TIMESTEP_FS, TEMPERATURE_K, RELAXATION_FS), "NoseHooverChain"),
        "StochasticCellRescaling": (
            StochasticCellRescaling(TIMESTEP_FS, TEMPERATURE_K, PRESSURE_BAR, FRICTION_PER_PS), "NPTBerendsen"
        ),
    }  # fmt: skip
    for n in case.replicas:
        for name, (integrator, other) in pairs.items():
            run = steps_of(simulation(atoms, FreeAtoms(), integrator, case, replicas=n))
            yield Competitor(name, run, baseline=(f"ASE {other}", 1, 1), replicas=n)


def model_entrants(case: DynamicsCase) -> Iterator[Competitor]:
    """Constant energy: this engine, and ASE with our calculator as it comes and with the same skin."""
    atoms = start_of(case)
    for threads in case.threads:
        baseline = ("ASE VelocityVerlet", 1, threads)
        for what, skin in (("ASE VelocityVerlet", 0.0), (f"ASE VelocityVerlet, skin {SKIN_A:g} Å", SKIN_A)):
            own = atoms.copy()
            own.calc = E2FormerCalculator(potential_of(case), skin=skin)
            yield Competitor(what, AseVelocityVerlet(own, TIMESTEP_FS * units.fs).run, baseline, threads=threads)
        run = steps_of(simulation(atoms, potential_of(case), velocity_verlet(), case))
        yield Competitor("VelocityVerlet", run, baseline, threads=threads)


def replica_entrants(case: DynamicsCase) -> Iterator[Competitor]:
    """Batches of replicas against the smallest batch with the fewest threads; a model for each."""
    atoms, what = start_of(case), "VelocityVerlet"
    baseline = (what, min(case.replicas), min(case.threads))
    for n in case.replicas:
        run = steps_of(simulation(atoms, potential_of(case), velocity_verlet(), case, replicas=n))
        for threads in case.threads:
            yield Competitor(what, run, baseline, replicas=n, threads=threads)


def velocity_verlet() -> VelocityVerlet:
    """Constant energy."""
    return VelocityVerlet(TIMESTEP_FS)


def langevin() -> Langevin:
    """Constant temperature."""
    return Langevin(TIMESTEP_FS, TEMPERATURE_K, FRICTION_PER_PS)


def ase_dynamics(atoms: Atoms) -> dict[str, MolecularDynamics]:
    """Dynamics of ASE on copies of free atoms."""
    step, rng = TIMESTEP_FS * units.fs, np.random.default_rng(0)
    relaxation = RELAXATION_FS * units.fs

    def free() -> Atoms:
        copy: Atoms = atoms.copy()
        copy.calc = NoForces()  # type: ignore[no-untyped-call]
        return copy

    return {
        "VelocityVerlet": AseVelocityVerlet(free(), step),
        "Langevin": AseLangevin(
            free(), step, temperature_K=TEMPERATURE_K, friction=1e-3 * FRICTION_PER_PS / units.fs, rng=rng, fixcm=False,
        ),
        "Bussi": AseBussi(free(), step, TEMPERATURE_K, relaxation, rng=rng),
        "NoseHooverChain": NoseHooverChainNVT(free(), step, TEMPERATURE_K, relaxation),
        "NPTBerendsen": NPTBerendsen(
            free(), step, taut=relaxation, taup=1000.0 * units.fs, pressure_au=PRESSURE_BAR * units.bar,
            compressibility_au=4.5e-5 / units.bar, temperature_K=TEMPERATURE_K,
        ),
    }  # fmt: skip


def simulation(
    atoms: Atoms, potential: Potential, integrator: Integrator, case: DynamicsCase, *, replicas: int = 1
) -> Simulation:
    """A simulation of so many copies."""
    return Simulation([atoms] * replicas, potential, integrator, seed=case.seed)


def steps_of(simulation: Simulation) -> Run:
    """Makes steps, or raises `BenchmarkError` where a replica was stopped."""

    def run(steps: int) -> None:
        simulation.run(steps)
        stop = next((stop for stop in simulation.stops() if stop is not None), None)
        if stop is not None:
            raise BenchmarkError(f"a replica was stopped at step {stop.step}: {stop.message}")

    return run


def start_of(case: DynamicsCase) -> Atoms:
    """The structure with velocities, neutral and closed-shell.

    Raises:
        ValueError: if there is none of this name.
    """
    atoms = builtin_structure(case.structure)
    atoms.info |= {"charge": 0, "spin": 1}
    warm(atoms, case.seed)
    return atoms


def warm(atoms: Atoms, seed: int) -> None:
    """Give atoms velocities of the temperature of the thermostats."""
    spread = np.sqrt(units.kB * TEMPERATURE_K * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * np.random.default_rng(seed).standard_normal((len(atoms), 3)))


def potential_of(case: DynamicsCase) -> EnergyPotential:
    """The model of a case, loaded anew: what a model keeps between calls belongs to one competitor.

    Raises:
        FileNotFoundError, ValueError: if there is no such model.
    """
    if case.model is None:
        raise ValueError(f"{case.name}: `model` is missing")
    if case.model[0].isdigit():
        return shape_potential(NetworkShape.parse(case.model), device="cpu", seed=case.seed)
    return load_potential(case.model, device="cpu")


def _steps_that_fit(one: Competitor, seconds: float) -> int:
    """Steps that take about this long; also makes the first steps, in which kernels are compiled."""
    torch.set_num_threads(one.threads)
    one.run(2)
    milliseconds, _ = timed(lambda: one.run(3))
    return max(1, min(MAX_STEPS, round(3e3 * seconds / milliseconds)))


def _timing(case: DynamicsCase, one: Competitor, times: Times) -> Timing:
    (own, processor), (other, _) = (np.array(times[key]).T for key in (one.key, one.baseline))
    what, replicas, threads = one.baseline
    counts = [
        f"{n} {noun}{'s' * (n > 1)}"
        for n, noun in ((replicas, "replica"), (threads, "thread"))
        if case.part == "replicas"
    ]
    return Timing(
        part=case.part, structure=case.structure, model=case.model,
        atoms=case.atoms if case.model is None else len(builtin_structure(case.structure)),
        replicas=one.replicas, threads=one.threads, what=one.what,
        microseconds=float(np.median(own)), fastest=float(own.min()), processor=float(np.median(processor)),
        steps_per_second=float(1e6 * one.replicas / np.median(own)), baseline=", ".join([what, *counts]),
        ratio=float(np.median(one.replicas * other / (replicas * own))),
    )  # fmt: skip


def main() -> None:
    """Measure the case on stdin."""
    case = DynamicsCase.from_dict(json.load(sys.stdin))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = measure_dynamics(case)
    json.dump([asdict(result) for result in results], sys.stdout)


if __name__ == "__main__":
    main()
