"""Dynamics with the prepared form of a model is dynamics with the plain module."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.checkpoint import load_potential
from e2former_calc.md.integrators import VelocityVerlet
from e2former_calc.md.simulation import Observer, Simulation
from e2former_calc.md.velocities import InitialVelocities


def run(implementation: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions at the end, and the total energy at every step."""
    potential = load_potential("ethanol-rmd17", implementation=implementation, dtype="float64")
    simulation = Simulation(
        molecule("CH3CH2OH"), potential, VelocityVerlet(0.5), seed=3, velocities=InitialVelocities(300.0)
    )
    energies: list[float] = []
    record = Observer(lambda current: energies.append(float(current.observables().conserved_energy[0])))
    simulation.run(steps, observers=[record])
    return simulation.atoms().positions, np.array(energies)


def test_trajectories_of_fused_and_plain_module_agree() -> None:
    fused, plain = run("fused", 100), run("blocked", 100)
    np.testing.assert_allclose(fused[0], plain[0], rtol=0.0, atol=1e-7)


@pytest.mark.physics
def test_fused_and_plain_module_drift_alike() -> None:
    fused, plain = run("fused", 1000), run("blocked", 1000)
    np.testing.assert_allclose(fused[1], plain[1], rtol=0.0, atol=2e-5)
