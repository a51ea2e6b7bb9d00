"""Fixed atoms and fixed centre of mass on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength, FixCom

from e2former_calc.md.integrators import Bussi, Langevin, NoseHooverChain, StochasticCellRescaling, VelocityVerlet
from e2former_calc.md.simulation import Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities

THERMOSTATS = [VelocityVerlet(2.0), Langevin(2.0, 40.0, 5.0), Bussi(2.0, 40.0), NoseHooverChain(2.0, 40.0)]
WARM = InitialVelocities(40.0)


@pytest.mark.parametrize("integrator", THERMOSTATS, ids=lambda i: type(i).__name__)
def test_fixed_atoms_stay_to_the_last_bit_and_the_others_move(potentials: Any, argon: Atoms, integrator: Any) -> None:
    argon.set_constraint(FixAtoms([0, 5]))
    simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1, velocities=WARM)
    simulation.run(50)
    moved = np.abs(simulation.frame().positions - argon.positions).max(1)
    assert (moved[[0, 5]] == 0.0).all()
    assert (np.delete(moved, [0, 5]) > 1e-3).all()


@pytest.mark.parametrize("integrator", [*THERMOSTATS, StochasticCellRescaling(2.0, 40.0, 1.0)])
def test_fixed_center_of_mass_stays(potentials: Any, argon: Atoms, integrator: Any) -> None:
    argon.set_masses(np.linspace(1.0, 80.0, len(argon)))
    argon.set_constraint(FixCom())
    simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1, velocities=WARM)
    simulation.run(100)
    assert np.abs(simulation.atoms().get_center_of_mass() - argon.get_center_of_mass()).max() < 1e-11


@pytest.mark.parametrize("constraint", [FixCom(), FixAtoms([1])])
def test_langevin_temperature_is_right_with_constraints(potentials: Any, constraint: Any) -> None:
    atoms = Atoms("HAr2O", positions=3.0 * np.arange(12).reshape(4, 3))
    atoms.set_constraint(constraint)
    options = SimulationOptions(external_field=True)
    simulation = Simulation([atoms] * 500, potentials.Free(), Langevin(1.0, 300.0, 500.0), seed=1, options=options)
    simulation.run(20)
    temperature = []
    for _ in range(40):
        simulation.run(4)
        temperature.append(float(simulation.observables().temperature_K.mean()))
    assert simulation.dynamics.degrees_of_freedom[0] == 9
    assert np.mean(temperature) == pytest.approx(300.0, rel=0.012)


def test_one_replica_can_be_constrained_and_another_free(potentials: Any, cluster: Atoms) -> None:
    fixed = cluster.copy()
    fixed.set_constraint(FixAtoms([2]))
    simulation = Simulation([cluster, fixed], potentials.LennardJones(), Langevin(2.0, 20.0, 5.0), seed=1)
    simulation.run(20)
    assert (simulation.frame(0).positions[2] != cluster.positions[2]).all()
    assert (simulation.frame(1).positions[2] == cluster.positions[2]).all()


def test_other_constraints_are_refused_by_name(potentials: Any, cluster: Atoms) -> None:
    cluster.set_constraint(FixBondLength(0, 1))
    with pytest.raises(NotImplementedError, match=r"FixBondLengths? of replica 0 is not supported on the device"):
        Simulation(cluster, potentials.LennardJones(), VelocityVerlet(1.0), seed=1)


def test_fixed_atoms_and_fixed_center_of_mass_exclude_each_other(potentials: Any, cluster: Atoms) -> None:
    cluster.set_constraint([FixAtoms([0]), FixCom()])
    with pytest.raises(NotImplementedError, match="replica 0 has FixAtoms and FixCom"):
        Simulation(cluster, potentials.LennardJones(), VelocityVerlet(1.0), seed=1)


def test_constraints_come_back_with_the_atoms(potentials: Any, cluster: Atoms) -> None:
    cluster.set_constraint(FixAtoms([3]))
    simulation = Simulation(cluster, potentials.LennardJones(), VelocityVerlet(1.0), seed=1)
    assert [c.todict() for c in simulation.atoms().constraints] == [c.todict() for c in cluster.constraints]
