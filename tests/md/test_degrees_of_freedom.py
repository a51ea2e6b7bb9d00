"""3 N - constraints - conserved motions at rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixCom

from e2former_calc.md.integrators import Bussi, Langevin, MonteCarloBarostat, NoseHooverChain, VelocityVerlet
from e2former_calc.md.simulation import Simulation, SimulationOptions

LANGEVIN, BUSSI = Langevin(1.0, 300.0, 1.0), Bussi(1.0, 300.0)


def fixed(constraint: Any) -> Atoms:
    atoms = molecule("CH4")
    atoms.set_constraint(constraint)
    return atoms


def moving(velocity: tuple[float, float, float]) -> Atoms:
    atoms = molecule("CH4")
    atoms.set_velocities(np.random.default_rng(1).normal(size=(5, 3)) * 0.01 + velocity)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "integrator", "expected"),
    [
        (molecule("CH4"), LANGEVIN, 15),
        (molecule("CH4"), BUSSI, 9),
        (molecule("CH4"), NoseHooverChain(1.0, 300.0), 9),
        (molecule("CH4"), VelocityVerlet(1.0), 9),
        (molecule("CO2"), BUSSI, 4),
        (bulk("Ar", cubic=True), BUSSI, 9),
        (bulk("Ar", cubic=True), LANGEVIN, 12),
        (bulk("Ar", cubic=True), MonteCarloBarostat(BUSSI, 1.0), 9),
        (fixed(FixAtoms([0, 1])), LANGEVIN, 9),
        (fixed(FixAtoms([0, 1])), BUSSI, 9),
        (fixed(FixCom()), LANGEVIN, 12),
        (fixed(FixCom()), BUSSI, 9),
        (moving((1.0, 0.0, 0.0)), VelocityVerlet(1.0), 15),
    ],
)
def test_degrees_of_freedom(potentials: Any, atoms: Atoms, integrator: Any, expected: int) -> None:
    simulation = Simulation(atoms, potentials.Free(), integrator, seed=1)
    assert simulation.dynamics.degrees_of_freedom.tolist() == [expected]


def test_in_an_external_field_every_coordinate_counts(potentials: Any) -> None:
    options = SimulationOptions(external_field=True)
    simulation = Simulation(molecule("CH4"), potentials.Free(), BUSSI, seed=1, options=options)
    assert simulation.dynamics.degrees_of_freedom.tolist() == [15]


def test_a_system_that_cannot_move_is_refused(potentials: Any) -> None:
    with pytest.raises(ValueError, match="replica 0 has no degrees of freedom left: 1 atoms"):
        Simulation(Atoms("Ar"), potentials.Free(), BUSSI, seed=1)
