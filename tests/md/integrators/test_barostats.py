"""Laws of constant pressure: stochastic cell rescaling and the Monte Carlo barostat."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from e2former_calc.md.integrators import Bussi, Langevin, MonteCarloBarostat, NoseHooverChain, StochasticCellRescaling
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Observer, Simulation
from e2former_calc.md.units import BAR, BOLTZMANN

T, PRESSURE_BAR, N = 300.0, 2000.0, 8
IDEAL = (N + 1) * BOLTZMANN * T / (PRESSURE_BAR * BAR)
"""Mean volume of an ideal gas of N atoms; its variance is IDEAL^2 / (N + 1)."""

RESCALING = StochasticCellRescaling(
    4.0, T, PRESSURE_BAR, friction_per_ps=50.0, pressure_relaxation_time_fs=100.0, compressibility_per_bar=5e-4
)
ANISOTROPIC = AnisotropicCellRescaling(
    4.0, T, PRESSURE_BAR, friction_per_ps=50.0, pressure_relaxation_time_fs=100.0, compressibility_per_bar=5e-4
)
MONTE_CARLO = MonteCarloBarostat(
    Langevin(4.0, T, 50.0), PRESSURE_BAR, every=1, max_log_volume_change=1.5, rigid_molecules=False
)


def volumes(potential: Any, atoms: list[Atoms], integrator: Integrator, *, warm: int, steps: int, every: int) -> Any:
    found: list[torch.Tensor] = []
    simulation = Simulation(atoms, potential, integrator, seed=9)
    simulation.run(warm)
    simulation.run(steps, observers=[Observer(lambda s: found.append(s.observables().volume), every=every)])
    return torch.stack(found)


def ideal_gas(replicas: int) -> list[Atoms]:
    side = IDEAL ** (1 / 3)
    positions = np.random.default_rng(1).random((N, 3)) * side
    return [Atoms("Ar" * N, positions=positions, cell=[side] * 3, pbc=True)] * replicas


by_barostat = pytest.mark.parametrize(
    "integrator", [RESCALING, ANISOTROPIC, MONTE_CARLO], ids=["isotropic", "anisotropic", "Monte Carlo"]
)


@by_barostat
def test_volume_of_an_ideal_gas_has_its_exact_mean_and_variance(potentials: Any, integrator: Integrator) -> None:
    found = volumes(potentials.Free(), ideal_gas(300), integrator, warm=100, steps=400, every=10)
    spread = found.std() / found.mean()
    assert float(found.mean()) / IDEAL == pytest.approx(1.0, abs=0.03)
    assert float(spread) * math.sqrt(N + 1) == pytest.approx(1.0, abs=0.04)


@pytest.mark.physics
@by_barostat
def test_volume_of_an_ideal_gas_is_closely_exact(potentials: Any, integrator: Integrator) -> None:
    if isinstance(integrator, StochasticCellRescaling | AnisotropicCellRescaling):
        integrator = replace(integrator, pressure_relaxation_time_fs=500.0)
    found = volumes(potentials.Free(), ideal_gas(1000), integrator, warm=500, steps=5000, every=25)
    assert float(found.mean()) / IDEAL == pytest.approx(1.0, abs=0.005)
    assert float(found.std() / found.mean()) * math.sqrt(N + 1) == pytest.approx(1.0, abs=0.01)


@pytest.mark.physics
@pytest.mark.parametrize("kind", [StochasticCellRescaling, AnisotropicCellRescaling])
def test_rescaling_and_monte_carlo_give_the_same_volume_of_argon(potentials: Any, kind: Any) -> None:
    atoms = [bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)] * 8
    rescaling = kind(4.0, 60.0, 200.0, friction_per_ps=5.0, pressure_relaxation_time_fs=500.0)
    monte_carlo = MonteCarloBarostat(Langevin(4.0, 60.0, 5.0), 200.0, every=5, max_log_volume_change=0.03)
    found = [
        volumes(potentials.LennardJones(), atoms, integrator, warm=1000, steps=3000, every=25)
        for integrator in (rescaling, monte_carlo)
    ]
    means, errors = ([f(x.mean(0)) for x in found] for f in (torch.mean, lambda m: m.std() / math.sqrt(8)))
    assert abs(float(means[0] - means[1])) < 4 * float((errors[0] ** 2 + errors[1] ** 2).sqrt())
    assert float(found[0].std() / found[1].std()) == pytest.approx(1.0, abs=0.15)


def test_pressure_of_argon_reaches_its_target(potentials: Any, argon: Atoms) -> None:
    integrator = StochasticCellRescaling(4.0, 40.0, 500.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0)
    found: list[torch.Tensor] = []
    simulation = Simulation([argon] * 4, potentials.LennardJones(), integrator, seed=3)
    simulation.run(150)
    simulation.run(400, observers=[Observer(lambda s: found.append(s.observables().pressure_bar), every=4)])
    assert float(torch.cat(found).mean()) == pytest.approx(500.0, abs=100.0)


def test_molecules_move_rigidly_with_the_volume(potentials: Any) -> None:
    water = molecule("H2O")
    water.center(vacuum=3.0)
    water.pbc = True
    box = water.repeat((2, 2, 1))
    barostat = MonteCarloBarostat(Langevin(0.001, 0.0, 0.0), PRESSURE_BAR, every=1, max_log_volume_change=0.2)
    simulation = Simulation(box, potentials.Free(), barostat, seed=2)
    simulation.run(5)
    after = simulation.atoms()
    assert abs(after.cell.volume / box.cell.volume - 1.0) > 0.05
    bonds = [(3 * k, 3 * k + j) for k in range(4) for j in (1, 2)]
    assert [after.get_distance(*b) for b in bonds] == pytest.approx([box.get_distance(*b) for b in bonds], abs=1e-12)
    assert after.get_distance(0, 3) != pytest.approx(box.get_distance(0, 3), abs=0.01)


def test_number_of_molecules_decides_the_mean_volume(potentials: Any) -> None:
    pairs = [Atoms("N2" * 4, positions=_dimers(), cell=[12.0] * 3, pbc=True)] * 200
    rigid = replace(MONTE_CARLO, rigid_molecules=True)
    found = volumes(potentials.Free(), pairs, rigid, warm=100, steps=300, every=10)
    expected = 5 * BOLTZMANN * T / (PRESSURE_BAR * BAR)
    assert float(found.mean()) / expected == pytest.approx(1.0, abs=0.05)


def _dimers() -> np.ndarray:
    corners = np.array([[0, 0, 0], [0, 6, 6], [6, 0, 6], [6, 6, 0]], dtype=float)
    return np.stack([corners, corners + np.array([1.1, 0, 0])], axis=1).reshape(-1, 3)


def test_refused_moves_change_nothing(potentials: Any, argon: Atoms) -> None:
    barostat = MonteCarloBarostat(Langevin(2.0, 1.0, 1.0), 0.0, every=1, max_log_volume_change=2.0)
    simulation = Simulation(argon, potentials.LennardJones(), barostat, seed=1)
    plain = Simulation(argon, potentials.LennardJones(), barostat.thermostat, seed=1)
    simulation.run(3)
    plain.run(3)
    assert float(simulation.state.extended["volume_attempts"]) == 3.0
    assert float(simulation.state.extended["volume_accepted"]) == 0.0
    assert np.array_equal(simulation.frame().positions, plain.frame().positions)
    assert np.array_equal(simulation.frame().forces, plain.frame().forces)


@pytest.mark.parametrize("thermostat", [Langevin(2.0, 50.0, 5.0), Bussi(2.0, 50.0), NoseHooverChain(2.0, 50.0)])
def test_energy_minus_heat_and_work_is_conserved(potentials: Any, argon: Atoms, thermostat: Any) -> None:
    barostat = MonteCarloBarostat(thermostat, 100.0, every=3, max_log_volume_change=0.03)
    simulation = Simulation(argon, potentials.LennardJones(), barostat, seed=1)
    start = simulation.observables().conserved_energy
    simulation.run(150)
    assert float(simulation.state.extended["volume_accepted"]) > 5
    assert float(simulation.observables().conserved_energy - start) == pytest.approx(0.0, abs=5e-4)


def deviations(potential: Any, argon: Atoms, integrator: Integrator) -> tuple[float, float, float]:
    """Of four replicas in 1.2 ps: root mean square change of the conserved and of the total energy, and heat (eV)."""
    found: list[torch.Tensor] = []

    def record(s: Simulation) -> None:
        seen = s.observables()
        found.append(torch.stack([seen.conserved_energy, seen.potential_energy + seen.kinetic_energy]))

    simulation = Simulation([argon] * 4, potential, integrator, seed=1)
    simulation.run(round(1200.0 / integrator.timestep_fs), observers=[Observer(record, every=5)])
    series = torch.stack(found)
    conserved, total = (series - series[0]).square().mean((0, 2)).sqrt().tolist()
    return conserved, total, float(simulation.state.extended["barostat_energy"].abs().max())


@pytest.mark.parametrize("kind", [StochasticCellRescaling, AnisotropicCellRescaling])
def test_effective_energy_is_conserved_to_the_order_of_the_step(potentials: Any, argon: Atoms, kind: Any) -> None:
    runs = [
        deviations(potentials.LennardJones(), argon, kind(dt, 50.0, 300.0, 5.0, pressure_relaxation_time_fs=200.0))
        for dt in (8.0, 2.0)
    ]
    (coarse, total, work), (fine, *_) = runs
    assert coarse < 5e-4
    assert coarse > 2.5 * fine
    assert min(total, work) > 0.02


def test_effective_energy_of_an_ideal_gas_is_conserved_under_changing_targets(potentials: Any) -> None:
    changing = {"temperature_K": LinearRamp(T, 2 * T, 500), "pressure_bar": LinearRamp(1000.0, 3000.0, 500)}
    for integrator in (RESCALING, ANISOTROPIC):
        slow = replace(integrator, timestep_fs=1.0, pressure_relaxation_time_fs=1000.0, **changing)
        simulation = Simulation(ideal_gas(20), potentials.Free(), slow, seed=1)
        start = simulation.observables().conserved_energy
        simulation.run(500)
        thermal = BOLTZMANN * T
        assert float((simulation.observables().conserved_energy - start).abs().max()) < 0.1 * thermal
        assert float(simulation.state.extended["barostat_energy"].std()) > 0.5 * thermal


def test_atoms_keep_their_place_in_a_cell_that_changes(potentials: Any, argon: Atoms) -> None:
    integrator = StochasticCellRescaling(2.0, 50.0, 1.0)
    simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1)
    simulation.run(20)
    fractions = simulation.atoms().get_scaled_positions(wrap=False) - argon.get_scaled_positions(wrap=False)
    assert np.abs(fractions).max() < 0.1


@by_barostat
def test_molecules_in_vacuum_have_no_pressure(potentials: Any, integrator: Integrator) -> None:
    with pytest.raises(ValueError, match="constant pressure needs a cell that is periodic in all directions"):
        Simulation(molecule("CH4"), potentials.Free(), integrator, seed=1)


def test_fixed_atoms_and_pressure_are_refused(potentials: Any, argon: Atoms) -> None:
    argon.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="replica 0 has the constraint FixAtoms, which has no meaning"):
        Simulation(argon, potentials.LennardJones(), RESCALING, seed=1)


def test_a_model_without_stress_is_sent_to_monte_carlo(potentials: Any, argon: Atoms) -> None:
    with pytest.raises(ValueError, match="use MonteCarloBarostat"):
        Simulation(argon, potentials.LennardJones(conservative=False), RESCALING, seed=1)
