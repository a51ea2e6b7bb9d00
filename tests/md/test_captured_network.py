"""The form for devices inside of recorded evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e2former_calc.md.captured_replay import Recorder, plain, traced
from e2former_calc.md.forces import PotentialForces
from e2former_calc.md.static_forces import StaticForces
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.inference.device_prepared import DevicePrepared
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

CONFIG = E2FormerV2Config(
    heads=("test",), channels=8, lmax=1, conv_multiplicity=2, num_layers=1, num_heads=4, head_width=4, num_basis=12,
    max_radius=4.0, orders=("first",), avg_degree=8.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def potential() -> EnergyPotential:
    """Random weights in float64, with the form for devices on reference kernels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = E2FormerV2(CONFIG)
    potential = EnergyPotential(
        model.eval(), head="test", reference_energies={"test": torch.linspace(-9, 0, 119)},
        elements=frozenset({1, 8}), force_mode="gradient", neighbor_cap="none",
    ).double()  # fmt: skip
    potential.prepared = DevicePrepared(potential, kernels="reference")
    return potential


def replicas(*, periodic: bool) -> System:
    """Two different arrangements of five atoms."""
    rng = np.random.default_rng(2)
    grid = 1.4 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    cell = np.diag([4.2, 4.5, 5.0]) if periodic else None
    return System.stack(
        [
            System.single(grid + rng.normal(size=(5, 3)) * 0.1, [8, 1, 1, 8, 1], cell=cell, pbc=periodic)
            for _ in range(2)
        ]
    )


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("recorder", [plain, traced])
def test_recorded_forces_are_those_of_a_fresh_list(
    potential: EnergyPotential, recorder: Recorder, periodic: bool
) -> None:
    system = replicas(periodic=periodic)
    static = StaticForces(potential, system, skin=0.5, recorder=recorder)
    fresh = PotentialForces(potential, system, skin=0.0)
    rng, positions = np.random.default_rng(1), system.positions
    for _ in range(3):
        positions = positions + torch.from_numpy(rng.normal(size=positions.shape)) * 0.05
        found, expected = (forces.evaluate(positions, system.cell, stress=periodic) for forces in (static, fresh))
        torch.testing.assert_close(found.energy, expected.energy, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(found.forces, expected.forces, rtol=0.0, atol=1e-12)
        if periodic:
            torch.testing.assert_close(found.stress, expected.stress, rtol=0.0, atol=1e-12)


def test_a_recording_calls_the_prepared_form(potential: EnergyPotential, monkeypatch: pytest.MonkeyPatch) -> None:
    system = replicas(periodic=False)
    static = StaticForces(potential, system, skin=0.5, recorder=traced)
    monkeypatch.setattr(E2FormerV2, "forward", None)
    assert torch.isfinite(static.evaluate(system.positions, system.cell, stress=False).forces).all()
