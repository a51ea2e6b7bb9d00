"""Plans, presets, start structures and the folder of rollouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as g2_molecule
from ase.formula import Formula

from e2former_calc.md.integrators import Bussi, Langevin, NoseHooverChain, VelocityVerlet
from e2former_calc.report import PRESETS as FAMILIES
from e2former_calc.rollout import PRESETS, RolloutFolder, RolloutPlan, plan_from_dict
from e2former_calc.rollout.presets import check_model, reduced
from e2former_calc.rollout.start import read_start
from e2former_calc.structures import LARGE_MOLECULES, molecule, reference_file

MD22 = {
    "ac-ala3-nhme": 42, "dha": 56, "stachyose": 87, "at-at": 60, "at-at-cg-cg": 118, "buckyball-catcher": 148,
    "double-walled-nanotube": 370,
}  # fmt: skip
PLAN = RolloutPlan(temperature_K=500.0, time_ps=0.01, every_fs=5.0, replicas=2)


def saved(path: Path, symbols: str = "CH3CH2OH", frames: int = 10) -> Path:
    """A reference of a trembling molecule."""
    atoms = g2_molecule(symbols)
    noise = 0.02 * np.random.default_rng(1).normal(size=(frames, len(atoms), 3))
    with h5py.File(path, "w") as file:
        file.update({"numbers": atoms.numbers, "positions": atoms.positions + noise})
        file.attrs.update({"temperature_K": 400.0, "friction_per_fs": 0.005, "frame_spacing_fs": 10.0})
    return path


def begin(folder: RolloutFolder) -> None:
    """A run that has just begun."""
    folder.begin()
    folder.note(PLAN, ["here", "there"], "running")


@pytest.mark.parametrize("name", list(MD22))
def test_md22_runs_hot_with_the_friction_that_was_meant(name):
    plan = PRESETS[f"md22-{name}"].plan
    assert (plan.temperature_K, plan.timestep_fs, plan.steps, plan.stride) == (500.0, 0.5, 200_000, 100)
    assert (plan.thermostat, round(plan.friction_per_ps, 2)) == ("langevin", 49.11)
    assert plan.report == FAMILIES["md22"]
    assert plan.report_settings().expected_ps == 100.0


@pytest.mark.parametrize("name", list(MD22))
def test_presets_of_md22_have_the_right_number_of_atoms(name):
    assert sum(Formula(PRESETS[f"md22-{name}"].formula).count().values()) == MD22[name]


@pytest.mark.parametrize(
    ("name", "temperature", "timestep", "every", "length", "relaxation"),
    [
        ("md17-aspirin", 500.0, 0.5, 50.0, 300.0, 10.0),
        ("md17-naphthalene", 500.0, 0.5, 50.0, 300.0, 10.0),
        ("water", 300.0, 1.0, 100.0, 500.0, 20.0),
        ("lips", 520.0, 0.25, 12.5, 50.0, 5.0),
    ],
)
def test_other_presets_have_the_published_thermostat(name, temperature, timestep, every, length, relaxation):
    plan = PRESETS[name].plan
    assert (plan.temperature_K, plan.timestep_fs, plan.every_fs, plan.length_ps) == (
        temperature, timestep, every, length
    )  # fmt: skip
    assert (plan.thermostat, plan.relaxation_time_fs) == ("nose-hoover", relaxation)


def test_every_family_of_the_analysis_has_a_preset_that_runs():
    used = [preset.plan.report for preset in PRESETS.values()]
    assert all(family in used for family in FAMILIES.values())


def test_presets_know_the_bundled_molecules():
    formulas = {preset.formula for preset in PRESETS.values()}
    names = [*LARGE_MOLECULES, "ethanol", "aspirin", "Ac-Ala3-NHMe"]
    assert {molecule(name).get_chemical_formula() for name in names} <= formulas


@pytest.mark.parametrize(
    ("name", "formula", "covered"),
    [("water", "H128O64", True), ("water", "H2O2", False), ("md17-ethanol", "C4H12O2", False)],
)  # fmt: skip
def test_only_periodic_systems_may_be_multiples(name, formula, covered):
    assert PRESETS[name].covers(Atoms(formula).numbers) == covered
    assert reduced("H128O64") == "H2O"


def test_a_plan_survives_json():
    plan = plan_from_dict({"preset": "md22-dha", "time_ps": 3.3, "report": {"n_bins": 250}})
    assert plan_from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert (plan.report.n_bins, plan.report.r_max_A) == (250, 15.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"presett": "x"}, "a plan has no fields presett; it knows reference"),
        ({"preset": "md22-dna"}, "there is no preset 'md22-dna'; there are md22-ac-ala3-nhme"),
        ({"report": {"bins": 3}}, "`report` has no fields bins"),
        ({"report": 3}, "`report` must hold fields of ReportSettings, got 3"),
        ({"time_ps": "long"}, "a plan has a value of the wrong kind"),
        ({"time_ps": 0.001}, "shorter than the time between two frames, 4 fs"),
        ({"every_fs": 0.7}, r"`every_fs` must be a multiple of the time step of 0.5 fs, got 0.7, possible is 0.5"),
        ({"thermostat": "nh"}, "`thermostat` must be one of langevin, nose-hoover, bussi, none"),
        ({"temperature_K": -1.0}, "`temperature_K` must be positive, got -1"),
        ({"friction_per_ps": -1.0}, "`friction_per_ps` must be 0 or more, got -1"),
        ({"replicas": 0}, "`replicas` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be from 0 to"),
    ],
)
def test_plans_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        plan_from_dict(values)


@pytest.mark.parametrize(
    ("thermostat", "kind"),
    [("langevin", Langevin), ("nose-hoover", NoseHooverChain), ("bussi", Bussi), ("none", VelocityVerlet)],
)
def test_every_thermostat_has_its_integrator(thermostat, kind):
    assert type(replace(PLAN, thermostat=thermostat, friction_per_ps=1.0).integrator()) is kind


def test_an_open_plan_has_no_thermostat():
    with pytest.raises(ValueError, match="are open: call `settled` first"):
        PLAN.integrator()


def test_temperature_and_friction_are_those_of_the_reference():
    plan = replace(PLAN, temperature_K=None).settled({"temperature_K": 400.0, "friction_per_fs": 0.005})
    assert (plan.temperature_K, plan.friction_per_ps) == (400.0, 5.0)
    assert PLAN.settled({"temperature_K": 400.0}).friction_per_ps == 10.0
    with pytest.raises(ValueError, match="does not state its temperature: give `temperature_K`"):
        replace(PLAN, temperature_K=None).settled({})


@pytest.mark.parametrize("time_ps", [0.012, 0.0149, 0.01])
def test_the_last_step_of_a_rollout_is_a_frame(time_ps):
    plan = replace(PLAN, time_ps=time_ps)
    assert plan.steps == (plan.frames - 1) * plan.stride == 20
    assert plan.report_settings().expected_ps == plan.length_ps == 0.01


def test_replicas_start_from_frames_all_over_the_reference(tmp_path):
    path = saved(tmp_path / "reference.h5")
    start = read_start(replace(PLAN, reference=str(path)), "some model")
    with h5py.File(path) as file:
        assert [image.positions.tolist() for image in start.images] == file["positions"][[0, 5]].tolist()
    assert start.origins == ("frame 0 of reference.h5", "frame 5 of reference.h5")
    assert not any(image.has("momenta") for image in start.images)


def test_published_npz_files_serve_as_reference(tmp_path):
    atoms = g2_molecule("CH3CH2OH")
    np.savez(tmp_path / "md17_ethanol.npz", R=np.tile(atoms.positions, (4, 1, 1)), z=atoms.numbers, E=np.zeros((4, 1)))
    plan = plan_from_dict({"preset": "md17-ethanol", "reference": f"{tmp_path / 'md17_ethanol.npz'}@1:", "replicas": 3})
    start = read_start(plan, "some model")
    assert start.origins == tuple(f"frame {frame} of md17_ethanol.npz@1:" for frame in range(3))
    assert plan.settled(start.attributes).temperature_K == 500.0


def test_the_bundled_model_has_a_reference():
    start = read_start(PLAN, "ala3-gfn2")
    assert start.reference == str(reference_file("ala3-gfn2"))
    assert start.images[0].get_chemical_formula() == "C12H22N4O4"


def test_a_model_without_reference_is_told_so():
    with pytest.raises(ValueError, match=r"no reference trajectory comes with the package for 'mine'.*--reference"):
        read_start(PLAN, "mine")


def test_a_structure_serves_all_replicas(tmp_path):
    atoms = g2_molecule("CH3CH2OH")
    atoms.rattle(0.01, seed=3)
    ase.io.write(tmp_path / "start.xyz", atoms)
    plan = replace(PLAN, reference=str(saved(tmp_path / "reference.h5")), structure=str(tmp_path / "start.xyz"))
    start = read_start(plan, "some model")
    assert [image.positions == pytest.approx(atoms.positions, abs=1e-7) for image in start.images] == [True, True]
    assert start.origins == ("start.xyz", "start.xyz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms[::-1], "from start.xyz has its atoms in another order than the reference"),
        (lambda atoms: atoms[[0, 1, 2, 5, 4, 3, 6, 7, 8]], "another order than those of the reference, sort them"),
        (lambda atoms: atoms[1:], "from start.xyz has 8 atoms, the reference has 9"),
        (lambda _: g2_molecule("CH3CHO"), "from start.xyz has 7 atoms"),
    ],
)
def test_a_structure_with_other_atoms_is_refused(tmp_path, change, message):
    ase.io.write(tmp_path / "start.xyz", change(g2_molecule("CH3CH2OH")))
    plan = replace(PLAN, reference=str(saved(tmp_path / "reference.h5")), structure=str(tmp_path / "start.xyz"))
    with pytest.raises(ValueError, match=message):
        read_start(plan, "some model")


def test_an_unknown_structure_is_refused_with_the_bundled_ones(tmp_path):
    plan = replace(PLAN, reference=str(saved(tmp_path / "reference.h5")), structure="DNA")
    with pytest.raises(FileNotFoundError, match="no structure file 'DNA', and no bundled molecule; there are ethanol"):
        read_start(plan, "some model")


def test_a_reference_of_another_system_than_that_of_the_preset_is_refused(tmp_path):
    plan = plan_from_dict({"preset": "md17-aspirin", "reference": str(saved(tmp_path / "reference.h5"))})
    with pytest.raises(ValueError, match="md17-aspirin is for aspirin, C9H8O4, but the reference is C2H6O"):
        read_start(plan, "some model")


def test_a_model_of_another_system_than_that_of_the_preset_is_refused():
    plan = plan_from_dict({"preset": "md22-dha"})
    check_model(plan, "general", frozenset())
    check_model(plan, "dha", frozenset({"C22H32O2"}))
    with pytest.raises(ValueError, match="C22H32O2, and the model small only for C2H6O: give a model of that system"):
        check_model(plan, "small", frozenset({"C2H6O"}))


def test_a_folder_with_other_files_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty and holds no rollout"):
        RolloutFolder(tmp_path).check(resume=False, overwrite=True)


def test_a_new_run_leaves_files_of_others_in_the_folder(tmp_path):
    folder = RolloutFolder(tmp_path / "run")
    begin(folder)
    for name in ("notes.txt", "replica-7.h5md", "replica-7.pdb", "rollout.restart", "log.csv", "report.html"):
        (folder.path / name).touch()
    assert folder.check(resume=False, overwrite=True) is False
    begin(folder)
    assert {path.name for path in folder.path.iterdir()} == {"notes.txt", "plan.json", "summary.json"}


def test_a_run_that_is_continued_may_be_longer_but_not_another(tmp_path):
    folder = RolloutFolder(tmp_path / "run")
    begin(folder)
    assert folder.check_same(replace(PLAN, time_ps=1.0, reference="other.h5")) == ("here", "there")
    with pytest.raises(ValueError, match=r"is another one: every_fs was 5.0, is 10.0; replicas was 2, is 3"):
        folder.check_same(replace(PLAN, every_fs=10.0, replicas=3))


def test_a_damaged_record_of_the_plan_is_refused(tmp_path):
    folder = RolloutFolder(tmp_path / "run")
    begin(folder)
    folder.plan.write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged: start anew with --overwrite"):
        folder.check_same(PLAN)
