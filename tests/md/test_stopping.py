"""Replicas that break a rule stop; the others go on as if alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from e2former_calc.md.integrators import (
    Bussi,
    Langevin,
    MonteCarloBarostat,
    NoseHooverChain,
    QuantumThermalBath,
    VelocityVerlet,
)
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.stopping import StoppingRules, StopReason

THERMOSTATS = [VelocityVerlet(2.0), Langevin(2.0, 30.0, 5.0), Bussi(2.0, 30.0), NoseHooverChain(2.0, 30.0)]


def with_rules(**rules: Any) -> SimulationOptions:
    return SimulationOptions(stopping=StoppingRules(**rules))


def moving(atoms: Atoms, velocities_per_fs: Any) -> Atoms:
    moved = atoms.copy()
    moved.set_velocities(np.asarray(velocities_per_fs) / 0.09822694788464063)
    return moved


@pytest.mark.parametrize("integrator", THERMOSTATS, ids=lambda i: type(i).__name__)
@pytest.mark.parametrize(("value", "reason"), [(float("nan"), StopReason.NOT_FINITE), (60.0, StopReason.FORCE)])
def test_a_bad_replica_stops_alone(
    potentials: Any, cluster: Atoms, integrator: Any, value: float, reason: StopReason
) -> None:
    inner = potentials.LennardJones()
    bad = potentials.Failing(cutoff=inner.cutoff, inner=inner, row=1, after=11, value=value, calls=([],))
    good = Simulation([cluster] * 3, inner, integrator, seed=2)
    hurt = Simulation([cluster] * 3, bad, integrator, seed=2)
    good.run(10)
    last_good = good.frame(1)
    good.run(20)
    assert hurt.run(30) == 30
    assert [stop and (stop.reason, stop.step) for stop in hurt.stops()] == [None, (reason, 11), None]
    for name in ("positions", "velocities", "forces"):
        assert np.array_equal(getattr(hurt.frame(1), name), getattr(last_good, name))
        assert np.array_equal(getattr(hurt.frame(0), name), getattr(good.frame(0), name))
        assert np.array_equal(getattr(hurt.frame(2), name), getattr(good.frame(2), name))


def test_the_run_ends_when_all_replicas_are_stopped(potentials: Any, cluster: Atoms) -> None:
    bad = potentials.Failing(row=0, after=5, calls=([],))
    simulation = Simulation(cluster, bad, VelocityVerlet(1.0), seed=1)
    assert simulation.run(100) == 5
    assert simulation.run(100) == 0


def test_atoms_that_run_into_each_other_stop_their_replica_only(potentials: Any) -> None:
    pair = Atoms("Ar2", positions=[[0, 0, 0], [4, 0, 0]])
    crash = moving(pair, [[1.0, 0, 0], [-1.0, 0, 0]])
    simulation = Simulation(
        [crash, moving(pair, np.zeros((2, 3)))], potentials.LennardJones(epsilon=1e-12), VelocityVerlet(1.0), seed=1
    )
    simulation.run(20)
    first, second = simulation.stops()
    assert first is not None
    assert (first.reason, first.step) == (StopReason.NOT_FINITE, 2)
    assert "overlap" in first.message
    assert second is None
    assert simulation.frame(0).positions[:, 0] == pytest.approx([1.0, 3.0])


@pytest.mark.parametrize("target", [30.0, 3000.0])
def test_temperature_window(potentials: Any, cluster: Atoms, target: float) -> None:
    hot = moving(cluster, np.random.default_rng(1).normal(size=(13, 3)) * 0.0025)
    options = with_rules(temperature_window=(0.1, 5.0), window_fs=50.0)
    simulation = Simulation(hot, potentials.Free(), Bussi(5.0, target, 1e6), seed=1, options=options)
    simulation.run(100)
    stop = simulation.stops()[0]
    temperature = float(simulation.observables().temperature_K)
    if 0.1 * target < temperature < 5.0 * target:
        assert stop is None
    else:
        assert stop is not None
        assert (stop.reason, stop.step) == (StopReason.TEMPERATURE, 10)


def geometry(potentials: Any, atoms: Atoms, velocities: Any, **rules: Any) -> tuple[Simulation, StopReason | None]:
    simulation = Simulation(
        [moving(atoms, velocities), moving(atoms, np.zeros((len(atoms), 3)))],
        potentials.Free(), VelocityVerlet(1.0), seed=1, options=with_rules(check_every=5, **rules),
    )  # fmt: skip
    simulation.run(60)
    first, second = simulation.stops()
    assert second is None
    return simulation, None if first is None else first.reason


LEAVING = np.array([[0, 0, 0], [0, 0.02, 0], [0, 0, 0]])


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_a_bond_that_changes_too_much_stops(potentials: Any, bound: float) -> None:
    simulation, reason = geometry(potentials, molecule("H2O"), LEAVING, max_bond_change=bound)
    changed = abs(simulation.atoms().get_distance(0, 1) - molecule("H2O").get_distance(0, 1))
    assert reason is (StopReason.BOND if bound == 0.5 else None)
    assert changed < bound
    assert changed > 0.4


def test_a_molecule_that_falls_apart_stops(potentials: Any) -> None:
    simulation, reason = geometry(potentials, molecule("H2O"), LEAVING, keep_fragments=True)
    assert reason is StopReason.FRAGMENTS
    assert simulation.atoms().get_distance(0, 1) < 0.66 + 0.31 + 0.6


def test_strangers_that_come_too_close_stop(potentials: Any) -> None:
    pair = Atoms("CO", positions=[[0, 0, 0], [3.0, 0, 0]])
    simulation, reason = geometry(potentials, pair, [[0, 0, 0], [-0.05, 0, 0]], min_distance_ratio=0.6)
    assert reason is StopReason.DISTANCE
    assert 0.6 * (0.76 + 0.66) < simulation.atoms().get_distance(0, 1) < 1.2


def test_bonded_atoms_may_be_close(potentials: Any) -> None:
    _, reason = geometry(potentials, molecule("H2O"), np.zeros((3, 3)), min_distance_ratio=1.5)
    assert reason is None


def test_bonds_across_the_boundary_are_followed(potentials: Any) -> None:
    atoms = molecule("H2O")
    atoms.set_cell([8, 8, 8])
    atoms.pbc = True
    atoms.positions += [0, 7.9, 0]
    atoms.wrap()
    velocities = np.tile([0.0, 0.3, 0.0], (3, 1))
    options = with_rules(max_bond_change=0.1, keep_fragments=True, check_every=1)
    simulation = Simulation(moving(atoms, velocities), potentials.Free(), VelocityVerlet(1.0), seed=1, options=options)
    assert simulation.run(60) == 60


def test_a_stopped_replica_is_seen_by_observers_with_its_last_good_frame(potentials: Any, cluster: Atoms) -> None:
    bad = potentials.Failing(row=0, after=5, calls=([],))
    seen: list[bool] = []
    simulation = Simulation([cluster, cluster], bad, Langevin(1.0, 30.0, 5.0), seed=1)
    simulation.run(20, observers=[Observer(lambda s: seen.append(bool(np.isfinite(s.frame(0).forces).all())))])
    assert all(seen)
    assert len(seen) == 21


def test_barostat_leaves_stopped_replicas_alone(potentials: Any, argon: Atoms) -> None:
    inner = potentials.LennardJones()
    bad = potentials.Failing(cutoff=inner.cutoff, inner=inner, row=1, after=12, calls=([],))
    barostat = MonteCarloBarostat(Langevin(2.0, 30.0, 5.0), 100.0, every=2, max_log_volume_change=0.02)
    simulation = Simulation([argon, argon], bad, barostat, seed=2)
    simulation.run(20)
    first, cell = simulation.stops()[1], simulation.frame(1).cell
    simulation.run(20)
    assert first is not None
    assert np.array_equal(simulation.frame(1).cell, cell)
    assert not np.array_equal(simulation.frame(0).cell, cell)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_force": 0.0}, "`max_force` must be positive, got 0.0"),
        ({"check_every": 0}, "`check_every` must be positive, got 0"),
        ({"temperature_window": (5.0, 0.1)}, "`temperature_window` must be two ascending multiples"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoppingRules(**rules)


def test_temperature_window_is_refused_for_quantum_baths(potentials: Any, cluster: Atoms) -> None:
    with pytest.raises(ValueError, match=r"no meaning with QuantumThermalBath.*zero-point energy: leave it out"):
        Simulation(
            cluster, potentials.LennardJones(), QuantumThermalBath(1.0, 50.0, 20.0), seed=1,
            options=with_rules(temperature_window=(0.1, 5.0)),
        )  # fmt: skip
