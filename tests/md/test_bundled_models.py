"""The engine with the models that come with the package: drift, ASE, batch size, threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet as AseVelocityVerlet

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.checkpoint import load_potential
from e2former_calc.md.integrators import Langevin, VelocityVerlet
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.units import ACCELERATION
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.potential import EnergyPotential

STRUCTURES = Path(__file__).resolve().parents[2] / "examples"
MODELS = ("ethanol-rmd17", "aspirin-rmd17", "ala3-gfn2")
TIMESTEP_FS = 0.5


def structure(name: str) -> Atoms:
    """The molecule that a model is for, near a minimum."""
    if name == "ethanol-rmd17":
        return molecule("CH3CH2OH")
    atoms: Atoms = ase.io.read(STRUCTURES / ("aspirin.xyz" if name == "aspirin-rmd17" else "Ac-Ala3-NHMe.xyz"))
    return atoms


@cache
def potential(name: str, dtype: str) -> EnergyPotential:
    return load_potential(name, device="cpu", dtype=dtype)


def warm(name: str, dtype: str, replicas: int) -> list[Atoms]:
    """Structures with velocities after 50 fs at 300 K; half of the first kinetic energy becomes potential energy."""
    bath = Langevin(TIMESTEP_FS, 300.0, 20.0)
    simulation = Simulation(
        [structure(name)] * replicas, potential(name, dtype), bath, seed=1, velocities=InitialVelocities(600.0)
    )
    simulation.run(100)
    return [simulation.atoms(replica) for replica in range(replicas)]


def shadow_energy(atoms: list[Atoms], network: EnergyPotential, steps: int) -> np.ndarray:
    """What velocity Verlet conserves up to O(dt^4), in eV, for each time (row) and replica (column).

    H + dt^2 (v . V'' v / 12 - F . M^-1 F / 24), with v . V'' v = F . M^-1 F - d(F . v)/dt (E. Hairer, C. Lubich,
    G. Wanner, Geometric Numerical Integration, IX.1 and IX.8). The energy itself fluctuates ten times as much.
    """
    rows: list[np.ndarray] = []

    def record(simulation: Simulation) -> None:
        state, dynamics = simulation.state, simulation.dynamics
        values = (
            simulation.observables().conserved_energy,
            dynamics.replicas.sum((state.forces**2 / dynamics.masses).sum(1)) * ACCELERATION,
            dynamics.replicas.sum((state.forces * state.velocities).sum(1)),
        )
        rows.append(torch.stack(values).numpy())

    Simulation(atoms, network, VelocityVerlet(TIMESTEP_FS), seed=1).run(steps, observers=[Observer(record)])
    energy, squared_force, power = np.array(rows).transpose(1, 0, 2)
    rate = np.gradient(power, TIMESTEP_FS, axis=0)
    return (energy + TIMESTEP_FS**2 * (squared_force / 24.0 - rate / 12.0))[1:-1]


def drift(name: str, dtype: str, *, replicas: int, steps: int) -> np.ndarray:
    """Slope of the shadow energy of each replica in meV/atom/ps."""
    energy = shadow_energy(warm(name, dtype, replicas), potential(name, dtype), steps)
    time_ps = 1e-3 * TIMESTEP_FS * np.arange(len(energy))
    return 1e3 * np.polyfit(time_ps, energy, 1)[0] / len(structure(name))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_energy_does_not_drift(dtype: str) -> None:
    slopes = drift("ethanol-rmd17", dtype, replicas=2, steps=200)
    assert np.abs(slopes).max() < 0.02


@pytest.mark.physics
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_energy_of_no_bundled_model_drifts(name: str, dtype: str) -> None:
    slopes = drift(name, dtype, replicas=2, steps=1000)
    assert np.abs(slopes).max() < 0.005


def test_the_shadow_energy_is_what_is_conserved() -> None:
    atoms, network = warm("ethanol-rmd17", "float64", 1), potential("ethanol-rmd17", "float64")
    plain: list[float] = []
    record = Observer(lambda simulation: plain.append(float(simulation.observables().conserved_energy)))
    Simulation(atoms, network, VelocityVerlet(TIMESTEP_FS), seed=1).run(200, observers=[record])
    assert shadow_energy(atoms, network, 200).std() < 0.25 * np.std(plain)


@pytest.mark.parametrize("name", ["ethanol-rmd17", pytest.param("ala3-gfn2", marks=pytest.mark.physics)])
def test_trajectories_agree_with_those_of_ase(name: str) -> None:
    network = potential(name, "float64")
    simulation = Simulation(
        structure(name), network, VelocityVerlet(TIMESTEP_FS), seed=1, velocities=InitialVelocities(600.0)
    )
    reference = simulation.atoms()
    reference.calc = E2FormerCalculator(network, outside="ignore")
    AseVelocityVerlet(reference, TIMESTEP_FS * units.fs).run(100)
    simulation.run(100)
    assert np.abs(simulation.atoms().positions - reference.positions).max() < 1e-9
    assert np.abs(reference.positions - structure(name).positions).max() > 0.2


def last_positions(replicas: int, *, row: int, steps: int) -> np.ndarray:
    """Positions of the replica with the id 3 at the end; it is the one at `row` of a batch."""
    ids = (*range(10, 10 + row), 3, *range(20, 20 + replicas - row - 1))
    simulation = Simulation(
        [structure("ethanol-rmd17")] * replicas, potential("ethanol-rmd17", "float64"),
        Langevin(TIMESTEP_FS, 300.0, 5.0), seed=2, options=SimulationOptions(replica_ids=ids),
    )  # fmt: skip
    simulation.run(steps)
    return simulation.frame(row).positions


@pytest.mark.parametrize(("replicas", "row"), [(2, 0), (7, 4)])
def test_the_size_of_the_batch_does_not_matter(replicas: int, row: int) -> None:
    alone = last_positions(1, row=0, steps=40)
    assert np.abs(last_positions(replicas, row=row, steps=40) - alone).max() < 1e-10
    assert np.abs(alone - structure("ethanol-rmd17").positions).max() > 0.05


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the number of threads back after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_does_not_matter() -> None:
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(last_positions(4, row=2, steps=10))
    assert np.abs(found[1] - found[0]).max() < 1e-11
