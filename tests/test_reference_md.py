"""Reference trajectories: physics, files, and that interruptions leave no trace."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength

from e2former_calc.potentials.training.readers import read_dataset
from e2former_calc.reference_md import (
    CalculatorRecipe,
    Outcome,
    ReferenceSettings,
    Replica,
    check_replica,
    run_replica,
    run_replicas,
    summarize,
)
from e2former_calc.reference_md.dynamics import remove_overall_motion

EMT_RECIPE = CalculatorRecipe("emt")
SHORT = ReferenceSettings(
    temperature=300.0, time_ps=0.06, timestep_fs=1.0, every_fs=2.0, equilibration_ps=0.013, restart_every=10
)


class Oscillators(Calculator):
    """Independent springs of 2 eV/Å^2; above a number of calls it gives NaN or fails.

    The last bits depend on the number of calculations made before, as those of an iterative method do.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, fails_after: int = 10**9, failure: str = "nan", **options: Any) -> None:
        super().__init__(**options)
        self.calls, self._fails_after, self._failure = 0, fails_after, failure

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.calls > self._fails_after and self._failure == "error":
            raise RuntimeError("SCF not converged")
        stiffness = 2.0 + 1e-9 * self.calls + (np.nan if self.calls > self._fails_after else 0.0)
        positions = self.atoms.positions
        self.results = {"energy": 0.5 * stiffness * float((positions**2).sum()), "forces": -stiffness * positions}


