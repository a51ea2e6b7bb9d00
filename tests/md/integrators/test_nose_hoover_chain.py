"""Laws of Nosé–Hoover chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ase import Atoms

from e2former_calc.md.integrators import NoseHooverChain
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.units import BOLTZMANN


@pytest.mark.parametrize("order", [1, 3, 5, 7])
@pytest.mark.parametrize("chain_length", [1, 3])
def test_extended_energy_is_conserved(potentials: Any, argon: Atoms, order: int, chain_length: int) -> None:
    integrator = NoseHooverChain(2.0, 50.0, 50.0, chain_length=chain_length, order=order)
    simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1)
    found: list[torch.Tensor] = []
    simulation.run(100, observers=[Observer(lambda s: found.append(s.observables().conserved_energy), every=5)])
    assert float(torch.cat(found).std()) < 1e-4
    assert float(simulation.state.extended["chain_velocity"].abs().max()) > 1e-4


def test_fluctuation_of_the_extended_energy_is_of_second_order(springs: Callable[..., Any]) -> None:
    spread = []
    for dt in (0.5, 0.25):
        atoms, potential = springs(4, 0.1)
        integrator = NoseHooverChain(dt, 300.0, 30.0)
        options = SimulationOptions(external_field=True)
        simulation = Simulation(atoms, potential, integrator, seed=1, options=options)
        found: list[torch.Tensor] = []
        record = Observer(lambda s, f=found: f.append(s.observables().conserved_energy), every=round(1 / dt))
        simulation.run(round(120 / dt), observers=[record])
        spread.append(float(torch.cat(found).std()))
    assert spread[0] / spread[1] == pytest.approx(4.0, abs=0.2)


def test_reversed_velocities_and_chain_lead_back_to_the_start(potentials: Any, argon: Atoms) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), NoseHooverChain(2.0, 50.0, 50.0), seed=1)
    start = simulation.state
    simulation.run(200)
    middle = simulation.state
    chain = {**middle.extended, "chain_velocity": -middle.extended["chain_velocity"]}
    state = replace(middle, velocities=-middle.velocities, extended=chain)
    for _ in range(200):
        state = simulation.integrator.step(state, simulation.dynamics)
    assert float((state.positions - start.positions).abs().max()) < 1e-8
    assert float((state.extended["chain_position"] - start.extended["chain_position"]).abs().max()) < 1e-8


def kinetic_moments(potentials: Any, argon: Atoms, replicas: int, steps: int) -> tuple[float, float]:
    """Mean temperature over target, and variance of K over its canonical value, of Lennard-Jones argon."""
    integrator = NoseHooverChain(5.0, 60.0, 60.0)
    simulation = Simulation([argon] * replicas, potentials.LennardJones(), integrator, seed=4)
    simulation.run(200)
    found: list[torch.Tensor] = []
    simulation.run(steps, observers=[Observer(lambda s: found.append(s.observables().kinetic_energy), every=10)])
    kinetic, number = torch.stack(found), float(simulation.dynamics.degrees_of_freedom[0])
    thermal = BOLTZMANN * 60.0
    return float(kinetic.mean()) / (0.5 * number * thermal), float(kinetic.var()) / (0.5 * number * thermal**2)


def test_kinetic_energy_is_canonical(potentials: Any, argon: Atoms) -> None:
    mean, variance = kinetic_moments(potentials, argon, 6, 300)
    assert mean == pytest.approx(1.0, abs=0.025)
    assert variance == pytest.approx(1.0, abs=0.3)


@pytest.mark.physics
def test_kinetic_energy_is_canonical_closely(potentials: Any, argon: Atoms) -> None:
    mean, variance = kinetic_moments(potentials, argon, 8, 4000)
    assert mean == pytest.approx(1.0, abs=0.01)
    assert variance == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("chain_length", [1, 2, 3, 5])
def test_tensors_and_numbers_give_the_same_chain(chain_length: int) -> None:
    integrator = NoseHooverChain(2.0, 300.0, 20.0, chain_length=chain_length, order=7, substeps=2)
    generator = torch.Generator().manual_seed(1)
    x, v = (0.05 * torch.randn(4, chain_length, dtype=torch.float64, generator=generator) for _ in "xv")
    drive, number = torch.linspace(1e-3, 5e-3, 4, dtype=torch.float64), torch.tensor([3.0, 6.0, 90.0, 93.0]).double()
    columns = integrator._advance(list(x.unbind(1)), list(v.unbind(1)), drive, number, torch.exp)
    for row in range(4):
        numbers = (x[row].tolist(), v[row].tolist(), float(drive[row]), float(number[row]))
        positions, velocities, growth = integrator._advance(*numbers, math.exp)
        assert positions == pytest.approx([float(column[row]) for column in columns[0]], rel=1e-12)
        assert velocities == pytest.approx([float(column[row]) for column in columns[1]], rel=1e-12)
        assert growth == pytest.approx(float(columns[2][row]), rel=1e-12)


@pytest.mark.parametrize("force", [1e10, 1e200, math.inf])
def test_a_replica_that_explodes_is_stopped_and_another_goes_on(potentials: Any, argon: Atoms, force: float) -> None:
    failing = potentials.Failing(inner=potentials.LennardJones(), cutoff=6.5, value=force, calls=([],))
    simulation = Simulation([argon] * 2, failing, NoseHooverChain(2.0, 50.0, 50.0), seed=1)
    assert simulation.run(20) == 20
    assert simulation.stops()[0] is not None
    assert simulation.stops()[1] is None
    assert bool(simulation.state.velocities.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 2}, "`order` must be 1, 3, 5 or 7, got 2"),
        ({"chain_length": 0}, "`chain_length` and `substeps` must be at least 1, got 0 and 1"),
        ({"relaxation_time_fs": 0.0}, "`relaxation_time_fs` must be positive and finite, got 0.0 fs"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoseHooverChain(1.0, 300.0, **options)
