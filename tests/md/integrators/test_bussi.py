"""Laws of stochastic velocity rescaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.stats import gamma, kstest

from e2former_calc.md.integrators import Bussi
from e2former_calc.md.simulation import Simulation, SimulationOptions
from e2former_calc.md.units import BOLTZMANN

T = 300.0


def kinetic_energies(potentials: Any, atoms_per_replica: int, *, external_field: bool) -> torch.Tensor:
    """Decorrelated kinetic energies of 400 replicas of free atoms."""
    atoms = Atoms("Ar" * atoms_per_replica, positions=np.random.default_rng(1).random((atoms_per_replica, 3)) * 9)
    options = SimulationOptions(external_field=external_field)
    simulation = Simulation([atoms] * 400, potentials.Free(), Bussi(10.0, T, 20.0), seed=2, options=options)
    found = []
    for _ in range(8):
        simulation.run(20)
        found.append(simulation.observables().kinetic_energy)
    return torch.cat(found)


@pytest.mark.parametrize(
    ("atoms", "external_field", "degrees"), [(1, True, 3), (4, True, 12), (4, False, 6), (30, False, 84)]
)
def test_kinetic_energy_has_the_canonical_distribution(
    potentials: Any, atoms: int, external_field: bool, degrees: int
) -> None:
    kinetic = kinetic_energies(potentials, atoms, external_field=external_field)
    assert kstest(kinetic.numpy(), gamma(degrees / 2.0, scale=BOLTZMANN * T).cdf).pvalue > 1e-3


def test_kinetic_energy_relaxes_with_its_time_constant(potentials: Any) -> None:
    atoms = Atoms("Ar2000", positions=np.zeros((2000, 3)))
    atoms.set_velocities(np.random.default_rng(1).normal(size=(2000, 3)))
    simulation = Simulation(
        atoms, potentials.Free(), Bussi(5.0, T, 100.0), seed=2, options=SimulationOptions(external_field=True)
    )
    start = float(simulation.observables().temperature_K)
    simulation.run(20)
    assert float(simulation.observables().temperature_K) == pytest.approx(T + (start - T) * np.exp(-1.0), rel=0.02)


def test_energy_minus_heat_is_conserved(potentials: Any, argon: Atoms) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), Bussi(2.0, 50.0, 50.0), seed=1)
    start = simulation.observables()
    simulation.run(300)
    end = simulation.observables()
    assert float(end.conserved_energy - start.conserved_energy) == pytest.approx(0.0, abs=2e-4)
    assert abs(float(end.potential_energy - start.potential_energy)) > 0.02


def test_momentum_and_angular_momentum_stay_zero(potentials: Any, cluster: Atoms) -> None:
    simulation = Simulation(cluster, potentials.LennardJones(), Bussi(2.0, 30.0, 50.0), seed=1)
    simulation.run(300)
    after = simulation.atoms()
    scale = np.abs(after.get_momenta()).max()
    assert np.abs(after.get_momenta().sum(0)).max() < 1e-11 * scale
    assert np.abs(after.get_angular_momentum()).max() < 1e-10 * scale


def test_directions_of_velocities_do_not_change(potentials: Any) -> None:
    atoms = Atoms("Ar3", positions=np.eye(3))
    simulation = Simulation(atoms, potentials.Free(), Bussi(1.0, T, 10.0), seed=1)
    before = simulation.frame().velocities
    simulation.run(50)
    ratio = simulation.frame().velocities / before
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-10)


def test_atoms_at_rest_stay_at_rest(potentials: Any) -> None:
    atoms = Atoms("Ar3", positions=np.eye(3), momenta=np.zeros((3, 3)))
    atoms.set_momenta(np.zeros((3, 3)))
    simulation = Simulation(atoms, potentials.Free(), Bussi(1.0, T, 10.0), seed=1)
    simulation.run(3)
    assert not simulation.frame().velocities.any()
    assert simulation.stops() == [None]