OSCILLATORS = CalculatorRecipe(f"{__name__}:Oscillators")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calculator of this file can be found by name."""
    module = type(sys)(__name__)
    module.Oscillators = Oscillators  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, module)


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=1)
    return atoms


def replica_in(folder: Path, name: str = "run", atoms: Atoms | None = None, **changes: Any) -> Replica:
    recipe = changes.pop("recipe", EMT_RECIPE)
    number = changes.pop("number", 0)
    settings = replace(SHORT, **changes)
    start = Atoms("He4", positions=np.zeros((4, 3))) if recipe.name == OSCILLATORS.name else copper()
    return Replica(atoms or start, settings, recipe, folder / f"{name}.h5", number, source="test")


def tables(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: table[()] for name, table in file.items() if isinstance(table, h5py.Dataset)}


def assert_same_file(first: Path, second: Path) -> None:
    one, two = tables(first), tables(second)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def stop_after(steps: int):
    """Function that is true from its `steps`-th call on."""
    calls = iter(range(10**9))
    return lambda: next(calls) >= steps


@pytest.mark.parametrize("stop_at", [0, 7, 20, 33, 61])
@pytest.mark.parametrize("recipe", [EMT_RECIPE, OSCILLATORS], ids=["emt", "with memory"])
def test_a_stopped_and_resumed_run_has_the_frames_of_an_uninterrupted_one(tmp_path, stop_at, recipe):
    whole, parts = replica_in(tmp_path, "whole", recipe=recipe), replica_in(tmp_path, "parts", recipe=recipe)
    run_replica(whole)
    assert run_replica(parts, interrupted=stop_after(stop_at)).status == "stopped"
    assert run_replica(parts, resume=True).status == "done"
    assert_same_file(whole.path, parts.path)


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])
def test_a_run_stopped_again_and_again_is_the_same(tmp_path, ensemble):
    whole, parts = (replica_in(tmp_path, name, ensemble=ensemble, relax=True) for name in ("whole", "parts"))
    run_replica(whole)
    run_replica(parts, interrupted=stop_after(25))
    while run_replica(parts, resume=True, interrupted=stop_after(17)).status == "stopped":
        pass
    assert_same_file(whole.path, parts.path)


def test_a_finished_run_can_be_made_longer(tmp_path):
    whole, parts = replica_in(tmp_path, "whole"), replica_in(tmp_path, "parts", time_ps=0.031)
    run_replica(whole)
    run_replica(parts)
    longer = replace(parts, settings=whole.settings)
    assert run_replica(longer, resume=True).summary == summarize(whole.path)
    assert_same_file(whole.path, parts.path)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    replica = replica_in(tmp_path)
    run_replica(replica)
    before = replica.path.read_bytes()
    assert run_replica(replica, resume=True).steps == 0
    assert replica.path.read_bytes() == before


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    whole, parts = replica_in(tmp_path, "whole"), replica_in(tmp_path, "parts")
    run_replica(whole)
    run_replica(parts, interrupted=stop_after(33))

    def full_disk(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run_replica(parts, resume=True)
    monkeypatch.undo()
    run_replica(parts, resume=True)
    assert_same_file(whole.path, parts.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.h5", "whole.h5"]


def test_the_memory_of_a_calculator_matters_without_restart_points(tmp_path):
    often, seldom = (replica_in(tmp_path, str(every), recipe=OSCILLATORS, restart_every=every) for every in (10, 10**6))
    run_replica(often)
    run_replica(seldom)
    assert not np.array_equal(tables(often.path)["energy"], tables(seldom.path)["energy"])


@pytest.mark.parametrize("frame_step", [1, 3])
def test_frames_are_counted_from_the_end_of_the_equilibration(tmp_path, frame_step):
    replica = replica_in(tmp_path, every_fs=float(frame_step), time_ps=0.031)
    run_replica(replica)
    assert len(tables(replica.path)["energy"]) == 31 // frame_step + 1 == replica.settings.frames


@pytest.mark.shared
def test_the_layout_is_that_of_the_reference_data(tmp_path, shared_dir):
    replica = replica_in(tmp_path)
    run_replica(replica)
    example = shared_dir / "datasets" / "gt_gfn2_ethanol_nve.h5"
    with h5py.File(example) as wanted, h5py.File(replica.path) as written:
        assert set(wanted.attrs) - {"joints_at_frame"} <= set(written.attrs)
        assert written.attrs["units"] == wanted.attrs["units"]
        for name, table in wanted.items():
            assert written[name].dtype == table.dtype, name
            assert written[name].ndim == table.ndim, name


def test_files_are_data_sets_for_training(tmp_path):
    atoms = copper()
    atoms.info.update(charge=0, spin=1)
    replica = replica_in(tmp_path, atoms=atoms)
    run_replica(replica)
    data = read_dataset(replica.path)
    written = tables(replica.path)
    assert len(data) == replica.settings.frames
    np.testing.assert_array_equal(data.energy.numpy(), written["energy"])
    np.testing.assert_allclose(data.systems[3].cell.numpy().reshape(3, 3), atoms.cell.array)


def test_energies_and_forces_belong_to_the_positions(tmp_path):
    replica = replica_in(tmp_path)
    run_replica(replica)
    written = tables(replica.path)
    atoms = copper()
    atoms.positions, atoms.calc = written["positions"][-1], EMT()
    rounding = 10 * np.finfo(np.float32).eps
    forces = atoms.get_forces()
    assert written["energy"][-1] == pytest.approx(atoms.get_potential_energy(), abs=rounding * np.abs(forces).sum())
    np.testing.assert_allclose(written["forces"][-1], forces, atol=20 * rounding)


def test_velocities_are_derivatives_in_angstrom_per_picosecond(tmp_path):
    replica = replica_in(tmp_path, every_fs=1.0)
    run_replica(replica)
    written = tables(replica.path)
    differences = (written["positions"][2:] - written["positions"][:-2]) / 0.002
    np.testing.assert_allclose(differences, written["velocities"][1:-1], atol=0.3)


def test_kinetic_energy_belongs_to_the_velocities(tmp_path):
    replica = replica_in(tmp_path)
    run_replica(replica)
    written = tables(replica.path)
    velocities = written["velocities"].astype(float) / (1000 * units.fs)
    kinetic = 0.5 * (written["masses"][:, None] * velocities**2).sum((1, 2))
    np.testing.assert_allclose(kinetic, written["kinetic_energy"], rtol=100 * np.finfo(np.float32).eps)


def test_nve_conserves_the_energy_without_overall_motion(tmp_path):
    atoms = molecule("C2H6")
    replica = replica_in(tmp_path, atoms=atoms, ensemble="nve", timestep_fs=0.25, every_fs=0.5, time_ps=0.2, relax=True)
    outcome = run_replica(replica)
    written = tables(replica.path)
    total = written["energy"] + written["kinetic_energy"]
    assert total.std() < 0.02 * written["kinetic_energy"].std()
    assert abs(outcome.summary.drift) < 5
    momentum = (written["masses"][:, None] * written["velocities"]).sum(1)
    spin = np.cross(written["positions"], written["masses"][:, None] * written["velocities"]).sum(1)
    assert np.abs(momentum).max() < 1e-3
    assert np.abs(spin - spin.mean(0)).max() < 1e-2


@pytest.mark.parametrize("name", ["H2O", "CO2", "C2H6"])
def test_overall_motion_is_removed(name):
    atoms = molecule(name)
    atoms.set_velocities(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    internal = atoms.get_kinetic_energy()
    remove_overall_motion(atoms)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-12)
    assert 0 < atoms.get_kinetic_energy() < internal


def test_the_thermostat_gives_the_temperature_of_the_positions_and_velocities(tmp_path):
    atoms = Atoms("He40", positions=np.zeros((40, 3)))
    replica = replica_in(
        tmp_path,
        atoms=atoms,
        recipe=OSCILLATORS,
        time_ps=3.0,
        every_fs=10.0,
        equilibration_ps=0.5,
        friction_per_ps=50.0,
    )
    outcome = run_replica(replica)
    potential = 2 * tables(replica.path)["energy"].mean() / (120 * units.kB)
    assert outcome.summary.temperature == pytest.approx(300, rel=0.04)
    assert potential == pytest.approx(300, rel=0.06)


def test_replicas_differ_and_are_reproducible(tmp_path):
    runs = {name: replica_in(tmp_path, name, number=number) for name, number in (("a", 0), ("b", 0), ("c", 1))}
    for replica in runs.values():
        run_replica(replica)
    assert_same_file(runs["a"].path, runs["b"].path)
    energies = [tables(runs[name].path)["energy"] for name in "ac"]
    assert not np.any(energies[0] == energies[1])


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 301.0}])
def test_seed_and_temperature_change_the_random_numbers(tmp_path, change):
    first, second = replica_in(tmp_path), replica_in(tmp_path, **change)
    assert first.generator().normal() != second.generator().normal()


def test_the_structure_is_not_changed(tmp_path):
    atoms, copy = copper(), copper()
    run_replica(replica_in(tmp_path, atoms=atoms))
    assert atoms == copy
    assert atoms.calc is None


def test_fixed_atoms_stay_and_keep_their_forces(tmp_path):
    atoms = copper()
    atoms.set_constraint(FixAtoms([0]))
    replica = replica_in(tmp_path, atoms=atoms)
    run_replica(replica)
    written = tables(replica.path)
    assert np.ptp(written["positions"][:, 0], axis=0).max() == 0
    assert np.abs(written["forces"][:, 0]).min() > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [({"failure": "nan"}, "gave forces that are not finite"), ({"failure": "error"}, "SCF not converged")],
)
def test_a_failing_calculation_keeps_everything_before(tmp_path, options, text):
    recipe = replace(OSCILLATORS, options={"fails_after": 30, **options})
    outcome = run_replica(replica_in(tmp_path, recipe=recipe, restart_every=1000))
    assert outcome.status == "failed"
    assert text in outcome.message
    assert "step 43" in outcome.message
    assert f"({outcome.summary.frames} frames before it are kept)" in outcome.message
    assert len(read_dataset(tmp_path / "run.h5")) == outcome.summary.frames == 15


def test_an_exploding_temperature_ends_the_run(tmp_path):
    atoms = Atoms("He4", positions=np.full((4, 3), 3.0))
    outcome = run_replica(replica_in(tmp_path, atoms=atoms, recipe=OSCILLATORS, friction_per_ps=0.1))
    assert outcome.status == "failed"
    assert "K with the thermostat at 300 K: take a shorter --timestep-fs" in outcome.message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": 310.0}, "temperature_K was 300.0 and is 310.0"),
        ({"ensemble": "nve"}, "ensemble was 'nvt' and is 'nve'"),
        ({"recipe": CalculatorRecipe("lj")}, "calculator was 'emt' and is 'lj'"),
        ({"number": 2}, "replica was 0 and is 2"),
        ({"atoms": bulk("Cu", cubic=True)}, "the structure has other positions"),
        ({"atoms": bulk("Ag", cubic=True)}, "other cell; the structure has other masses; the structure has other num"),
    ],
)
def test_other_settings_or_structures_are_not_continued(tmp_path, change, text):
    run_replica(replica_in(tmp_path))
    with pytest.raises(ValueError, match=text):
        run_replica(replica_in(tmp_path, **change), resume=True)


def test_foreign_files_are_not_continued(tmp_path):
    replica = replica_in(tmp_path)
    with h5py.File(replica.path, "w") as file:
        file["energy"] = [1.0]
    with pytest.raises(ValueError, match="no file of 'e2former reference'"):
        run_replica(replica, resume=True)


@pytest.mark.parametrize(
    ("atoms", "ensemble", "text"),
    [
        (Atoms(), "nvt", "nothing can move in a structure without atoms"),
        (Atoms("He"), "nve", r"nothing can move in He \(NVE\)"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 1]], constraint=FixBondLength(0, 1)), "nvt", "FixBondLengths are not supp"),
    ],
)
def test_structures_that_cannot_be_simulated_are_refused(tmp_path, atoms, ensemble, text):
    replica = Replica(atoms, replace(SHORT, ensemble=ensemble), EMT_RECIPE, tmp_path / "run.h5")
    with pytest.raises(ValueError, match=text):
        check_replica(replica)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (CalculatorRecipe("nonsense"), "no calculator 'nonsense'"),
        (CalculatorRecipe("ase.calculators.emt:Nothing"), "has no attribute 'Nothing'"),
        (CalculatorRecipe("collections:OrderedDict"), "does not make an ASE calculator but OrderedDict"),
        (CalculatorRecipe("model:nowhere"), "no model file 'nowhere'"),
        (CalculatorRecipe("emt", charge=1), "calculator 'emt' has options of its own"),
    ],
)
def test_bad_calculators_are_refused(tmp_path, recipe, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        check_replica(replica_in(tmp_path, recipe=recipe))


def test_a_missing_tblite_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ValueError, match=r'pip install "e2former_calc\[xtb\]"'):
        check_replica(replica_in(tmp_path, recipe=CalculatorRecipe()))


class TestXtb:
    """GFN2-xTB of tblite."""

    @pytest.fixture(autouse=True)
    def tblite(self) -> None:
        pytest.importorskip("tblite")

    def test_methane_runs_and_says_its_level(self, tmp_path):
        replica = replica_in(tmp_path, atoms=molecule("CH4"), recipe=CalculatorRecipe(), timestep_fs=0.5)
        assert run_replica(replica).status == "done"
        with h5py.File(replica.path) as file:
            assert file.attrs["level"].startswith("GFN2-xTB (tblite ")
            assert file["energy"][0] == pytest.approx(-113.6, abs=1.0)

    def test_interruptions_leave_no_trace(self, tmp_path):
        whole, parts = (
            replica_in(tmp_path, name, molecule("CH4"), recipe=CalculatorRecipe()) for name in ("whole", "parts")
        )
        run_replica(whole)
        run_replica(parts, interrupted=stop_after(33))
        run_replica(parts, resume=True)
        assert_same_file(whole.path, parts.path)

    def test_charge_and_multiplicity_reach_the_calculation(self, tmp_path):
        atoms = molecule("CH3")
        atoms.info["spin"] = 2
        given = replica_in(tmp_path, "info", atoms, recipe=CalculatorRecipe(), time_ps=0.0)
        cation = replica_in(tmp_path, "cation", atoms, recipe=CalculatorRecipe(charge=1, multiplicity=1), time_ps=0.0)
        run_replica(given)
        run_replica(cation)
        assert tables(given.path)["spin"] == 2
        assert tables(cation.path)["charge"] == 1
        assert tables(cation.path)["energy"][0] > tables(given.path)["energy"][0] + 5

    def test_impossible_multiplicities_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="9 electrons cannot have multiplicity 1: give --charge and --multi"):
            check_replica(replica_in(tmp_path, atoms=molecule("CH3"), recipe=CalculatorRecipe()))

    def test_contradicting_charges_are_refused(self, tmp_path):
        atoms = molecule("CH4")
        atoms.set_initial_charges([1.0, 0, 0, 0, 0])
        with pytest.raises(ValueError, match="initial charges add up to 1 but the total charge is 0"):
            check_replica(replica_in(tmp_path, atoms=atoms, recipe=CalculatorRecipe()))


def test_one_of_our_models_is_a_calculator(tmp_path):
    from e2former_calc.structures import molecule as bundled

    recipe = CalculatorRecipe("model:ethanol-rmd17")
    replica = replica_in(tmp_path, atoms=bundled("ethanol"), recipe=recipe, time_ps=0.004, equilibration_ps=0.0)
    assert run_replica(replica).status == "done"
    with h5py.File(replica.path) as file:
        assert file.attrs["level"].startswith("ethanol-rmd17 (e2former_calc ")


def test_processes_give_the_same_as_one_after_another(tmp_path):
    here = [replica_in(tmp_path, f"here-{k}", number=k) for k in range(2)]
    there = [replica_in(tmp_path, f"there-{k}", number=k) for k in range(2)]
    seen: dict[int, int] = {}
    for replica in here:
        run_replica(replica)
    outcomes = run_replicas(there, processes=2, report=lambda index, step: seen.update({index: step}))
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    assert set(seen) == {0, 1}
    for one, other in zip(here, there, strict=True):
        assert_same_file(one.path, other.path)


def test_a_dying_process_leaves_the_others_alone(tmp_path):
    deadly = CalculatorRecipe("os:_exit", options={"status": 7})
    replicas = [replica_in(tmp_path, "dead", recipe=deadly), replica_in(tmp_path, "alive", number=1)]
    dead, alive = run_replicas(replicas, processes=2)
    assert dead == Outcome("failed", "its process ended with exit code 7")
    assert alive.status == "done"


def test_processes_stop_in_good_order_and_continue(tmp_path):
    whole = replica_in(tmp_path, "whole", time_ps=20.0)
    parts = [replica_in(tmp_path, f"part-{k}", number=k, time_ps=20.0) for k in range(2)]
    started: list[int] = []
    outcomes = run_replicas(
        parts,
        threads=2,
        report=lambda _index, step: started.append(step),
        interrupted=lambda: max(started, default=0) > 99,
    )
    assert [outcome.status for outcome in outcomes] == ["stopped", "stopped"]
    assert outcomes[1].summary is None
    frames = tables(parts[0].path)["energy"]
    run_replica(replace(whole, settings=replace(whole.settings, time_ps=0.002 * (len(frames) - 1))))
    np.testing.assert_array_equal(frames, tables(whole.path)["energy"])


def test_a_process_that_is_stopped_while_it_starts_has_not_failed(tmp_path):
    (outcome,) = run_replicas([replica_in(tmp_path)], threads=2, interrupted=stop_after(1))
    assert outcome.status == "stopped"
