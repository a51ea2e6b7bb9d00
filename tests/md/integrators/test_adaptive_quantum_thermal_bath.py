"""Laws of the adaptive bath: it leaves oscillators alone, and stops the leakage of zero-point energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from e2former_calc.md.integrators import AdaptiveQuantumThermalBath, QuantumThermalBath
from e2former_calc.md.integrators.coloured_noise import ANGULAR_FREQUENCY, bath_segment, oscillator_energy
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.stopping import StoppingRules
from e2former_calc.md.units import ACCELERATION, BOLTZMANN
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.system import Prediction

FREE = SimulationOptions(external_field=True, stopping=StoppingRules(max_force=None))
T = 300.0
MASSES = np.array([1.0, 1.2])
FREQUENCIES = ANGULAR_FREQUENCY * np.array([3000.0, 1500.0])
STIFFNESS = MASSES * FREQUENCIES**2 / ACCELERATION
THETA = oscillator_energy(FREQUENCIES, T)
NEVER = 1e9


def fermi_pairs(potentials: Any, pairs: int, coupling: float) -> tuple[Atoms, Any]:
    """Pairs of oscillators a, b in 2:1 resonance: E = k_a (a + coupling b^2)^2 / 2 + k_b b^2 / 2 in each direction.

    With a coupling of 0.25 / Å quantum mechanics differs from uncoupled oscillators by less than 0.3 % in <b^2>.
    """

    @dataclass(frozen=True)
    class FermiPairs(potentials.Free):  # type: ignore[misc, name-defined]
        def __call__(self, system: Any, **rest: Any) -> Prediction:
            a, b = system.positions.reshape(-1, 2, 3).unbind(1)
            stretch = a + coupling * b * b
            energy = 0.5 * (STIFFNESS[0] * stretch**2 + STIFFNESS[1] * b**2)
            pull = STIFFNESS[0] * stretch
            forces = -torch.stack([pull, STIFFNESS[1] * b + 2.0 * coupling * b * pull], 1).reshape(-1, 3)
            return Prediction(energy.sum()[None], torch.zeros_like(forces[:, 0]), forces, torch.zeros_like(system.cell))

    random = np.random.default_rng(3).normal(size=(pairs, 2, 3)) * np.sqrt(THETA / STIFFNESS)[:, None]
    atoms = Atoms(["H", "He"] * pairs, positions=random.reshape(-1, 3), masses=np.tile(MASSES, pairs))
    thermal = np.random.default_rng(4).normal(size=(pairs, 2, 3)) * np.sqrt(THETA * MASSES)[:, None]
    atoms.set_momenta(thermal.reshape(-1, 3))
    return atoms, FermiPairs()


def bath(time_ps: float, friction: float = 20.0) -> AdaptiveQuantumThermalBath:
    return AdaptiveQuantumThermalBath(0.5, T, friction, segment_steps=256, adaptation_time_ps=time_ps)


def near(values: torch.Tensor, integrator: AdaptiveQuantumThermalBath) -> list[float]:
    """Sum of a table within 400 / cm of its own oscillator for each element."""
    wavenumbers, found = integrator.wavenumbers_per_cm, []
    for table, frequency in zip(values[0], FREQUENCIES / ANGULAR_FREQUENCY, strict=True):
        found.append(float(table[torch.from_numpy(np.abs(wavenumbers - frequency) < 400.0)].mean()))
    return found


def pairs_after(potentials: Any, coupling: float, integrator: AdaptiveQuantumThermalBath, steps: int) -> Simulation:
    atoms, potential = fermi_pairs(potentials, 200, coupling)
    simulation = Simulation(atoms, potential, integrator, seed=1, options=FREE)
    simulation.run(steps)
    return simulation


def test_without_adaptation_it_is_the_quantum_thermal_bath(potentials: Any) -> None:
    atoms, potential = fermi_pairs(potentials, 3, 0.25)
    plain = QuantumThermalBath(0.5, T, 20.0, segment_steps=64)
    frozen = AdaptiveQuantumThermalBath(0.5, T, 20.0, segment_steps=64, adaptation_time_ps=NEVER)
    first, second = (Simulation(atoms, potential, integrator, seed=1, options=FREE) for integrator in (plain, frozen))
    first.run(200)
    second.run(200)
    assert np.allclose(first.frame().positions, second.frame().positions, rtol=0, atol=1e-7)


def test_oscillators_satisfy_the_theorem_and_keep_their_noise(potentials: Any) -> None:
    integrator = bath(1.0)
    simulation = pairs_after(potentials, 0.0, integrator, 1536)
    extended = simulation.state.extended
    ratio = np.divide(near(extended["fluctuation"], integrator), near(extended["response"], integrator))
    # Statistical error: 600 directions and six segments, of which the running means weigh the first one most.
    assert ratio == pytest.approx(np.ones(2), abs=0.09)
    assert near(extended["noise_gain"], integrator) == pytest.approx([1.0, 1.0], abs=0.09)


def test_leakage_breaks_the_theorem(potentials: Any) -> None:
    integrator = bath(NEVER)
    extended = pairs_after(potentials, 0.25, integrator, 1024).state.extended
    high, low = np.divide(near(extended["fluctuation"], integrator), near(extended["response"], integrator))
    assert low > 1.12
    assert high < 0.95


def test_noise_adapts_against_leakage(potentials: Any) -> None:
    integrator = bath(0.25)
    simulation = pairs_after(potentials, 0.25, integrator, 1536)
    high, low = near(simulation.state.extended["noise_gain"], integrator)
    assert low < 0.8
    assert high > 1.08


def test_a_wrong_gain_is_repaired(springs: Callable[..., Any]) -> None:
    frequency = ANGULAR_FREQUENCY * 1500.0
    atoms, potential = springs(200, frequency)
    integrator = bath(0.5)
    theta = float(oscillator_energy(np.array([frequency]), T)[0])
    hot = InitialVelocities(4.0 * theta / BOLTZMANN)
    simulation = Simulation(atoms, potential, integrator, seed=1, velocities=hot, options=FREE)
    state = simulation.state
    state = replace(state, extended={**state.extended, "noise_gain": 2.0 * state.extended["noise_gain"]})
    for _ in range(2048):
        state = integrator.step(state, simulation.dynamics)
    index = int(np.abs(integrator.wavenumbers_per_cm - 1500.0).argmin())
    assert 0.8 < float(state.extended["noise_gain"][0, 0, index]) < 1.3


def test_gain_has_bounds(potentials: Any) -> None:
    simulation = pairs_after(potentials, 3.0, bath(0.01, friction=2.0), 1024)
    gain = simulation.state.extended["noise_gain"]
    assert float(gain.min()) >= 0.01
    assert float(gain.max()) <= 10.0


def test_adapted_friction_is_given_by_element_and_wavenumber(potentials: Any) -> None:
    atoms = Atoms("HOOHe", positions=np.zeros((4, 3)))
    integrator = bath(1.0)
    simulation = Simulation([atoms, atoms[:2]], potentials.Free(), integrator, seed=1, options=FREE)
    friction = integrator.adapted_friction_per_ps(simulation.state)
    assert friction.shape == (2, 3, 129)
    assert len(integrator.wavenumbers_per_cm) == 129
    assert integrator.wavenumbers_per_cm[-1] == pytest.approx(33356.4095)
    assert bool((friction == 20.0).all())


def test_noise_follows_the_gain_of_its_element(potentials: Any) -> None:
    atoms = Atoms("HOOHe", positions=np.zeros((4, 3)))
    integrator = bath(1.0)
    dynamics = Simulation(atoms, potentials.Free(), integrator, seed=1, options=FREE).dynamics
    gain = torch.ones(1, 3, 129, dtype=torch.float64)
    before = bath_segment(dynamics, integrator.bath, T, 0, gain=gain)
    after = bath_segment(dynamics, integrator.bath, T, 0, gain=gain * torch.tensor([1.0, 4.0, 9.0])[:, None])
    factor = torch.tensor([1.0, 3.0, 3.0, 2.0])[:, None]
    assert torch.allclose(after, factor * before, rtol=1e-9, atol=1e-9)


def test_replicas_adapt_on_their_own(potentials: Any, springs: Callable[..., Any]) -> None:
    atoms, potential = springs(20, ANGULAR_FREQUENCY * 1500.0)
    integrator = AdaptiveQuantumThermalBath(0.5, T, 20.0, segment_steps=64, adaptation_time_ps=0.1)
    pair = Simulation([atoms, atoms], potential, integrator, seed=1, options=FREE)
    pair.run(128)
    gain = pair.state.extended["noise_gain"]
    assert not torch.equal(gain[0], gain[1])


@pytest.mark.physics
def test_adaptation_stops_the_leakage(potentials: Any) -> None:
    found = {}
    for time_ps in (NEVER, 1.0):
        simulation = pairs_after(potentials, 0.25, bath(time_ps), 16_000)
        rows: list[np.ndarray] = []

        def record(s: Simulation, rows: list[np.ndarray] = rows) -> None:
            squares = s.frame().positions.reshape(-1, 2, 3) ** 2
            rows.append(squares.mean((0, 2)) * STIFFNESS / THETA)

        simulation.run(10_000, observers=[Observer(record, every=8)])
        found[time_ps] = np.mean(rows, axis=0)
    assert found[NEVER][0] < 0.93
    assert found[NEVER][1] > 1.15
    assert found[1.0] == pytest.approx(np.ones(2), abs=0.05)


def test_adaptation_time_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"`adaptation_time_ps` must be positive and finite, got 0\.0 ps"):
        bath(0.0)
