"""Sections of a report beyond distances: torsions, neighbour angles, diffusion, kinetic energies, truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from e2former_calc.analysis.constants import AMU_A2_PER_FS2_EV, BOLTZMANN_EV_PER_K
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError
from e2former_calc.report import Method, ReportSettings, Section, analyze_rollouts
from e2former_calc.report.section import Quantity
from e2former_calc.report.sources import survey

ETHANOL = molecule("CH3CH2OH")
SETTINGS = ReportSettings(n_bins=60, temperature_K=300.0)


def maxwell(atoms: Atoms, frames: int, rng: np.random.Generator, *, temperature_K: float = 300.0) -> np.ndarray:
    width = np.sqrt(BOLTZMANN_EV_PER_K * temperature_K / (atoms.get_masses() * AMU_A2_PER_FS2_EV))
    return np.asarray(width[:, None] * rng.normal(size=(frames, len(atoms), 3)))


def turning(seed: int, *, share: float = 0.5, frames: int = 200) -> Trajectory:
    """Ethanol that jumps between two torsions of its hydroxyl group, with thermal velocities."""
    rng, other = np.random.default_rng(seed), ETHANOL.copy()
    other.set_dihedral(1, 0, 2, 3, other.get_dihedral(1, 0, 2, 3) + 120.0, indices=[3])
    chosen = np.where(rng.random(frames)[:, None, None] < share, ETHANOL.positions, other.positions)
    return Trajectory(
        positions=chosen + 0.02 * rng.normal(size=(frames, 9, 3)),
        numbers=ETHANOL.numbers,
        times_fs=10.0 * np.arange(frames),
        velocities=maxwell(ETHANOL, frames, rng),
    )


def wandering(seed: int, *, step_A: float = 0.1, frames: int = 160) -> Trajectory:
    """Atoms of argon and krypton on random walks in a cube of 14 Å, D = step² / 2 per frame."""
    rng = np.random.default_rng(seed)
    grid = 3.5 * np.array([[i, j, k] for i in range(4) for j in range(4) for k in range(4)], dtype=float)
    walk = grid + step_A * rng.normal(size=(frames, 64, 3)).cumsum(axis=0)
    numbers = np.repeat([18, 36], 32)
    return Trajectory(
        positions=walk % 14.0,
        numbers=numbers,
        cell=14.0 * np.eye(3),
        times_fs=1000.0 * np.arange(frames),
        velocities=maxwell(Atoms(numbers), frames, rng),
    )


def section(name: str, rollout: Trajectory, reference: Trajectory, **methods: Method) -> Section:
    return analyze_rollouts([rollout], reference, SETTINGS, **methods).section(name)


def value(found: Section, name: str) -> float:
    return next(quantity for quantity in found.quantities if quantity.name == name).value


def test_equal_torsions_are_within_their_noise():
    found = section("torsions", turning(1), turning(2))
    assert len(found.quantities) == 2
    assert not any(quantity.beyond_noise for quantity in found.quantities)


def test_a_torsion_of_other_populations_is_found():
    found = section("torsions", turning(1, share=0.9), turning(2, share=0.5))
    other, same = sorted(found.quantities, key=lambda quantity: -quantity.value)
    assert other.value == pytest.approx(0.4, abs=0.1)
    assert (other.beyond_noise, same.beyond_noise) == (True, False)


def test_a_ring_has_no_torsions():
    benzene = molecule("C6H6")
    rng = np.random.default_rng(1)
    frames = Trajectory(
        benzene.positions + 0.01 * rng.normal(size=(40, 12, 3)), benzene.numbers, times_fs=np.arange(40.0)
    )
    assert section("torsions", frames, frames).skipped.startswith("No bond can turn")


def test_angles_between_neighbours_are_for_periodic_systems():
    assert "this section is for periodic systems" in section("angles", turning(1), turning(2)).skipped


def test_crystals_of_different_order_have_different_angles():
    cold, hot = wandering(1, step_A=0.01, frames=40), wandering(2, step_A=0.1, frames=40)
    same = section("angles", cold, wandering(3, step_A=0.01, frames=40))
    other = section("angles", hot, wandering(3, step_A=0.01, frames=40))
    assert all(quantity.beyond_noise for quantity in other.quantities)
    assert max(q.value for q in same.quantities) < min(q.value for q in other.quantities)


def test_diffusion_of_a_random_walk_is_that_of_its_steps():
    found = section("diffusion", wandering(1), wandering(2, step_A=0.15))
    for quantity in found.quantities:
        assert quantity.value == pytest.approx(0.1**2 / 2, rel=0.2)
        assert quantity.reference == pytest.approx(0.15**2 / 2, rel=0.2)
        assert quantity.beyond_noise
    assert {quantity.name for quantity in found.quantities} == {
        "diffusion coefficient of Ar", "diffusion coefficient of Kr"
    }  # fmt: skip


def test_the_correction_for_the_size_of_the_cell_is_told():
    remark = section("diffusion", wandering(1), wandering(2)).remarks[-1]
    assert "add 0.0445 Å²/ps divided by the viscosity" in remark


def test_molecules_do_not_diffuse():
    assert "without a cell has no diffusion" in section("diffusion", turning(1), turning(2)).skipped


def test_short_liquids_have_no_diffusion():
    why = section("diffusion", wandering(1, frames=22), wandering(2)).skipped
    assert "21 ps long; 50 ps are needed" in why


def test_equipartition_holds_for_maxwell_velocities():
    found = section("kinetics", turning(1, frames=600), turning(2, frames=600))
    for symbol in ("H", "C", "O"):
        assert value(found, f"temperature of {symbol}") == pytest.approx(300.0, rel=0.1)
    assert value(found, "kinetic energy, p value of the canonical distribution") > 0.001


def test_hot_hydrogen_is_seen():
    rollout = turning(1)
    heated = np.asarray(rollout.velocities) * np.where(rollout.numbers == 1, 1.2, 1.0)[:, None]
    found = section("kinetics", replace(rollout, velocities=heated), turning(2))
    hydrogen = next(quantity for quantity in found.quantities if quantity.name == "temperature of H")
    assert hydrogen.value == pytest.approx(1.44 * 300.0, rel=0.1)
    assert hydrogen.in_units_of_noise > 5.0
    assert value(found, "temperature of C") == pytest.approx(300.0, rel=0.15)
    assert value(found, "kinetic energy, p value of the canonical distribution") < 0.01


def test_slow_heat_leaves_few_independent_kinetic_energies():
    rollout = turning(1, frames=400)
    kinetic = np.asarray(survey("run", rollout).kinetic_eV)
    slow = 0.3 * np.sin(np.arange(400) / 60.0)
    found = section("kinetics", replace(rollout, energies=slow - kinetic), turning(2))
    assert not any("p value" in quantity.name for quantity in found.quantities)
    assert any("p value" in quantity.name for quantity in section("kinetics", rollout, turning(2)).quantities)


def test_drift_of_the_whole_is_measured():
    rollout = turning(1)
    flying = replace(rollout, velocities=np.asarray(rollout.velocities) + np.array([0.02, 0.0, 0.0]))
    speeds = [value(section("kinetics", run, turning(2)), "centre of mass, largest speed") for run in (rollout, flying)]
    assert speeds[1] - speeds[0] == pytest.approx(20.0, rel=0.3)


def test_without_velocities_there_is_no_kinetic_energy():
    bare = replace(turning(1), velocities=None)
    assert "store no velocities" in section("kinetics", bare, turning(2)).skipped


class Wells(Calculator):
    """Every atom of ethanol in a harmonic well of its own, as deep as a spread of 0.03 Å at 300 K needs."""

    implemented_properties = ("energy", "forces")

    def calculate(self, *arguments: object, **values: object) -> None:
        super().calculate(*arguments, **values)
        away = self.atoms.positions - ETHANOL.positions
        stiffness = BOLTZMANN_EV_PER_K * 300.0 / 0.03**2
        self.results = {"energy": 0.5 * stiffness * float((away**2).sum()), "forces": -stiffness * away}


def test_positions_tell_the_temperature_without_velocities():
    rng = np.random.default_rng(1)
    rollout = replace(turning(1), positions=ETHANOL.positions + 0.03 * rng.normal(size=(200, 9, 3)))
    found = section("kinetics", rollout, turning(2), model=Method("wells", Wells()))
    quantity = next(quantity for quantity in found.quantities if quantity.name == "configurational temperature")
    assert quantity.value == pytest.approx(300.0, abs=4 * quantity.error)
    assert quantity.error < 40.0


def test_the_model_is_judged_on_frames_of_the_reference():
    reference = labelled(turning(2, frames=40))
    found = section("truth", turning(1, frames=40), reference, model=Method("shifted", Shifted()))
    assert value(found, "force MAE, the reference's frames") == pytest.approx(50.0)
    assert "what the reference stores" in found.remarks[0]


def test_a_reference_without_forces_is_told_from_rollouts_without():
    reason = section("truth", labelled(turning(1, frames=40)), turning(2), model=Method("shifted", Shifted())).skipped
    assert reason.startswith("The reference stores no energies and forces")
    assert "--truth" in reason
    reason = section("truth", turning(1, frames=40), turning(2), truth=Method("EMT", EMT())).skipped
    assert reason.startswith("The rollouts store no energies and forces")


def test_without_a_model_there_is_no_configurational_temperature():
    found = section("kinetics", turning(1), turning(2))
    assert not any(quantity.name == "configurational temperature" for quantity in found.quantities)
    assert "The configurational temperature needs the model that made the rollouts (--model)." in found.remarks


def test_errors_on_rollouts_stand_beside_those_on_the_reference():
    rollout = labelled(turning(1, frames=40), Shifted())
    methods = {"truth": Method("EMT", EMT()), "model": Method("shifted", Shifted())}
    found = section("truth", rollout, labelled(turning(2, frames=40)), **methods)
    error = next(quantity for quantity in found.quantities if quantity.name == "force MAE, rollout 1")
    assert (error.value, error.reference) == (pytest.approx(50.0), pytest.approx(50.0))
    assert [table.name for table in found.tables] == ["truth", "truth-reference"]


def test_a_shift_of_the_energy_along_a_rollout_is_an_error():
    rollout = labelled(turning(1, frames=40), Shifted())
    shifted = replace(rollout, energies=np.asarray(rollout.energies) + 9.0)
    methods = {"truth": Method("EMT", EMT()), "model": Method("shifted", Shifted())}
    found = section("truth", shifted, labelled(turning(2, frames=40)), **methods)
    assert value(found, "energy MAE, rollout 1") == pytest.approx(1000.0, rel=1e-6)


class Shifted(EMT):
    """EMT whose forces are all wrong by the same amount."""

    def calculate(self, *arguments: object, **values: object) -> None:
        super().calculate(*arguments, **values)
        self.results["forces"] = self.results["forces"] + 0.05


def labelled(trajectory: Trajectory, calculator: EMT | None = None) -> Trajectory:
    """With energies and forces, EMT by default."""
    energies, forces = [], []
    for frame in range(len(trajectory)):
        atoms = trajectory.to_atoms(frame)
        atoms.calc = calculator or EMT()
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return replace(trajectory, energies=np.array(energies), forces=np.array(forces))


def test_a_hole_in_a_trajectory_is_found_and_named():
    rollout = turning(1)
    kept = np.r_[0:90, 110:200]
    holed = replace(
        rollout, positions=rollout.positions[kept], times_fs=np.asarray(rollout.times_fs)[kept],
        velocities=np.asarray(rollout.velocities)[kept],
    )  # fmt: skip
    with pytest.raises(TrajectoryError, match="rollout 1 has frames at unequal intervals"):
        analyze_rollouts([holed], turning(2), SETTINGS)


def test_rounding_is_not_a_unit_of_noise() -> None:
    still = Quantity("h(r) MAE", 1.2, "1", note="one rollout", noise_floor=1.5e-16, noise_upper_95=2e-16)
    assert still.in_units_of_noise is None
    assert still.beyond_noise


@pytest.mark.parametrize(("spacing_fs", "remark"), [(10.0, None), (2.0, "too high"), (50.0, "noise too low")])
def test_unequal_spacing_of_frames_is_told(spacing_fs: float, remark: str | None) -> None:
    rollout = turning(1)
    rollout = replace(rollout, times_fs=spacing_fs * np.arange(len(rollout.positions)))
    text = analyze_rollouts([rollout], turning(2), SETTINGS).noise
    assert [word for word in ("too high", "noise too low") if word in text] == [remark] * bool(remark)
