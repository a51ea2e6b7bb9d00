"""Simulation files of the original E2Former as plans."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2former_calc.rollout import PRESETS, plan_from_dict
from e2former_calc.rollout.official_yaml import read_official_simulation, translate_official_simulation

LANGEVIN = {"timestep": 0.5, "temperature_K": 500.0, "friction": 0.5}
MD22: dict[str, Any] = {
    "steps": 200000, "save_freq": 100, "seed": 123, "T_init": 500, "integrator": "Langevin",
    "integrator_config": LANGEVIN,
}  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    """The MD22 file with other values; None removes one."""
    return {key: value for key, value in (MD22 | values).items() if value is not None}


def langevin(**values: Any) -> dict[str, Any]:
    return changed(integrator_config=LANGEVIN | values)


def nose_hoover(kind: str = "NoseHoover", **values: Any) -> dict[str, Any]:
    config = {"timestep": 0.5, "temperature": 500.0, "ttime": 20.0} | values
    return changed(integrator=kind, integrator_config=config)


def test_the_md22_file_is_the_md22_preset():
    plan = plan_from_dict(translate_official_simulation(MD22).plan)
    known = PRESETS["md22-dha"].plan
    for name in ("temperature_K", "timestep_fs", "every_fs", "time_ps", "steps", "thermostat", "replicas"):
        assert getattr(plan, name) == getattr(known, name)
    assert plan.friction_per_ps == pytest.approx(known.friction_per_ps)
    assert plan.seed == 123


@pytest.mark.parametrize(("friction", "per_ps"), [(0.5, 49.11), ("0.5", 49.11), (0.001, 0.09822), (0, 0.0)])
def test_friction_is_in_inverse_ase_time_units(friction, per_ps):
    found = translate_official_simulation(langevin(friction=friction)).plan["friction_per_ps"]
    assert found == pytest.approx(per_ps, rel=1e-4)


@pytest.mark.parametrize("kind", ["NoseHoover", "NoseHooverChain"])
def test_relaxation_times_are_in_time_steps(kind):
    plan = plan_from_dict(translate_official_simulation(nose_hoover(kind)).plan)
    assert (plan.thermostat, plan.relaxation_time_fs) == ("nose-hoover", 10.0)


def test_verlet_is_constant_energy():
    plan = translate_official_simulation(changed(integrator="VelocityVerlet", integrator_config={"timestep": 1.0})).plan
    assert (plan["thermostat"], plan["temperature_K"], plan["time_ps"]) == ("none", 500.0, 200.0)


def test_model_and_its_configuration_are_named():
    official = translate_official_simulation(changed(model_dir="runs/a", model_config_yml="a.yml"))
    assert (official.model, official.model_config) == ("runs/a", Path("a.yml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(max_test_points=10, kcal=False), "the original code ignores max_test_points, kcal"),
        (changed(identifier="100ps"), r"identifier \(the folder of the run is --out\)"),
        (changed(init_idx=3, purge=True), r"init_idx \(give the structure with --structure\), purge \(--overwrite"),
        (nose_hoover("NoseHooverChain", num_chains=5), r"num_chains \(chains have a fixed length\)"),
    ],
)
def test_what_has_no_effect_is_warned_about_by_name(values, message):
    with pytest.warns(UserWarning, match=message):
        translate_official_simulation(values)


def test_a_file_that_is_used_as_a_whole_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translate_official_simulation(MD22)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(stride=3, thermostat="x"), "it has unknown keys stride, thermostat"),
        (changed(steps=None, save_freq=None), "it has no steps; it has no save_freq"),
        (changed(steps=2.5), "steps must be an integer, got 2.5"),
        (changed(seed=-1), "seed must be an integer, got -1"),
        (changed(integrator="NPT"), "integrator must be one of Langevin, NoseHoover, .*, got NPT"),
        (changed(integrator_config=None), "it has no integrator_config"),
        (langevin(fixcm=False), "integrator_config of Langevin has unknown keys fixcm"),
        (langevin(timestep="fast"), "timestep must be a positive number, got 'fast'"),
        (langevin(friction=-1), "friction must be a number, got -1"),
        (langevin(temperature_K=300), "T_init is 500 K and temperature_K 300 K: .* make them equal"),
    ],
)
def test_files_that_cannot_be_carried_out_are_refused(values, message):
    with pytest.raises(ValueError, match=f"simulation file is not an official simulation file: .*{message}"):
        translate_official_simulation(values)


def write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_included_files_are_below_the_file_that_includes_them(tmp_path):
    write(tmp_path / "base.yml", MD22)
    own = {"includes": ["base.yml"], "steps": 100, "integrator_config": {"friction": 1.0}}
    plan = read_official_simulation(write(tmp_path / "simulation.yml", own)).plan
    assert (plan["time_ps"], plan["timestep_fs"]) == (0.05, 0.5)
    assert plan["friction_per_ps"] == pytest.approx(98.23, abs=0.01)


def test_included_files_may_be_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.yml", MD22)
    path = write(tmp_path / "deep" / "simulation.yml", {"includes": ["base.yml"]})
    assert read_official_simulation(path).plan["seed"] == 123


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "must hold lines 'key: value'"),
        ("a: [", "is not valid YAML"),
        ("includes: base.yml", "includes must be a list of files, got 'base.yml'"),
        ("includes: [simulation.yml]", "includes itself"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    (tmp_path / "simulation.yml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_official_simulation(tmp_path / "simulation.yml")


def test_a_missing_included_file_is_named(tmp_path):
    path = write(tmp_path / "simulation.yml", {"includes": ["other.yml"]})
    with pytest.raises(FileNotFoundError, match=r"includes other\.yml, which is neither in this folder nor beside it"):
        read_official_simulation(path)
