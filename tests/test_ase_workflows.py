"""ASE used for real: optimisers, cell filters, vibrations, NEB, molecular dynamics, sockets.

Molecules use the bundled ethanol model in float64; crystals a network with random weights, which is a
smooth function of positions and cell without chemical meaning.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.constraints import FixAtoms
from ase.eos import calculate_eos
from ase.filters import FrechetCellFilter
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.vibrations import Vibrations

from e2former_calc import E2FormerCalculator
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential


@pytest.fixture(scope="module")
def potential() -> EnergyPotential:
    """Smooth random-weight potential (softplus weights, no cap), with harmonic bonds added by nobody."""
    config = E2FormerV2Config(
        heads=("default",), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=4, head_width=2,
        num_basis=8, max_radius=4.0, orders=("first",), normalization="softplus", alpha_dropout=0.0, avg_degree=20.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = E2FormerV2(config).double().eval().requires_grad_(False)
    return EnergyPotential(
        model, head="default", reference_energies={"default": torch.zeros(119)}, elements=frozenset(range(1, 119)),
        force_mode="gradient", uses_charge=False, uses_spin=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calculator() -> E2FormerCalculator:
    return E2FormerCalculator("ethanol-rmd17", dtype="float64")


@pytest.fixture
def ethanol(calculator: E2FormerCalculator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=1)
    atoms.calc = calculator
    return atoms


@pytest.fixture
def crystal(potential: EnergyPotential) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.05, seed=1)
    atoms.calc = E2FormerCalculator(potential)
    return atoms


def thermalize(atoms: Atoms, *, temperature_K: float) -> None:
    """Maxwell-Boltzmann momenta from a fixed seed."""
    scale = np.sqrt(atoms.get_masses() * units.kB * temperature_K)[:, None]
    atoms.set_momenta(scale * np.random.default_rng(0).normal(size=(len(atoms), 3)))


@pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
def test_optimisers_converge_to_a_lower_energy(ethanol, optimizer):
    before = ethanol.get_potential_energy()
    assert optimizer(ethanol, logfile=None).run(fmax=0.02, steps=200)
    assert ethanol.get_potential_energy() < before


def test_constraints_are_respected(ethanol):
    ethanol.set_constraint(FixAtoms([0]))
    fixed = ethanol.positions[0].copy()
    BFGS(ethanol, logfile=None).run(fmax=0.01, steps=5)
    np.testing.assert_array_equal(ethanol.positions[0], fixed)


def test_a_cell_filter_lowers_the_enthalpy(crystal):
    before = crystal.get_potential_energy()
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-3, steps=15)
    assert crystal.get_potential_energy() < before


def test_vibrations_agree_with_the_hessian(ethanol, calculator, tmp_path):
    vibrations = Vibrations(ethanol, name=str(tmp_path / "vib"), delta=1e-4)
    vibrations.run()
    numerical = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(numerical, calculator.get_hessian(ethanol), atol=1e-4)


def test_neb_with_one_shared_calculator(calculator):
    images = [molecule("CH3CH2OH") for _ in range(5)]
    images[-1].set_dihedral(0, 1, 2, 3, 60, indices=[3])
    # Interpolation leads through geometries far from the training data.
    shared = E2FormerCalculator(calculator.potential, outside="ignore")
    for image in images:
        image.calc = shared
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate()
    own = [E2FormerCalculator(calculator.potential, outside="ignore") for _ in images]
    separate = [image.copy() for image in images]
    for image, single in zip(separate, own, strict=True):
        image.calc = single
    np.testing.assert_allclose(band.get_forces(), NEB(separate, method="improvedtangent").get_forces(), atol=1e-12)


def test_velocity_verlet_conserves_energy(ethanol):
    thermalize(ethanol, temperature_K=300)
    total = []
    dynamics = VelocityVerlet(ethanol, 0.25 * units.fs)
    dynamics.attach(lambda: total.append(ethanol.get_total_energy()))
    dynamics.run(100)
    assert np.ptp(total) < 3e-3


def test_velocity_verlet_is_time_reversible(ethanol):
    thermalize(ethanol, temperature_K=300)
    start = ethanol.positions.copy()
    dynamics = VelocityVerlet(ethanol, 0.5 * units.fs)
    dynamics.run(20)
    ethanol.set_velocities(-ethanol.get_velocities())
    dynamics.run(20)
    np.testing.assert_allclose(ethanol.positions, start, atol=1e-9)


@pytest.mark.parametrize("thermostat", ["langevin", "nose-hoover"])
def test_thermostats_run(ethanol, thermostat):
    thermalize(ethanol, temperature_K=200)
    if thermostat == "langevin":
        rng = np.random.default_rng(1)
        dynamics = LangevinBAOAB(ethanol, 0.5 * units.fs, temperature_K=200, T_tau=100 * units.fs, rng=rng)
    else:
        dynamics = NoseHooverChainNVT(ethanol, 0.5 * units.fs, temperature_K=200, tdamp=50 * units.fs)
    dynamics.run(20)
    assert np.isfinite(ethanol.get_total_energy())


def test_npt_changes_the_cell(crystal):
    atoms = crystal.repeat((2, 1, 1))
    atoms.calc = crystal.calc
    thermalize(atoms, temperature_K=300)
    volume = atoms.get_volume()
    dynamics = IsotropicMTKNPT(
        atoms, 1 * units.fs, temperature_K=300, pressure_au=0.0, tdamp=100 * units.fs, pdamp=1000 * units.fs
    )
    dynamics.run(10)
    assert atoms.get_volume() != volume


def test_equation_of_state_pressure_matches_the_stress(crystal):
    eos = calculate_eos(crystal, npoints=7, eps=0.01)
    volumes, energies = np.array(eos.v), np.array(eos.e)
    slope = np.polyfit(volumes - crystal.get_volume(), energies, 4)[-2]
    assert np.trace(crystal.get_stress(voigt=False)) / 3 == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_socket_client_serves_forces(calculator, ethanol, tmp_path: Path):
    name = f"e2former_test_{tmp_path.name}"
    expected = ethanol.get_forces()
    served = ethanol.copy()
    served.set_cell([10, 10, 10])

    def serve() -> None:
        client = SocketClient(unixsocket=name, timeout=30)
        twin = served.copy()
        twin.calc = calculator
        client.run(twin, use_stress=False)

    with warnings.catch_warnings(), SocketIOCalculator(unixsocket=name, timeout=30) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        served.calc = server
        np.testing.assert_allclose(served.get_forces(), expected, atol=1e-10)
