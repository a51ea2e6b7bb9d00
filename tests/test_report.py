"""Rollouts judged against a reference: mutated trajectories get the verdict that they deserve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT

from e2former_calc.analysis.thermodynamics import kinetic_energies
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError
from e2former_calc.report import PRESETS, Quantity, ReportSettings, Truth, analyze_rollouts
from e2former_calc.report.sources import open_part

Make = Callable[..., Trajectory]
ATOMS = molecule("CH3CH2OH")
MOVED = 2
"""An atom whose bond is stretched."""


def ethanol(seed: int, *, frames: int = 120, spacing_fs: float = 10.0, width_A: float = 0.03) -> Trajectory:
    """Ethanol whose atoms tremble independently."""
    rng = np.random.default_rng(seed)
    shape = (frames, len(ATOMS), 3)
    return Trajectory(
        positions=ATOMS.positions + width_A * rng.normal(size=shape),
        numbers=ATOMS.numbers,
        times_fs=spacing_fs * np.arange(frames),
        velocities=0.01 * rng.normal(size=shape),
        energies=0.1 * rng.normal(size=frames),
    )


def moved(trajectory: Trajectory, frame: int, atom: int, to_A: list[float]) -> Trajectory:
    """One atom elsewhere from a frame on."""
    positions = trajectory.positions.copy()
    positions[frame:, atom] = to_A
    return replace(trajectory, positions=positions)


def conserving(slope_eV_per_ps: float, *, spacing_fs: float = 4.0) -> Trajectory:
    """Total energy that rises in a straight line."""
    trajectory = ethanol(5, frames=500, spacing_fs=spacing_fs)
    rising = slope_eV_per_ps * 1e-3 * np.asarray(trajectory.times_fs)
    return replace(trajectory, energies=rising - kinetic_energies(trajectory))


def water_box(seed: int, *, width_A: float = 0.03, frames: int = 40) -> Trajectory:
    """Eight water molecules on a lattice in a cube of 8 Å."""
    water = molecule("H2O")
    sites = 4.0 * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    positions = (sites[:, None] + water.positions).reshape(-1, 3)
    noise = width_A * np.random.default_rng(seed).normal(size=(frames, len(positions), 3))
    return Trajectory(
        positions=positions + noise,
        numbers=np.tile(water.numbers, 8),
        cell=8.0 * np.eye(3),
        times_fs=100.0 * np.arange(frames),
    )


REFERENCE = ethanol(1)
COARSE = ReportSettings(n_bins=60)


def test_the_same_distribution_is_stable_and_within_noise():
    verdict = analyze_rollouts([ethanol(2), ethanol(3)], REFERENCE).verdict
    assert (verdict.stable, verdict.closeness) == (True, "within noise")
    assert "all 2 rollouts to the end (1.19 ps)" in verdict.sentences[0]


def test_a_trajectory_has_no_distance_from_itself():
    report = analyze_rollouts([REFERENCE], REFERENCE)
    maes = [quantity.value for quantity in report.section("distances").quantities]
    assert maes == [0.0] * len(maes)


def test_a_hot_rollout_is_beyond_noise():
    verdict = analyze_rollouts([ethanol(2, width_A=0.06)], REFERENCE).verdict
    assert verdict.closeness == "beyond noise"
    assert verdict.headline.in_units_of_noise > 1.5
    assert "sampling alone does not explain" in verdict.sentences[1]


def test_a_stretched_bond_is_found_where_it_begins():
    broken = moved(ethanol(2), 70, MOVED, [9.0, 9.0, 9.0])
    report = analyze_rollouts([ethanol(3), broken], REFERENCE)
    stability = report.section("stability").tables[0].columns
    assert stability["first bad frame"] == [None, 70]
    assert "from its reference length" in stability["reason"][1]
    assert stability["stable [ps]"] == pytest.approx([1.19, 0.69])
    assert report.verdict.sentences[0].startswith("Not stable: 1 of 2 rollouts, the first one fails after 0.69 ps")


def test_observables_end_before_the_failure():
    broken = moved(ethanol(2), 70, MOVED, [9.0, 9.0, 9.0])
    columns = analyze_rollouts([broken], REFERENCE).section("size").tables[0].columns
    assert len(columns["time [ps]"]) == 70


def test_a_frame_that_is_not_finite_is_a_failure():
    broken = moved(ethanol(2), 33, MOVED, [np.nan, 0.0, 0.0])
    reason = analyze_rollouts([broken], REFERENCE).section("stability").tables[0].columns["reason"][0]
    assert "not finite" in reason


def test_a_new_bond_is_a_failure_though_no_bond_breaks():
    hydrogens = np.flatnonzero(ATOMS.numbers == 1)
    far = hydrogens[np.argmax(ATOMS.get_distances(2, hydrogens))]
    positions = ethanol(2).positions.copy()
    oxygen, carbon = int(np.flatnonzero(ATOMS.numbers == 8)[0]), int(far)
    positions[50:, carbon] = positions[50:, oxygen] + [0.0, 0.0, 1.0]
    columns = (
        analyze_rollouts([replace(ethanol(2), positions=positions)], REFERENCE, ReportSettings(bond_threshold_A=5.0))
        .section("stability")
        .tables[0]
        .columns
    )
    assert columns["first bad frame"] == [50]
    assert columns["bond criterion alone [ps]"] == pytest.approx([1.19])


def test_frames_that_do_not_exist_are_not_stable():
    verdict = analyze_rollouts([ethanol(2)], REFERENCE, ReportSettings(expected_ps=5.0)).verdict
    assert not verdict.stable
    assert "ends after 120 of 501 frames" in verdict.sentences[0]


@pytest.mark.parametrize("times", [None, np.zeros(1)])
def test_a_single_frame_is_not_a_complete_rollout(times):
    single = replace(ethanol(2).read(0, 1), times_fs=times)
    verdict = analyze_rollouts([single, ethanol(3)], REFERENCE, ReportSettings(expected_ps=1.0)).verdict
    assert verdict.n_stable == 1
    assert "there is one frame only, 1 ps are expected" in verdict.sentences[0]


def test_a_rollout_that_fails_at_once_leaves_nothing_to_compare():
    broken = moved(ethanol(2), 0, MOVED, [9.0, 9.0, 9.0])
    report = analyze_rollouts([broken], REFERENCE)
    assert report.verdict.closeness == "unknown"
    assert report.section("distances").skipped.startswith("No frame of any rollout is stable")


def test_survival_counts_replicas():
    runs = [moved(ethanol(k), 20 * k, MOVED, [9.0, 9.0, 9.0]) for k in (2, 3)] + [ethanol(4)]
    section = analyze_rollouts(runs, REFERENCE).section("stability")
    table = next(table for table in section.tables if table.name == "survival")
    assert table.columns["survival"] == pytest.approx([2 / 3, 1 / 3])
    assert any(drawing.name == "survival" for drawing in section.drawings)


def test_one_rollout_has_no_survival_curve_and_says_so():
    remarks = analyze_rollouts([ethanol(2)], REFERENCE).section("stability").remarks
    assert "A survival curve needs two rollouts or more; there is one." in remarks


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (ATOMS.numbers[::-1], r"the rollout rollout 1 has its atoms in another order than the reference \(atom 0: H"),
        (np.where(ATOMS.numbers == 8, 16, ATOMS.numbers), "has other elements than the reference .* S instead of O"),
    ],
)
def test_other_atoms_are_refused_by_name(numbers, message):
    with pytest.raises(TrajectoryError, match=message):
        analyze_rollouts([replace(ethanol(2), numbers=numbers, masses=None)], REFERENCE)


def test_another_order_of_like_atoms_is_refused():
    carbons, hydrogens = np.flatnonzero(ATOMS.numbers == 6), np.flatnonzero(ATOMS.numbers == 1)
    near = [hydrogens[np.argmin(ATOMS.get_distances(carbon, hydrogens))] for carbon in carbons]
    order = np.arange(len(ATOMS))
    order[near] = near[::-1]
    with pytest.raises(TrajectoryError, match=r"rollout 1 has as many bonds .* in another order"):
        analyze_rollouts([replace(ethanol(2), positions=ethanol(2).positions[:, order])], REFERENCE)


def test_another_number_of_atoms_is_refused():
    with pytest.raises(TrajectoryError, match="has 24 atoms, the reference has 9"):
        analyze_rollouts([water_box(1)], REFERENCE)


def test_other_boundaries_are_refused():
    boxed = replace(ethanol(2), cell=30.0 * np.eye(3), pbc=np.ones(3, dtype=bool))
    with pytest.raises(TrajectoryError, match=r"rollout 1 is periodic, the reference not.*pbc = False"):
        analyze_rollouts([boxed], REFERENCE)


@pytest.mark.parametrize("times", [None, 10.0 * np.arange(120) ** 1.1])
def test_times_that_are_missing_or_unequal_can_be_given(times):
    rollout = replace(ethanol(2), times_fs=times)
    with pytest.raises(TrajectoryError, match=r"rollout 1 has .*--frame-spacing-fs"):
        analyze_rollouts([rollout], REFERENCE)
    verdict = analyze_rollouts([rollout], REFERENCE, ReportSettings(frame_spacing_fs=20.0)).verdict
    assert "(2.38 ps)" in verdict.sentences[0]


def test_a_reference_that_is_not_finite_is_refused():
    with pytest.raises(TrajectoryError, match="frame 5 has positions that are not finite"):
        analyze_rollouts([ethanol(2)], moved(REFERENCE, 5, 0, [np.nan, 0.0, 0.0]))


def test_no_rollout_is_an_error():
    with pytest.raises(TrajectoryError, match="there is no rollout"):
        analyze_rollouts([], REFERENCE)


def test_drift_is_found_in_runs_of_constant_energy():
    section = analyze_rollouts([conserving(0.09)], REFERENCE).section("drift")
    drift, fluctuation = section.quantities[:2]
    assert (drift.value, drift.unit) == (pytest.approx(10.0, rel=1e-6), "meV/atom/ps")
    assert fluctuation.value == pytest.approx(0.0, abs=1e-6)


def test_thermostatted_runs_have_no_drift():
    assert "thermostatted" in analyze_rollouts([ethanol(2)], REFERENCE).section("drift").skipped


def test_spectra_need_frames_close_in_time():
    dense = conserving(0.0)
    assert analyze_rollouts([dense], dense).section("spectra").quantities[0].value == 0.0
    why = analyze_rollouts([ethanol(2)], REFERENCE).section("spectra").skipped
    assert "10 fs apart, which resolve vibrations up to 1668 1/cm" in why


def test_temperature_counts_the_degrees_of_freedom_that_move():
    rollout = ethanol(2)
    masses = np.asarray(rollout.masses)
    center = np.einsum("a,fak->fk", masses / masses.sum(), rollout.velocities)
    report = analyze_rollouts([replace(rollout, velocities=rollout.velocities - center[:, None])], REFERENCE)
    assert report.section("energies").quantities[0].note.startswith("24 degrees of freedom")


def test_what_is_not_stored_is_left_out_with_a_reason():
    bare = replace(ethanol(2), velocities=None, energies=None)
    report = analyze_rollouts([bare], REFERENCE)
    assert report.section("energies").skipped == "The rollouts store neither energies nor velocities."
    assert "stores no velocities" in report.section("spectra").skipped
    assert report.section("rdf").skipped == "g(r) needs a periodic system; this one is not periodic."
    assert "not a peptide" in report.section("backbone").skipped
    assert "--truth" in report.section("truth").skipped


def test_liquids_are_judged_by_g_of_r():
    report = analyze_rollouts([water_box(2)], water_box(1), COARSE)
    assert report.verdict.stable
    assert {quantity.name for quantity in report.section("rdf").quantities} == {
        "g(r) O-O MAE", "g(r) O-H MAE", "g(r) H-H MAE"
    }  # fmt: skip
    assert report.section("size").skipped == "The system is periodic: it has no radius of gyration."


def drifting(seed: int, frames: int, *, memory: float = 0.998) -> Trajectory:
    """Ethanol whose size wanders slowly, its inefficiency being (1 + memory) / (1 - memory) frames."""
    rng = np.random.default_rng(seed)
    size = np.zeros(frames)
    for frame in range(1, frames):
        size[frame] = memory * size[frame - 1] + rng.normal() * np.sqrt(1 - memory**2)
    trajectory = ethanol(seed, frames=frames, width_A=0.005)
    return replace(trajectory, positions=trajectory.positions * (1.0 + 0.02 * size)[:, None, None])


LONG = drifting(1, 20_000)


def test_a_short_part_of_the_reference_is_within_its_noise():
    for start in (1000, 7000, 15000):
        report = analyze_rollouts([LONG.read(start, start + 100)], LONG)
        beyond = [quantity.name for quantity in report.quantities() if quantity.beyond_noise]
        assert len(beyond) <= 0.25 * sum(quantity.beyond_noise is not None for quantity in report.quantities()), beyond


def test_a_short_rollout_has_no_more_samples_than_its_length_allows():
    section = analyze_rollouts([LONG.read(1000, 1100)], LONG).section("size")
    mean = next(quantity for quantity in section.quantities if quantity.name.startswith("mean radius"))
    spread = abs(mean.value - mean.reference)
    assert mean.note.startswith("less than one independent sample: in the reference one takes ")
    assert mean.error > 0.5 * spread
    assert not mean.beyond_noise


def test_short_rollouts_are_told_to_be_short():
    short, long = (analyze_rollouts([LONG.read(0, frames)], LONG).verdict for frames in (100, 20_000))
    assert any("0.99 ps hold less than one independent sample of the radius of gyration" in s for s in short.sentences)
    assert not any("The rollouts are short" in sentence for sentence in long.sentences)


def test_noise_is_that_of_as_many_rollouts_of_their_length():
    one, four = (
        analyze_rollouts([LONG.read(k, k + 100) for k in range(0, 100 * count, 100)], LONG, COARSE) for count in (1, 4)
    )
    for name in ("distances", "coordinates", "size", "torsions"):
        floors = [report.section(name).quantities[0].noise_floor for report in (one, four)]
        assert floors[0] > 1.3 * floors[1], name
    assert "4 separate stretches as long as the rollouts (0.99 ps)" in four.noise


def test_a_dissolved_liquid_is_not_stable():
    melted = water_box(2, width_A=1.0)
    positions = np.concatenate([water_box(2).positions[:20], melted.positions[20:]])
    report = analyze_rollouts([replace(melted, positions=positions)], water_box(1), COARSE)
    columns = report.section("stability").tables[0].columns
    assert 10 < columns["first bad frame"][0] <= 20
    assert columns["RDF criterion alone [ps]"][0] < 2.0


def test_a_criterion_that_the_reference_violates_is_not_used():
    report = analyze_rollouts([water_box(2)], water_box(1), replace(COARSE, rdf_threshold_A=0.01))
    assert report.verdict.stable
    remarks = report.section("stability").remarks
    assert any("RDF criterion does not apply: the reference itself violates it" in remark for remark in remarks)


def test_truth_measures_the_errors_of_stored_forces():
    rollout = ethanol(2, frames=30)
    energies, forces = [], []
    for frame in range(len(rollout)):
        atoms = rollout.to_atoms(frame)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() + 3.0)
        forces.append(atoms.get_forces() + 0.05)
    wrong = replace(rollout, energies=np.array(energies), forces=np.array(forces))
    settings = ReportSettings(truth_samples=3)
    section = analyze_rollouts([wrong], REFERENCE, settings, truth=Truth("EMT", EMT())).section("truth")
    force, energy = section.quantities
    assert (force.value, force.unit) == (pytest.approx(50.0), "meV/Å")
    assert energy.value == pytest.approx(0.0, abs=1e-9)


def test_a_part_of_a_file_is_a_trajectory(tmp_path: Path):
    path = tmp_path / "run.npz"
    np.savez(path, positions=REFERENCE.positions, numbers=REFERENCE.numbers, times_fs=REFERENCE.times_fs)
    part = open_part(f"{path}@10:30")
    assert len(part) == 20
    assert np.array_equal(part.read(0, 1).positions, REFERENCE.positions[10:11])
    with pytest.raises(TrajectoryError, match="has 120 frames, '200:' takes none of them"):
        open_part(f"{path}@200:")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": "hot"}, "one of nve, nvt, npt, got 'hot'"),
        ({"r_max_A": -1.0}, "`r_max_A` must be positive, got -1.0"),
        ({"n_blocks": 1}, "`n_blocks` must be at least 2, got 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ReportSettings(**values)


def test_presets_are_those_of_the_published_tables():
    assert {name: (p.temperature_K, p.bond_threshold_A, p.r_max_A) for name, p in PRESETS.items()} == {
        "md17": (500.0, 0.5, 10.0), "md22": (500.0, 0.5, 15.0), "water": (300.0, 0.5, 10.0), "lips": (520.0, 0.5, 10.0)
    }  # fmt: skip


@pytest.mark.parametrize("values", [{"value": None}, {"value": 1.0}, {"value": float("nan"), "note": "x"}])
def test_a_number_needs_a_value_and_an_error_or_a_reason(values):
    with pytest.raises(ValueError, match=r"in `note`"):
        Quantity("something", unit="Å", **values)


@pytest.mark.shared
def test_a_wrong_bond_in_a_published_rollout_is_found(shared_dir: Path):
    data = shared_dir / "datasets"
    report = analyze_rollouts([data / "dmc_mace01_md.h5", data / "dmc_mace02_md.h5"], data / "dmc_xtb_md.h5")
    columns = report.section("stability").tables[0].columns
    assert columns["first bad frame"] == [None, 23]
    assert "O 2 and H 6" in columns["reason"][1]
    assert report.temperature_K == 1200.0


@pytest.mark.shared
def test_halves_of_a_peptide_trajectory_look_alike(shared_dir: Path):
    path = shared_dir / "datasets" / "gt_gfn2_ala3_nvt500.h5"
    report = analyze_rollouts([f"{path}@:1000"], f"{path}@1000:2000", PRESETS["md22"])
    assert (report.verdict.stable, report.verdict.closeness) == (True, "within noise")
    assert len(report.section("backbone").quantities) == 3
    assert any("lower limit" in sentence for sentence in report.verdict.sentences)
