"""Energies, temperatures and momenta of systems whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, ZeroRotation

from e2former_calc.analysis.constants import AMU_A2_PER_FS2_EV, BOLTZMANN_EV_PER_K
from e2former_calc.analysis.thermodynamics import (
    angular_momenta,
    energy_drift,
    integrator_convergence,
    kinetic_energies,
    mean_degrees_by_atom,
    momenta,
    temperature_by_element,
    temperature_by_motion,
    temperatures,
    total_energies,
)
from e2former_calc.analysis.trajectory import Trajectory


def thermal(temperature_K: float, rng: np.random.Generator, *, frames: int = 3000) -> Trajectory:
    """Two water molecules with Maxwell-Boltzmann velocities, independent from frame to frame."""
    one = molecule("H2O")
    positions = np.concatenate([one.positions, one.positions + 4.0])
    masses = np.tile(one.get_masses(), 2)
    width = np.sqrt(BOLTZMANN_EV_PER_K * temperature_K / (masses * AMU_A2_PER_FS2_EV))
    return Trajectory(
        np.broadcast_to(positions, (frames, 6, 3)),
        np.tile(one.numbers, 2),
        velocities=width[:, None] * rng.normal(size=(frames, 6, 3)),
    )


def test_kinetic_energy_is_that_of_ase(ethanol: Trajectory) -> None:
    expected = [ethanol.to_atoms(frame).get_kinetic_energy() for frame in range(5)]
    np.testing.assert_allclose(kinetic_energies(ethanol)[:5], expected)


def test_temperature_counts_degrees_of_freedom(ethanol: Trajectory) -> None:
    expected = ethanol.to_atoms(3).get_kinetic_energy() / (0.5 * 21 * units.kB)
    assert temperatures(ethanol, 21)[3] == pytest.approx(expected)


def test_total_energy_is_the_sum(ethanol: Trajectory) -> None:
    lifted = replace(ethanol, energies=np.asarray(ethanol.energies) - 5.0)
    np.testing.assert_allclose(total_energies(lifted), kinetic_energies(ethanol) - 5.0)


def test_drift_of_a_line_is_exact() -> None:
    times = np.arange(0.0, 10_000.0, 5.0)
    drift = energy_drift(times, 1e5 + 2e-6 * times, 10, temperature_K=300.0)
    assert drift.slope_meV_per_atom_per_ps == pytest.approx(0.2, rel=1e-6)
    expected = 2e-3 * 1e3 / (30 * BOLTZMANN_EV_PER_K * 300)
    assert drift.slope_kT_per_ns_per_degree == pytest.approx(expected, rel=1e-6)


def test_noise_is_no_drift(rng: np.random.Generator) -> None:
    drift = energy_drift(np.arange(4000.0), 0.01 * rng.normal(size=4000), 5)
    assert abs(drift.slope_meV_per_atom_per_ps) < 4 * drift.slope_error
    assert drift.fluctuation_meV_per_atom == pytest.approx(2.0, rel=0.05)


def test_error_of_the_slope_knows_of_correlation(rng: np.random.Generator) -> None:
    slow = np.repeat(rng.normal(size=200), 20)
    fast = rng.normal(size=4000)
    times = np.arange(4000.0)
    assert energy_drift(times, slow, 1).slope_error > 3 * energy_drift(times, fast, 1).slope_error


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, np.nan, 1.0]])
def test_drift_needs_three_finite_energies(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"drift needs three times|must be finite"):
        energy_drift(np.arange(float(len(values))), np.array(values), 1)


def test_perfect_second_order_integrator(rng: np.random.Generator) -> None:
    noise = rng.normal(size=500)
    result = integrator_convergence({dt: noise * dt**2 for dt in (0.5, 2.0, 1.0)})
    assert result.timesteps_fs.tolist() == [2.0, 1.0, 0.5]
    assert result.max_deviation == pytest.approx(0.0, abs=1e-12)


def test_floor_of_the_energy_noise_is_seen(rng: np.random.Generator) -> None:
    noise = rng.normal(size=500)
    assert integrator_convergence({2.0: noise * 4.0, 1.0: noise, 0.5: noise}).max_deviation == pytest.approx(0.75)


def test_elements_are_equally_warm(rng: np.random.Generator) -> None:
    for estimate in temperature_by_element(thermal(300.0, rng)).values():
        assert estimate.value == pytest.approx(300.0, abs=5 * estimate.error)
        assert estimate.error < 10.0


def test_hot_hydrogen_is_seen(rng: np.random.Generator) -> None:
    run = thermal(300.0, rng)
    velocities = np.asarray(run.velocities) * np.where(run.numbers == 1, np.sqrt(2.0), 1.0)[:, None]
    found = temperature_by_element(replace(run, velocities=velocities))
    assert found["H"].value == pytest.approx(600.0, rel=0.05)
    assert found["O"].value == pytest.approx(300.0, rel=0.05)


def calmed(run: Trajectory) -> Trajectory:
    """The same velocities without translation and rotation of the whole."""
    images = [run.to_atoms(frame) for frame in range(len(run))]
    for atoms in images:
        Stationary(atoms, preserve_temperature=False)
        ZeroRotation(atoms, preserve_temperature=False)
    return replace(run, velocities=np.array([atoms.get_velocities() * units.fs for atoms in images]))


@pytest.mark.parametrize(("at_rest", "total"), [((False, False), 18), ((True, False), 15), ((True, True), 12)])
def test_degrees_of_the_atoms_add_up(rng: np.random.Generator, at_rest: tuple[bool, bool], total: int) -> None:
    run = thermal(300.0, rng, frames=3)
    degrees = mean_degrees_by_atom(run, translation_at_rest=at_rest[0], rotation_at_rest=at_rest[1])
    assert degrees.sum() == pytest.approx(total)


def test_elements_are_equally_warm_though_common_motions_are_at_rest(rng: np.random.Generator) -> None:
    run = calmed(thermal(300.0, rng, frames=1500))
    degrees = mean_degrees_by_atom(run, translation_at_rest=True, rotation_at_rest=True)
    for estimate in temperature_by_element(run, degrees).values():
        assert estimate.value == pytest.approx(300.0, abs=5 * estimate.error)
    assert temperature_by_element(run)["O"].value < 200.0


def test_motions_are_equally_warm(rng: np.random.Generator) -> None:
    found = temperature_by_motion(thermal(300.0, rng), np.repeat([0, 1], 3))
    assert set(found) == {"translation", "rotation", "internal"}
    for estimate in found.values():
        assert estimate.value == pytest.approx(300.0, abs=5 * estimate.error)


def test_flying_ice_cube_is_seen(rng: np.random.Generator) -> None:
    run = thermal(1e-6, rng, frames=50)
    flying = replace(run, velocities=np.asarray(run.velocities) + 0.01)
    found = temperature_by_motion(flying, np.repeat([0, 1], 3))
    assert found["translation"].value > 1e3 * found["internal"].value


def test_linear_molecule_has_two_rotations(rng: np.random.Generator) -> None:
    positions = np.broadcast_to(np.array([[0.0, 0, 0], [0, 0, 1.1]]), (4000, 2, 3))
    width = np.sqrt(BOLTZMANN_EV_PER_K * 300.0 / (14.007 * AMU_A2_PER_FS2_EV))
    run = Trajectory(positions, np.array([7, 7]), velocities=width * rng.normal(size=(4000, 2, 3)))
    for estimate in temperature_by_motion(run, np.array([0, 0])).values():
        assert estimate.value == pytest.approx(300.0, rel=0.1)


def test_momenta_of_a_spinning_and_flying_dumbbell() -> None:
    run = Trajectory(
        np.array([[[1.0, 0, 0], [-1.0, 0, 0]]]),
        np.array([1, 1]),
        masses=np.array([2.0, 2.0]),
        velocities=np.array([[[0, 0.1, 0.3], [0, -0.1, 0.3]]]),
    )
    np.testing.assert_allclose(momenta(run), [[0, 0, 1.2]])
    np.testing.assert_allclose(angular_momenta(run), [[0, 0, 0.4]])


def test_no_degree_of_freedom_is_refused(ethanol: Trajectory) -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        temperatures(ethanol, 0)
