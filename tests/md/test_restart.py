"""A simulation continues bit for bit from its restart file, and from no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCom

from e2former_calc.md import restart as restart_module
from e2former_calc.md.integrators import (
    AdaptiveQuantumThermalBath,
    AnisotropicCellRescaling,
    Bussi,
    Langevin,
    MonteCarloBarostat,
    NoseHooverChain,
    QuantumThermalBath,
    StochasticCellRescaling,
    VelocityVerlet,
)
from e2former_calc.md.restart import RestartError, read_restart
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Simulation, SimulationOptions
from e2former_calc.md.stopping import StoppingRules
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.potential import EnergyPotential

WARM = InitialVelocities(60.0)
LANGEVIN = Langevin(2.0, 60.0, 5.0)
INTEGRATORS = [
    VelocityVerlet(2.0),
    Langevin(2.0, LinearRamp(60.0, 90.0, 700), 5.0),
    Bussi(2.0, 60.0, 50.0),
    NoseHooverChain(2.0, 60.0, 50.0),
    StochasticCellRescaling(2.0, 60.0, 100.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0),
    MonteCarloBarostat(LANGEVIN, 100.0, every=7, max_log_volume_change=0.03),
    MonteCarloBarostat(NoseHooverChain(2.0, 60.0), LinearRamp(1.0, 200.0, 600), every=7),
    AnisotropicCellRescaling(2.0, 60.0, 100.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0),
    QuantumThermalBath(2.0, 60.0, 20.0, segment_steps=64),
    AdaptiveQuantumThermalBath(2.0, 60.0, 20.0, segment_steps=64),
]


def identical(first: Simulation, second: Simulation) -> bool:
    """Whether two simulations are in the same state to the last bit."""
    one, other = first.state.tensors(), second.state.tensors()
    same = [torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one]
    return first.step == second.step and one.keys() == other.keys() and all(same)


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_500_and_500_steps_equal_1000(potentials: Any, integrator: Any, tmp_path: Path) -> None:
    small = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((2, 1, 1))

    def fresh(skin: float) -> Simulation:
        return Simulation(
            [small, small[:6]], potentials.LennardJones(), integrator, seed=5, velocities=WARM,
            options=SimulationOptions(skin=skin),
        )  # fmt: skip

    whole, first, second = fresh(0.5), fresh(0.5), fresh(0.9)
    whole.run(1000)
    first.run(500)
    first.save(tmp_path / "a.restart")
    second.restore(tmp_path / "a.restart")
    second.run(500)
    assert identical(whole, second)
    assert torch.equal(
        whole.observables().conserved_energy.nan_to_num(), second.observables().conserved_energy.nan_to_num()
    )


def test_a_network_continues_bit_for_bit(tiny: EnergyPotential, tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=0, spin=1)
    runs = [Simulation([atoms] * 2, tiny, Langevin(0.5, 300.0, 5.0), seed=5) for _ in range(3)]
    runs[0].run(16)
    runs[1].run(7)
    runs[1].save(tmp_path / "a.restart")
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(9)
    assert identical(runs[0], runs[2])


def test_rebuilds_happen_at_the_same_steps(potentials: Any, argon: Atoms, tmp_path: Path) -> None:
    runs = [
        Simulation(argon, potentials.LennardJones(), LANGEVIN, seed=5, velocities=InitialVelocities(300.0))
        for _ in "ab"
    ]
    runs[0].run(120)
    runs[0].save(tmp_path / "a.restart")
    runs[1].restore(tmp_path / "a.restart")
    for run in runs:
        run.run(200)
    assert runs[0].list_rebuilds == runs[1].list_rebuilds > 5


@pytest.mark.parametrize("stop_at", [25, 30])
def test_stopped_replicas_stay_stopped(potentials: Any, stop_at: int, tmp_path: Path) -> None:
    water = molecule("H2O")
    water.set_velocities(np.array([[0, 0, 0], [0, 0.2, 0], [0, 0, 0]]))
    options = SimulationOptions(stopping=StoppingRules(max_bond_change=0.5, check_every=10))
    still = Atoms("OH2", positions=water.positions)
    runs = [Simulation([still, water], potentials.Free(), VelocityVerlet(1.0), seed=5, options=options) for _ in "abc"]
    runs[0].run(60)
    runs[1].run(stop_at)
    runs[1].save(tmp_path / "a.restart")
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(60 - stop_at)
    assert runs[0].stops()[1] is not None
    assert identical(runs[0], runs[2])


@pytest.mark.parametrize("constraint", [FixAtoms([0, 3]), FixCom()])
def test_constraints_continue(potentials: Any, cluster: Atoms, constraint: Any, tmp_path: Path) -> None:
    cluster.set_constraint(constraint)
    runs = [Simulation(cluster, potentials.LennardJones(), Bussi(2.0, 30.0), seed=5) for _ in "abc"]
    runs[0].run(20)
    runs[1].run(10)
    runs[1].save(tmp_path / "a.restart")
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(10)
    assert identical(runs[0], runs[2])


def test_host_loop_continues(tmp_path: Path) -> None:
    runs = [Simulation(molecule("CH4"), EMT(), Langevin(0.5, 300.0, 5.0), seed=5) for _ in "abc"]
    runs[0].run(20)
    runs[1].run(10)
    runs[1].save(tmp_path / "a.restart")
    runs[2].restore(tmp_path / "a.restart")
    runs[2].run(10)
    assert identical(runs[0], runs[2])


def test_degrees_of_freedom_come_from_the_file(potentials: Any, cluster: Atoms, tmp_path: Path) -> None:
    moving = cluster.copy()
    moving.set_velocities(np.random.default_rng(1).normal(size=(13, 3)) * 0.01)
    first = Simulation(moving, potentials.LennardJones(), Bussi(2.0, 30.0), seed=5)
    first.save(tmp_path / "a.restart")
    second = Simulation(cluster, potentials.LennardJones(), Bussi(2.0, 30.0), seed=5)
    second.restore(tmp_path / "a.restart")
    assert second.dynamics.degrees_of_freedom.tolist() == [39.0]
    assert second.observables().temperature_K == first.observables().temperature_K


def other_simulation(which: str, potentials: Any, cluster: Atoms) -> Simulation:
    """A simulation that differs in one thing from the one that is saved."""
    atoms, potential, integrator, seed, options = cluster, potentials.LennardJones(), LANGEVIN, 5, None
    if which == "elements":
        atoms.numbers[0] = 10
    elif which == "masses":
        atoms.set_masses([41.0] * 13)
    elif which == "atoms":
        atoms = cluster[:12]
    elif which == "constraint":
        atoms.set_constraint(FixCom())
    elif which == "model":
        potential = replace(potential, epsilon=0.02)
    elif which == "class":
        integrator = Bussi(2.0, 60.0)
    elif which == "friction":
        integrator = replace(LANGEVIN, friction_per_ps=6.0)
    elif which == "ramp":
        integrator = replace(LANGEVIN, temperature_K=LinearRamp(60.0, 70.0, 100))
    elif which == "seed":
        seed = 6
    else:
        options = SimulationOptions(replica_ids=(3,))
    return Simulation(atoms, potential, integrator, seed=seed, options=options)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("elements", "system: other numbers"),
        ("masses", "system: other masses"),
        ("atoms", "system: other numbers"),
        ("constraint", "options: constraints was"),
        ("model", "model: epsilon was 0.0104, is 0.02"),
        ("class", "integrator: class was Langevin, is Bussi"),
        ("friction", "integrator: friction_per_ps was 5.0, is 6.0"),
        ("ramp", "integrator: temperature_K was 60.0, is LinearRamp"),
        ("seed", "options: seed was 5, is 6"),
        ("ids", "options: replica_ids was"),
    ],
)
def test_what_differs_is_named(potentials: Any, cluster: Atoms, which: str, message: str, tmp_path: Path) -> None:
    Simulation(cluster.copy(), potentials.LennardJones(), LANGEVIN, seed=5).save(tmp_path / "a.restart")
    other = other_simulation(which, potentials, cluster)
    with pytest.raises(RestartError, match=message):
        other.restore(tmp_path / "a.restart")
    assert other.run(1) == 1


def test_other_weights_are_another_model(tiny: EnergyPotential, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info.update(charge=0, spin=1)
    Simulation(atoms, tiny, LANGEVIN, seed=5).save(tmp_path / "a.restart")
    parameter = next(tiny.parameters())
    with torch.no_grad():
        parameter += 1.0
        try:
            with pytest.raises(RestartError, match="model: sha256 was"):
                Simulation(atoms, tiny, LANGEVIN, seed=5).restore(tmp_path / "a.restart")
        finally:
            parameter -= 1.0


@pytest.fixture
def saved(potentials: Any, cluster: Atoms, tmp_path: Path) -> tuple[Simulation, Path]:
    simulation = Simulation(cluster, potentials.LennardJones(), LANGEVIN, seed=5)
    simulation.run(3)
    simulation.save(tmp_path / "a.restart")
    return simulation, tmp_path / "a.restart"


def test_every_damaged_byte_is_noticed(saved: tuple[Simulation, Path]) -> None:
    simulation, path = saved
    content = path.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(content), 60).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(RestartError, match=r"damaged|format"):
            simulation.restore(path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_torn_files_are_refused(saved: tuple[Simulation, Path], kept: float) -> None:
    simulation, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(RestartError, match="is damaged or not a restart file"):
        simulation.restore(path)


def test_missing_files_are_reported(saved: tuple[Simulation, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no restart file"):
        saved[0].restore(tmp_path / "absent.restart")


def test_a_failed_write_leaves_the_earlier_file(
    saved: tuple[Simulation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, path = saved
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restart_module.os, "fsync", full)
    simulation.run(2)
    with pytest.raises(OSError, match="No space left"):
        simulation.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_tells_what_made_it(saved: tuple[Simulation, Path]) -> None:
    facts = read_restart(saved[1]).facts
    assert (facts["step"], facts["time_fs"]) == (3, 6.0)
    assert facts["integrator"]["class"] == "Langevin"
    assert facts["model"]["class"] == "LennardJones"
    assert facts["version"]


def test_saving_does_not_disturb(potentials: Any, cluster: Atoms, tmp_path: Path) -> None:
    runs = [Simulation(cluster, potentials.LennardJones(), LANGEVIN, seed=5) for _ in "ab"]
    for step in range(10):
        runs[0].run(1)
        runs[1].run(1)
        runs[1].save(tmp_path / f"{step}.restart")
    assert identical(*runs)
