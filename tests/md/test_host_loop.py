"""ASE calculators and ASE constraints under our integrators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.constraints import ExternalForce, FixAtoms, FixBondLengths, FixCom, Hookean
from ase.md.verlet import VelocityVerlet as AseVelocityVerlet

from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.md.integrators import Bussi, Langevin, NoseHooverChain, StochasticCellRescaling, VelocityVerlet
from e2former_calc.md.simulation import Simulation, SimulationOptions
from e2former_calc.md.stopping import StopReason
from e2former_calc.md.velocities import InitialVelocities

WARM = InitialVelocities(300.0)


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("constraint", [None, FixAtoms([0, 7]), FixCom()])
def test_trajectory_agrees_with_ase(constraint: Any) -> None:
    atoms = copper()
    atoms.set_constraint(constraint)
    simulation = Simulation(atoms, EMT(), VelocityVerlet(2.0), seed=1, velocities=WARM)
    reference = simulation.atoms()
    reference.calc = EMT()
    simulation.run(100)
    AseVelocityVerlet(reference, 2.0 * units.fs).run(100)
    assert np.abs(simulation.frame().positions - reference.positions).max() < 1e-9
    assert np.abs(reference.positions - atoms.positions).max() > 0.1


def test_rigid_bonds_agree_with_ase(potentials: Any) -> None:
    water = molecule("H2O")
    water.set_constraint(FixBondLengths([(0, 1), (0, 2)], tolerance=1e-13))
    simulation = Simulation(water, EMT(), VelocityVerlet(0.5), seed=1, velocities=WARM)
    reference = simulation.atoms()
    reference.calc = EMT()
    simulation.run(50)
    AseVelocityVerlet(reference, 0.5 * units.fs).run(50)
    assert np.abs(simulation.frame().positions - reference.positions).max() < 1e-9


@pytest.mark.parametrize(
    "integrator", [VelocityVerlet(1.0), Langevin(1.0, 300.0, 20.0), Bussi(1.0, 300.0), NoseHooverChain(1.0, 300.0)]
)
def test_rigid_bonds_stay_rigid_and_do_not_count(integrator: Any) -> None:
    water = molecule("H2O")
    bonds = [(0, 1), (0, 2)]
    water.set_constraint(FixBondLengths(bonds, tolerance=1e-13))
    simulation = Simulation(water, EMT(), integrator, seed=1, velocities=WARM)
    simulation.run(50)
    atoms = simulation.atoms()
    lengths = [atoms.get_distance(*bond) for bond in bonds]
    assert lengths == pytest.approx([water.get_distance(*bond) for bond in bonds], abs=1e-10)
    expected = 7 if isinstance(integrator, Langevin) else 1
    assert simulation.dynamics.degrees_of_freedom.tolist() == [expected]
    along = [
        (atoms.positions[i] - atoms.positions[j]) @ (atoms.get_velocities()[i] - atoms.get_velocities()[j])
        for i, j in bonds
    ]
    assert np.abs(along).max() < 1e-10


def test_langevin_with_rigid_bonds_has_the_right_temperature(potentials: Any) -> None:
    water = molecule("H2O")
    water.set_constraint(FixBondLengths([(0, 1), (0, 2)], tolerance=1e-10))
    calculator = E2FormerCalculator(potentials.Free(cutoff=0.5))
    options = SimulationOptions(external_field=True)
    simulation = Simulation([water] * 10, calculator, Langevin(0.5, 300.0, 800.0), seed=1, options=options)
    found = []
    for _ in range(50):
        simulation.run(2)
        found.append(float(simulation.observables().temperature_K.mean()))
    assert np.mean(found) == pytest.approx(300.0, rel=0.1)


def test_a_potential_gives_the_same_trajectory_through_its_calculator(potentials: Any, argon: Atoms) -> None:
    potential = potentials.LennardJones()
    runs = [Simulation(argon, p, Langevin(2.0, 50.0, 5.0), seed=1) for p in (potential, E2FormerCalculator(potential))]
    for run in runs:
        run.run(50)
    assert np.abs(runs[0].frame().positions - runs[1].frame().positions).max() < 1e-11


def test_replicas_share_a_calculator() -> None:
    pair = Simulation([molecule("CH4"), molecule("H2O")], EMT(), Langevin(0.5, 300.0, 5.0), seed=1)
    alone = Simulation(
        molecule("H2O"), EMT(), Langevin(0.5, 300.0, 5.0), seed=1, options=SimulationOptions(replica_ids=(1,))
    )
    pair.run(20)
    alone.run(20)
    assert np.array_equal(pair.frame(1).positions, alone.frame(0).positions)


def test_pressure_control_uses_the_stress_of_the_calculator() -> None:
    integrator = StochasticCellRescaling(2.0, 300.0, 1.0, pressure_relaxation_time_fs=200.0)
    simulation = Simulation(copper(), EMT(), integrator, seed=1)
    simulation.run(20)
    assert simulation.frame().cell is not None
    assert float(simulation.observables().volume) != pytest.approx(copper().cell.volume, rel=1e-6)


class Unstable(EMT):
    """Fails for one number of calls after the first."""

    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 6 and len(arguments[0]) == 5:
            raise CalculationFailed("no convergence")
        super().calculate(*arguments, **keywords)


def test_a_calculator_that_fails_stops_one_replica() -> None:
    simulation = Simulation([molecule("CH4"), molecule("H2O")], Unstable(), Langevin(0.5, 300.0, 5.0), seed=1)
    assert simulation.run(20) == 20
    first, second = simulation.stops()
    assert first is not None
    assert first.reason is StopReason.NOT_FINITE
    assert "no convergence" in first.message
    assert second is None


def test_a_calculator_that_fails_at_once_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="No EMT-potential for Og"):
        Simulation(Atoms("Og2", positions=[[0, 0, 0], [2, 0, 0]]), EMT(), VelocityVerlet(1.0), seed=1).run(1)


def test_springs_agree_with_ase() -> None:
    atoms = molecule("CH4")
    atoms.set_constraint(Hookean(0, 1, k=5.0, rt=1.0))
    simulation = Simulation(atoms, EMT(), VelocityVerlet(0.5), seed=1, velocities=WARM)
    reference = simulation.atoms()
    reference.calc = EMT()
    simulation.run(50)
    AseVelocityVerlet(reference, 0.5 * units.fs).run(50)
    assert np.abs(simulation.frame().positions - reference.positions).max() < 1e-9
    assert simulation.frame().energy == pytest.approx(reference.get_potential_energy(), abs=1e-9)


@pytest.mark.parametrize("constraint", [Hookean(0, 1, k=5.0, rt=1.0), ExternalForce(0, 1, 0.5)])
def test_springs_and_external_forces_conserve_energy(constraint: Any) -> None:
    def total(timestep_fs: float) -> float:
        atoms = molecule("CH4")
        atoms.set_constraint(constraint)
        simulation = Simulation(atoms, EMT(), VelocityVerlet(timestep_fs), seed=1, velocities=InitialVelocities(50.0))
        start = simulation.observables().conserved_energy
        simulation.run(round(10.0 / timestep_fs))
        assert abs(float(simulation.observables().potential_energy - start)) > 0.01
        return abs(float(simulation.observables().conserved_energy - start))

    assert total(0.1) < 1e-3
    assert total(0.05) < 0.3 * total(0.1)


def test_constraints_that_cannot_count_are_refused() -> None:
    class Wall:
        def adjust_positions(self, atoms: Atoms, new: Any) -> None: ...

        def adjust_forces(self, atoms: Atoms, forces: Any) -> None: ...

        def todict(self) -> dict[str, Any]:
            return {"name": "Wall", "kwargs": {}}

        def copy(self) -> Any:
            return self

    atoms = molecule("CH4")
    atoms.set_constraint(Wall())
    with pytest.raises(NotImplementedError, match="the constraint Wall of replica 0"):
        Simulation(atoms, EMT(), VelocityVerlet(1.0), seed=1)
