"""Laws of the loop: replicas do not know of each other, observers see complete states, nothing else is touched."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

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
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.potential import EnergyPotential

WARM = InitialVelocities(60.0)
INTEGRATORS = [
    VelocityVerlet(2.0),
    Langevin(2.0, LinearRamp(60.0, 90.0, 50), 5.0),
    Bussi(2.0, 60.0, 50.0),
    NoseHooverChain(2.0, 60.0, 50.0),
    StochasticCellRescaling(2.0, 60.0, 100.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0),
    MonteCarloBarostat(Langevin(2.0, 60.0, 5.0), 100.0, every=3, max_log_volume_change=0.03),
    AnisotropicCellRescaling(2.0, 60.0, 100.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0),
    QuantumThermalBath(2.0, 60.0, 20.0, segment_steps=64),
    AdaptiveQuantumThermalBath(2.0, 60.0, 20.0, segment_steps=64),
]
by_name = pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)


def mates(argon: Atoms) -> list[Atoms]:
    """Replicas of different sizes and cells."""
    other = argon.copy()[:-1]
    third = argon.copy()
    third.set_cell(third.cell.array + np.array([[0, 0, 0], [0.4, 0, 0], [0, 0, 0.2]]), scale_atoms=True)
    return [other, argon, third]


@by_name
def test_a_replica_alone_equals_the_same_replica_in_a_batch(potentials: Any, argon: Atoms, integrator: Any) -> None:
    ids = (4, 1, 9)
    batch = Simulation(
        mates(argon), potentials.LennardJones(), integrator, seed=3, velocities=WARM,
        options=SimulationOptions(replica_ids=ids),
    )  # fmt: skip
    batch.run(60)
    for index, image in enumerate(mates(argon)):
        options = SimulationOptions(replica_ids=(ids[index],), skin=0.2)
        alone = Simulation(image, potentials.LennardJones(), integrator, seed=3, velocities=WARM, options=options)
        alone.run(60)
        assert np.array_equal(alone.frame().positions, batch.frame(index).positions)
        assert np.array_equal(alone.frame().velocities, batch.frame(index).velocities)
        assert alone.observables().temperature_K[0] == batch.observables().temperature_K[index]


@by_name
def test_skin_changes_no_bit(potentials: Any, argon: Atoms, integrator: Any) -> None:
    runs = []
    for skin in (0.0, 0.3, 1.0):
        simulation = Simulation(
            argon, potentials.LennardJones(), integrator, seed=3, velocities=InitialVelocities(300.0),
            options=SimulationOptions(skin=skin),
        )  # fmt: skip
        simulation.run(80)
        runs.append((simulation.frame().positions, simulation.list_rebuilds))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][0], runs[2][0])
    assert runs[0][1] > runs[1][1] > runs[2][1] >= 1


@by_name
def test_one_run_equals_two(potentials: Any, argon: Atoms, integrator: Any) -> None:
    once = Simulation(argon, potentials.LennardJones(), integrator, seed=3, velocities=WARM)
    twice = Simulation(argon, potentials.LennardJones(), integrator, seed=3, velocities=WARM)
    once.run(20)
    assert [twice.run(7), twice.run(0), twice.run(13)] == [7, 0, 13]
    assert np.array_equal(once.frame().positions, twice.frame().positions)


def test_seeds_give_different_trajectories(potentials: Any, cluster: Atoms) -> None:
    runs = [Simulation(cluster, potentials.LennardJones(), Langevin(2.0, 30.0, 5.0), seed=seed) for seed in (1, 2)]
    for run in runs:
        run.run(5)
    assert not np.array_equal(runs[0].frame().positions, runs[1].frame().positions)


def test_replicas_of_a_network_agree_to_rounding(tiny: EnergyPotential) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=0, spin=1)
    options = SimulationOptions(replica_ids=(2,))
    batch = Simulation([atoms] * 3, tiny, Langevin(0.5, 300.0, 5.0), seed=3)
    alone = Simulation(atoms, tiny, Langevin(0.5, 300.0, 5.0), seed=3, options=options)
    batch.run(20)
    alone.run(20)
    assert np.allclose(batch.frame(2).positions, alone.frame(0).positions, rtol=0, atol=1e-11)
    assert not np.allclose(batch.frame(1).positions, alone.frame(0).positions, rtol=0, atol=1e-3)


def test_observers_are_called_at_step_0_and_at_multiples(potentials: Any, cluster: Atoms) -> None:
    seen: list[int] = []
    simulation = Simulation(cluster, potentials.LennardJones(), VelocityVerlet(2.0), seed=1)
    for steps in (10, 10):
        simulation.run(steps, observers=[Observer(lambda s: seen.append(s.step), every=4)])
    assert seen == [0, 4, 8, 12, 16, 20]
    assert simulation.time_fs == 40.0


def test_a_request_ends_the_run_after_the_step(potentials: Any, cluster: Atoms) -> None:
    simulation = Simulation(cluster, potentials.LennardJones(), VelocityVerlet(2.0), seed=1)
    made = simulation.run(100, observers=[Observer(lambda s: s.step == 6 and s.request_stop())])
    assert made == simulation.step == 6
    assert simulation.run(4) == 4


def test_an_error_leaves_the_last_complete_state(potentials: Any, cluster: Atoms) -> None:
    class Breaks(potentials.LennardJones):  # type: ignore[misc, name-defined]
        def __call__(self, system: Any, **rest: Any) -> Any:
            if simulation.step == 5:
                raise RuntimeError("out of memory")
            return super().__call__(system, **rest)

    simulation = Simulation(cluster, Breaks(), VelocityVerlet(2.0), seed=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        simulation.run(10)
    assert simulation.step == 5
    assert np.isfinite(simulation.frame().positions).all()


def test_states_are_never_changed_in_place(potentials: Any, argon: Atoms) -> None:
    for integrator in INTEGRATORS:
        simulation = Simulation(argon, potentials.LennardJones(), integrator, seed=1, velocities=WARM)
        simulation.run(3)
        state = simulation.state
        copies = {name: tensor.clone() for name, tensor in state.tensors().items()}
        simulation.run(6)
        assert all(
            torch.equal(copies[name], tensor) or tensor.isnan().any() for name, tensor in state.tensors().items()
        )


def test_positions_stay_unwrapped(potentials: Any) -> None:
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 3, 3]], cell=[6, 6, 6], pbc=True)
    atoms.set_velocities([[1, 0, 0], [1, 0, 0]])
    simulation = Simulation(atoms, potentials.Free(), VelocityVerlet(10.0), seed=1)
    simulation.run(100)
    assert simulation.frame().positions[:, 0].min() > 50.0


def test_user_structures_and_global_random_numbers_are_left_alone(potentials: Any, cluster: Atoms) -> None:
    before, state = cluster.copy(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    Simulation(cluster, potentials.LennardJones(), Langevin(2.0, 30.0, 5.0), seed=1).run(5)
    assert cluster == before
    assert "momenta" not in cluster.arrays
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_memory_does_not_grow(potentials: Any, cluster: Atoms) -> None:
    simulation = Simulation(cluster, potentials.LennardJones(), Langevin(2.0, 30.0, 5.0), seed=1)
    counts = []
    for _ in range(3):
        simulation.run(200)
        gc.collect()
        counts.append(sum(type(x) is torch.Tensor for x in gc.get_objects()))
    assert counts[2] <= counts[1] + 5


def test_atoms_carry_what_is_known(potentials: Any, cluster: Atoms) -> None:
    cluster.info["name"] = "cluster"
    simulation = Simulation(cluster, potentials.LennardJones(), VelocityVerlet(2.0), seed=1, velocities=WARM)
    simulation.run(4)
    atoms, seen = simulation.atoms(), simulation.observables()
    assert atoms.info == {"name": "cluster", "step": 4, "time_fs": 8.0}
    assert atoms.get_potential_energy() == float(seen.potential_energy)
    assert atoms.get_kinetic_energy() == pytest.approx(float(seen.kinetic_energy), rel=1e-12)
    assert np.array_equal(atoms.get_forces(), simulation.state.forces.numpy())


def test_pressure_is_reported_on_request(potentials: Any, argon: Atoms) -> None:
    options = SimulationOptions(stress=True)
    simulation = Simulation(
        argon, potentials.LennardJones(), VelocityVerlet(2.0), seed=1, velocities=WARM, options=options
    )
    ideal = simulation.dynamics.replicas.sizes[0] * 60.0 * 8.617e-5 / argon.cell.volume / 6.2415e-7
    virial = -float(simulation.state.stress[0].trace()) / 3.0 / 6.2415e-7
    assert float(simulation.observables().pressure_bar) == pytest.approx(float(ideal) + virial, rel=0.2)


@pytest.mark.parametrize(
    ("atoms", "options", "message"),
    [
        ([], {}, "`atoms` is empty"),
        ([Atoms("H"), Atoms()], {}, "every replica needs at least one atom"),
        ([Atoms("H", info={"charge": 1})], {}, "charge 1 was given, but this model ignores charge"),
        ([molecule("H2O")], {"replica_ids": (0, 1)}, "replica ids must be 1 different numbers"),
    ],
)
def test_bad_input_is_refused(potentials: Any, atoms: list[Atoms], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(atoms, potentials.Free(), VelocityVerlet(1.0), seed=1, options=SimulationOptions(**options))


def test_unknown_elements_are_refused(tiny: EnergyPotential) -> None:
    water = molecule("H2O")
    water.info.update(charge=0, spin=1)
    with pytest.raises(ValueError, match=r"replica 1: elements Og are not covered by this model; it knows H He"):
        Simulation([water, Atoms("Og")], tiny, VelocityVerlet(1.0), seed=1)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("Ar2", [[0, 0, 0], [0, 0, 4]]), "elements Ar are not covered by this model; it knows H He"),
        (molecule("H2", info={"charge": 1}), "charge 1 was given, but this model ignores charge"),
        (molecule("H2", info={"spin": 2}), "spin multiplicity 2 was given, but this model ignores spin"),
    ],
)
def test_without_strictness_refusals_become_one_warning(potentials: Any, atoms: Atoms, message: str) -> None:
    small = potentials.LennardJones(elements=frozenset({1, 2}))
    with pytest.raises(ValueError, match=message):
        Simulation([atoms] * 3, small, VelocityVerlet(1.0), seed=1)
    with pytest.warns(UserWarning, match=message) as warned:
        simulation = Simulation(
            [atoms] * 3, small, VelocityVerlet(1.0), seed=1, options=SimulationOptions(strict=False)
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert simulation.run(2) == 2


def test_wrong_number_of_temperatures_is_refused(potentials: Any) -> None:
    with pytest.raises(ValueError, match="3 targets were given for 2 replicas"):
        Simulation([molecule("H2O")] * 2, potentials.Free(), Bussi(1.0, (1.0, 2.0, 3.0)), seed=1)


def test_negative_steps_are_refused(potentials: Any) -> None:
    with pytest.raises(ValueError, match="`steps` must not be negative, got -1"):
        Simulation(molecule("H2O"), potentials.Free(), VelocityVerlet(1.0), seed=1).run(-1)


def test_observers_need_a_positive_interval() -> None:
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        Observer(print, every=0)


def test_a_model_that_is_broken_from_the_start_is_an_error(potentials: Any, cluster: Atoms) -> None:
    broken = potentials.Failing(after=0, calls=([],))
    with pytest.raises(ValueError, match="energy or forces of replica 0 are not finite at the start"):
        Simulation(cluster, broken, VelocityVerlet(1.0), seed=1).run(1)
