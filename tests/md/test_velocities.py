"""Initial velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms

from e2former_calc.md.integrators import Langevin, VelocityVerlet
from e2former_calc.md.simulation import Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities

THERMAL = InitialVelocities(300.0)


def started(atoms: Atoms | list[Atoms], potentials: Any, velocities: InitialVelocities | None, **options: Any) -> Any:
    settings = SimulationOptions(**options)
    return Simulation(atoms, potentials.Free(), VelocityVerlet(1.0), seed=2, velocities=velocities, options=settings)


def test_every_element_has_the_same_mean_energy_per_degree_of_freedom(potentials: Any) -> None:
    atoms = Atoms("H3000O3000", positions=np.zeros((6000, 3)))
    frame = started(atoms, potentials, THERMAL, external_field=True).frame()
    twice = atoms.get_masses()[:, None] * (frame.velocities / units.fs) ** 2 / (units.kB * 300.0)
    error = np.sqrt(2 / 9000)
    assert abs(twice[:3000].mean() - 1.0) < 4 * error
    assert abs(twice[3000:].mean() - 1.0) < 4 * error


def test_linear_and_angular_momentum_of_a_molecule_are_zero(potentials: Any) -> None:
    atoms = started(molecule("CH3CH2OH"), potentials, THERMAL).atoms()
    scale = np.abs(atoms.get_momenta()).max()
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12 * scale
    assert np.abs(atoms.get_angular_momentum()).max() < 1e-12 * scale


def test_rotation_of_a_linear_molecule_is_removed(potentials: Any) -> None:
    atoms = started(molecule("CO2"), potentials, THERMAL).atoms()
    assert np.abs(atoms.get_angular_momentum()).max() < 1e-12 * np.abs(atoms.get_momenta()).max()


def test_rotation_of_a_crystal_stays(potentials: Any, argon: Atoms) -> None:
    atoms = started(argon, potentials, THERMAL).atoms()
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12
    assert np.abs(atoms.get_angular_momentum()).max() > 1.0


@pytest.mark.parametrize("external_field", [False, True])
def test_exact_temperature_counts_the_degrees_of_freedom(potentials: Any, external_field: bool) -> None:
    simulation = started(
        molecule("CH4"), potentials, InitialVelocities(250.0, exact=True), external_field=external_field
    )
    kinetic = float(simulation.observables().kinetic_energy)
    assert 2 * kinetic / ((15 if external_field else 9) * units.kB) == pytest.approx(250.0, rel=1e-12)


def test_replicas_get_different_velocities_and_each_its_own_target(potentials: Any) -> None:
    pair = started([molecule("CH4")] * 2, potentials, InitialVelocities((100.0, 400.0), exact=True))
    assert not np.allclose(pair.frame(0).velocities * 2.0, pair.frame(1).velocities)
    assert pair.observables().temperature_K.tolist() == pytest.approx([100.0, 400.0])


def test_velocities_of_a_replica_depend_on_its_id_only(potentials: Any) -> None:
    pair = started([molecule("H2O"), molecule("CH4")], potentials, THERMAL, replica_ids=(4, 7))
    alone = started(molecule("CH4"), potentials, THERMAL, replica_ids=(7,))
    assert np.array_equal(pair.frame(1).velocities, alone.frame(0).velocities)


def test_given_momenta_are_used_as_they_are(potentials: Any) -> None:
    atoms = molecule("CH4")
    atoms.set_momenta(np.arange(15.0).reshape(5, 3))
    assert np.allclose(started(atoms, potentials, None).atoms().get_momenta(), atoms.get_momenta(), rtol=1e-15)


def test_thermostat_gives_the_temperature_where_nothing_else_does(potentials: Any) -> None:
    simulation = Simulation(molecule("CH4"), potentials.Free(), Langevin(1.0, 300.0, 1.0), seed=1)
    assert float(simulation.observables().kinetic_energy) > 0.0


def test_without_thermostat_and_momenta_atoms_start_at_rest(potentials: Any) -> None:
    assert not started(molecule("CH4"), potentials, None).frame().velocities.any()


def test_fixed_atoms_do_not_move_and_the_rest_keeps_its_momentum(potentials: Any) -> None:
    atoms = molecule("CH4")
    atoms.set_constraint(FixAtoms([0]))
    momenta = started(atoms, potentials, THERMAL).atoms().get_momenta()
    assert not momenta[0].any()
    assert np.abs(momenta.sum(0)).max() > 1e-3
