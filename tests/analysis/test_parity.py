"""Parity with numbers of the published analysis code on real rollouts, within the tolerances stated beside them.

The published code works in single precision, so single counts move to a neighbouring bin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from e2former_calc.analysis.correlation import mean_squared_displacement
from e2former_calc.analysis.distances import DistanceDistribution, distance_distribution
from e2former_calc.analysis.dynamics import (
    mdsim_diffusion,
    remove_center,
    unwrap,
    velocity_autocorrelation,
    vibrational_spectrum,
)
from e2former_calc.analysis.ensembles import kinetic_energy_test
from e2former_calc.analysis.free_energy import profile_error, sum_hills, surface_profiles
from e2former_calc.analysis.rdf import MDSIM_RDF, radial_distributions, shell_volumes_A3
from e2former_calc.analysis.readers import read_trajectory
from e2former_calc.analysis.stability import WATER_PAIRS, bond_stability, rdf_stability
from e2former_calc.analysis.thermodynamics import energy_drift, integrator_convergence
from e2former_calc.analysis.trajectory import Trajectory

pytestmark = pytest.mark.shared

MOLECULES = (
    "md17_aspirin_dimenet",
    "md17_aspirin_slow_break",
    "dmc_mace01_md",
    "dmc_mace02_md",
    "dmc_mace02_md_gen1",
    "dmc_mace03_md",
    "md22_ala3_h_r",
    "md22_ala3_h_r_b",
)
TOTAL_VARIATION = 2e-5
HR_MAE = 1e-4
RDF_MAE_A = 3e-4
RDF_PER_BIN = 5e-3
WINDOW_COUNTS = 2
MSD_A2 = 1e-5


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Callable[[str], dict[str, Any]]:
    """All data sets of a fixture by their paths."""

    @cache
    def load(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(shared_dir / "fixtures" / "rollouts" / f"{name}.h5") as file:
            file.visititems(lambda path, item: found.update({path: item[()]}) if hasattr(item, "dtype") else None)
        return found

    return load


@pytest.fixture(scope="module")
def trajectory(shared_dir: Path) -> Callable[[str, str], Trajectory]:
    @cache
    def load(name: str, part: str) -> Trajectory:
        return read_trajectory(shared_dir / "fixtures" / "rollouts" / f"{name}.h5", part=part)

    return load


@pytest.fixture(scope="module")
def distances(trajectory: Callable[[str, str], Trajectory]) -> Callable[..., DistanceDistribution]:
    @cache
    def compute(name: str, part: str, r_max_A: int, n_bins: int, stop: int | None) -> DistanceDistribution:
        return distance_distribution(trajectory(name, part), r_max_A=float(r_max_A), n_bins=n_bins, stop=stop)

    return compute


def groups(data: dict[str, Any], *, exact: bool) -> list[tuple[str, float, int, int]]:
    """Path, threshold, range and bins of every expected h(r)."""
    found = []
    for path in data:
        match = re.fullmatch(r"(expected/(\w+?)_?([\d.]*)/xlim_(\d+)_bins_(\d+))/hr_mae", path)
        if match and (match[2] == "exact") == exact:
            found.append((match[1], float(match[3] or "nan"), int(match[4]), int(match[5])))
    return found


@pytest.mark.parametrize("name", MOLECULES)
def test_bonds_and_their_lengths(name: str, fixture: Any, trajectory: Any) -> None:
    data = fixture(name)
    result = bond_stability(trajectory(name, "rollout"), trajectory(name, "reference"), compat="mdsim")
    listed = [tuple(sorted(pair)) for pair in data["expected/bonds_half_list"].tolist()]
    lengths = dict(zip(listed, data["expected/mean_bond_lengths_A"], strict=True))
    found = [tuple(pair) for pair in result.reference.bonds.tolist()]
    assert found == sorted(listed)
    np.testing.assert_allclose(result.reference.lengths_A, [lengths[pair] for pair in found], atol=1e-6)
    np.testing.assert_allclose(result.worst_deviation_A, data["expected/max_abs_deviation_per_frame_A"], atol=1e-6)


@pytest.mark.parametrize("name", MOLECULES)
def test_collapse_points(name: str, fixture: Any, trajectory: Any) -> None:
    data = fixture(name)
    for path, threshold, _, _ in groups(data, exact=False):
        verdict = bond_stability(
            trajectory(name, "rollout"), trajectory(name, "reference"), threshold_A=threshold, compat="mdsim"
        ).verdict
        assert verdict.usable_frames == data[f"{path}/collapse_pt"]
        assert verdict.stable_frames == data[f"{path}/stability_frames"]


def test_early_stop_is_a_failure_although_no_bond_breaks(trajectory: Any) -> None:
    name = "md17_aspirin_dimenet"
    rollout, reference = (trajectory(name, part) for part in ("rollout", "reference"))
    verdict = bond_stability(rollout, reference, expected_frames=6001, compat="mdsim").verdict
    assert not verdict.survived
    assert verdict.stable_ps == pytest.approx(37.65)


@pytest.mark.parametrize("name", MOLECULES)
def test_clean_bonds_are_the_same_in_sound_starts(name: str, fixture: Any, trajectory: Any) -> None:
    result = bond_stability(trajectory(name, "rollout"), trajectory(name, "reference"))
    assert len(result.reference.bonds) == len(fixture(name)["expected/bonds_half_list"])


@pytest.mark.parametrize("name", [name for name in MOLECULES if "ala3" not in name])
def test_distance_distributions_as_published(name: str, fixture: Any, distances: Any) -> None:
    data = fixture(name)
    for path, _, r_max_A, n_bins in groups(data, exact=False):
        rollout = distances(name, "rollout", r_max_A, n_bins, int(data[f"{path}/collapse_pt"])).total
        reference = distances(name, "reference", r_max_A, n_bins, None).total
        for curve, key in ((rollout, "hr_rollout"), (reference, "hr_reference")):
            assert 0.5 * np.abs(curve.values() - data[f"{path}/{key}"]).sum() * r_max_A / n_bins < TOTAL_VARIATION
        assert rollout.mae(reference) == pytest.approx(float(data[f"{path}/hr_mae"]), abs=HR_MAE)


@pytest.mark.parametrize("name", ["md22_ala3_h_r", "md22_ala3_h_r_b"])
def test_exact_distance_distributions_of_large_molecules(name: str, fixture: Any, distances: Any) -> None:
    data = fixture(name)
    for path, _, r_max_A, n_bins in groups(data, exact=True):
        rollout, reference = (distances(name, part, r_max_A, n_bins, None).total for part in ("rollout", "reference"))
        np.testing.assert_allclose(rollout.values(), data[f"{path}/hr_rollout"], atol=1e-9)
        np.testing.assert_allclose(reference.values(), data[f"{path}/hr_reference"], atol=1e-9)
        assert rollout.mae(reference) == pytest.approx(float(data[f"{path}/hr_mae"]), abs=1e-9)
        assert rollout.values()[0] == 0.0


def test_water_radial_distributions(fixture: Any, trajectory: Any) -> None:
    data, name = fixture("water_gemnet_t_10k"), "water_gemnet_t_10k"
    rollout, reference = (
        radial_distributions(trajectory(name, part), WATER_PAIRS, MDSIM_RDF) for part in ("rollout", "reference")
    )
    for k, pair in enumerate(WATER_PAIRS):
        for curves, key in ((rollout, "rdf_rollout"), (reference, "rdf_reference")):
            g = curves[k].g
            one_count = 1.0 / (g.denominators.sum() * shell_volumes_A3(g.edges))
            difference = np.abs(g.values() - data[f"expected/{key}/{''.join(pair)}"])
            assert (difference < np.maximum(RDF_PER_BIN, 1.01 * one_count)).all()
            assert (difference > RDF_PER_BIN).sum() <= 2
        expected = data["expected/rdf_mae_OO_HH_HO"][k]
        assert rollout[k].g.mae(reference[k].g) == pytest.approx(expected, abs=RDF_MAE_A)


def test_water_stability_and_its_windows(fixture: Any, trajectory: Any) -> None:
    data, name = fixture("water_gemnet_t_10k"), "water_gemnet_t_10k"
    result = rdf_stability(trajectory(name, "rollout"), trajectory(name, "reference"), compat="mdsim")
    assert result.verdict.usable_frames == data["expected/collapse_pt"]
    assert result.verdict.stable_ps == pytest.approx(float(data["expected/stability_ps"]))
    expected = data["expected/window_rdf_mae_OO_HH_HO"]
    assert result.errors_A.shape == expected.shape
    # One count of a 1 ps window that moves to the next bin at the O-H distance changes the error by 3.8e-3 Å.
    np.testing.assert_allclose(result.errors_A, expected, atol=WINDOW_COUNTS * 3.8e-3)
    assert np.abs(result.errors_A - expected).mean() < RDF_MAE_A


def lips_like(data: dict[str, Any]) -> Trajectory:
    return Trajectory(data["inputs/positions_wrapped"], np.full(83, 3), cell=data["inputs/cell_A"])


def test_radial_distribution_in_a_triclinic_cell(fixture: Any) -> None:
    data = fixture("rdf_triclinic_and_unwrap")
    (result,) = radial_distributions(lips_like(data), [("*", "*")], MDSIM_RDF)
    difference = np.abs(result.g.values() - data["expected/rdf_all_atoms_xlim6_bins500"])
    one_count = 1.0 / (result.g.denominators.sum() * shell_volumes_A3(result.g.edges))
    assert (difference / one_count).max() < 2.01
    assert 6.0 * difference.mean() < 5e-4


def test_unwrapping_in_a_triclinic_cell(fixture: Any) -> None:
    data = fixture("rdf_triclinic_and_unwrap")
    np.testing.assert_allclose(unwrap(lips_like(data)).positions, data["expected/positions_unwrapped"], atol=1e-5)


def test_diffusivity_exact_and_as_published(fixture: Any) -> None:
    data = fixture("diffusivity_water_oxygen")
    positions = data["inputs/oxygen_positions_unwrapped_A"].astype(np.float64)
    msd = mean_squared_displacement(remove_center(positions))[1:]
    np.testing.assert_allclose(msd, data["expected/exact_msd_A2_per_lag"], atol=MSD_A2)
    np.testing.assert_allclose(msd / (6 * np.arange(1, 96)), data["expected/exact_D_A2_per_ps"], atol=MSD_A2)
    published = data["expected/official_D_per_lag_A2_per_frame"]
    np.testing.assert_allclose(mdsim_diffusion(positions), published, atol=MSD_A2)


@pytest.mark.parametrize("name", ["vacf_vdos_ethanol", "vacf_vdos_ethanol_b"])
def test_vibrations_of_ethanol(name: str, fixture: Any) -> None:
    data = fixture(name)
    velocities = data["inputs/velocities_A_per_ps"] * 1e-3
    run = Trajectory(
        np.zeros(velocities.shape),
        np.array([6, 6, 8, 1, 1, 1, 1, 1, 1]),
        masses=data["inputs/masses_amu"],
        velocities=velocities,
        times_fs=np.arange(len(velocities)) * float(data["inputs/dt_fs"]),
    )
    correlation = velocity_autocorrelation(run, max_lag_frames=1999)
    np.testing.assert_allclose(correlation, data["expected/vacf_mass_weighted_normalised"], atol=1e-8)
    spectrum = vibrational_spectrum(correlation, 1.0, wavenumbers_cm1=data["expected/wavenumber_cm1"])
    np.testing.assert_allclose(spectrum.intensities_fs, data["expected/vdos_fs"], atol=1e-6)
    peaks, harmonic = spectrum.peaks_cm1(), data["expected/harmonic_frequencies_GFN2_cm1"]
    assert peaks[-1] == pytest.approx(harmonic.max(), abs=20)


@pytest.mark.parametrize(("file", "log"), [
    ("thermo_logs", "aspirin_dimenet"),
    ("thermo_logs", "water-1k_schnet"),
    ("thermo_logs_b", "ala_nequip"),
    ("thermo_logs_b", "lips_gemnet-t"),
    ("thermo_logs_b", "water-10k_gemnet-t"),
])  # fmt: skip
def test_drift_of_logged_energies(file: str, log: str, shared_dir: Path, fixture: Any) -> None:
    data = fixture(file)
    with h5py.File(shared_dir / "fixtures" / "rollouts" / f"{file}.h5") as raw:
        n_atoms = int(raw[log].attrs["natoms"])
    drift = energy_drift(1e3 * data[f"{log}/inputs/time"], data[f"{log}/inputs/Et"], n_atoms)
    expected = float(data[f"{log}/expected/slope_Et_meV_per_atom_per_ps_all_frames"])
    assert drift.slope_meV_per_atom_per_ps == pytest.approx(expected, rel=1e-8)


def test_kinetic_energy_distribution(fixture: Any, rng: np.random.Generator) -> None:
    data = fixture("kinetic_energy_distribution")
    for target in (500, 520):
        result = kinetic_energy_test(data["inputs/kinetic_energy_eV"], int(data["inputs/ndof"]), float(target), rng)
        assert result.T_mean_K == pytest.approx(float(data["expected/T_mu_K"]), rel=1e-9)
        assert result.T_width_K == pytest.approx(float(data["expected/T_sigma_K"]), rel=1e-9)
        assert result.ks_p_value == pytest.approx(float(data[f"expected/ks_p_at_{target}K"]), rel=1e-6)
    sigmas = data["expected/physical_validation_sigmas_mean_width"]
    at_500 = kinetic_energy_test(data["inputs/kinetic_energy_eV"], 27, 500.0, rng)
    assert [at_500.deviation_mean, at_500.deviation_width] == pytest.approx(sigmas.tolist(), rel=0.25)


def test_convergence_of_the_argon_integrator(fixture: Any) -> None:
    data = fixture("integrator_convergence_argon")
    prefix = "inputs/conserved/dt_"
    runs = {1e3 * float(path.removeprefix(prefix)): data[path] for path in data if path.startswith(prefix)}
    result = integrator_convergence(runs)
    assert result.max_deviation == pytest.approx(float(data["expected/max_deviation"]), rel=1e-9)
    np.testing.assert_allclose(result.fluctuations_eV, data["expected/rmsd"], rtol=1e-9)


def test_reference_profiles_of_alanine_dipeptide(fixture: Any) -> None:
    data = fixture("ala_dipeptide_reference_fes")
    phi, psi = surface_profiles(data["inputs/F_kJ_per_mol_psi_by_phi"], 2.49)
    np.testing.assert_allclose(phi, data["expected/pmf_phi_kJ_per_mol"], atol=1e-9)
    np.testing.assert_allclose(psi, data["expected/pmf_psi_kJ_per_mol"], atol=1e-9)


def test_metadynamics_from_hills_to_the_published_error(fixture: Any) -> None:
    data = fixture("ala_nequip_metadynamics_fes")
    hills = data["inputs/hills_time_phi_psi_sphi_spsi_height_biasf"]
    surface = sum_hills(hills[:, 1:3], hills[:, 3:5], hills[:, 5])
    np.testing.assert_allclose(surface, data["expected/F_plumed_sum_hills_mintozero_psi_by_phi"], atol=1e-6)
    profiles, references = (surface_profiles(s, 2.49) for s in (surface, data["inputs/F_reference"]))
    for profile, reference, angle in zip(profiles, references, ("phi", "psi"), strict=True):
        np.testing.assert_allclose(profile, data[f"expected/pmf_{angle}"], atol=1e-6)
        assert profile_error(profile, reference) == pytest.approx(float(data[f"expected/mae_{angle}"]), abs=1e-5)
