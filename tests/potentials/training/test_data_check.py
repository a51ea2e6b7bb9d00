"""The check of a data set finds what was planted in it, and nothing in sound data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.data_check import Finding, check_dataset
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.readers import read_dataset

WATER = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], dtype=torch.float64)
FRAMES = 40
NAN = float("nan")


@pytest.fixture
def sound() -> Dataset:
    """Water molecules that vibrate, with plausible labels."""
    generator = torch.Generator().manual_seed(11)
    shifts = 0.05 * torch.randn(FRAMES, 3, 3, generator=generator, dtype=torch.float64)
    forces = -20.0 * (shifts - shifts.mean(1, keepdim=True))
    return Dataset(
        systems=tuple(System.single((WATER + shift).numpy(), [8, 1, 1]) for shift in shifts),
        energy=-2080.0 + 10.0 * shifts.square().sum((1, 2)),
        forces=tuple(forces),
        stress=(None,) * FRAMES,
        source="water.xyz",
    )


def with_position(dataset: Dataset, frame: int, positions: torch.Tensor) -> Dataset:
    """The same data with one geometry changed."""
    systems = list(dataset.systems)
    systems[frame] = systems[frame].with_positions(positions)
    return replace(dataset, systems=tuple(systems))


def with_forces(dataset: Dataset, frame: int, forces: torch.Tensor) -> Dataset:
    """The same data with the forces of one frame changed."""
    changed = list(dataset.forces)
    changed[frame] = forces
    return replace(dataset, forces=tuple(changed))


def with_energy(dataset: Dataset, frame: int, energy: float) -> Dataset:
    """The same data with the energy of one frame changed."""
    changed = dataset.energy.clone()
    changed[frame] = energy
    return replace(dataset, energy=changed)


def only(findings: list[Finding]) -> Finding:
    """The single finding."""
    assert len(findings) == 1, findings
    return findings[0]


def test_sound_data_has_no_findings(sound: Dataset) -> None:
    assert check_dataset(sound) == []


def test_empty_data_is_an_error(sound: Dataset) -> None:
    found = only(check_dataset(sound.subset([])))
    assert (found.severity, found.message) == ("error", "water.xyz holds no structures: add data")


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_labels_that_are_nan_are_an_error_with_their_frame(sound: Dataset, label: str) -> None:
    broken = {
        "energy": with_energy(sound, 7, NAN),
        "forces": with_forces(sound, 7, torch.full((3, 3), NAN, dtype=torch.float64)),
        "stress": replace(sound, stress=(*(None,) * 7, torch.full((3, 3), NAN), *(None,) * (FRAMES - 8))),
    }[label]
    found = only(check_dataset(broken))
    assert (found.severity, found.frames) == ("error", (7,))
    assert "labels are not finite (NaN or infinite) in frame 7" in found.message


def test_positions_that_are_nan_are_an_error(sound: Dataset) -> None:
    found = only(check_dataset(with_position(sound, 2, WATER * NAN)))
    assert (found.severity, found.frames) == ("error", (2,))
    assert "position of atom 0 is not finite" in found.message


def test_atomic_numbers_outside_the_table_are_an_error(sound: Dataset) -> None:
    system = replace(sound.systems[4], numbers=torch.tensor([8, 1, 0]))
    found = only(check_dataset(replace(sound, systems=(*sound.systems[:4], system, *sound.systems[5:]))))
    assert (found.severity, found.frames) == ("error", (4,))
    assert "atomic numbers must be 1 ... 118, got 0" in found.message


def test_frames_after_a_broken_one_keep_their_numbers(sound: Dataset) -> None:
    broken = with_energy(with_energy(sound, 3, NAN), 20, -2000.0)
    assert [(f.severity, f.frames) for f in check_dataset(broken)] == [("error", (3,)), ("warning", (20,))]


@pytest.mark.parametrize(
    ("energy_factor", "message"), [(23.06, "kcal/mol or kJ/mol"), (96.49, "kJ/mol"), (1 / 27.2114, "Hartree")]
)
def test_other_energy_units_are_suspected(sound: Dataset, energy_factor: float, message: str) -> None:
    found = only(check_dataset(replace(sound, energy=sound.energy * energy_factor)))
    assert found.severity == "warning"
    assert message in found.message


@pytest.mark.parametrize("energy_per_atom", [-4.8, -156.0])
def test_energies_without_core_electrons_are_not_suspected(sound: Dataset, energy_per_atom: float) -> None:
    energy = sound.energy - sound.energy.mean() + 3 * energy_per_atom
    assert check_dataset(replace(sound, energy=energy)) == []


@pytest.mark.parametrize(("factor", "message"), [(23.06, "kcal/mol/Å"), (1 / 51.42, "Hartree/Bohr")])
def test_other_force_units_are_suspected(sound: Dataset, factor: float, message: str) -> None:
    found = only(check_dataset(replace(sound, forces=tuple(factor * f for f in sound.forces))))
    assert found.severity == "warning"
    assert message in found.message


def test_net_forces_are_reported(sound: Dataset) -> None:
    found = only(check_dataset(with_forces(sound, 5, sound.forces[5] + 0.1)))
    assert found.frames == (5,)
    assert "forces add up to more than" in found.message


def test_zero_forces_are_reported_as_placeholders(sound: Dataset) -> None:
    found = only(check_dataset(with_forces(sound, 9, torch.zeros_like(sound.forces[9]))))
    assert found.frames == (9,)
    assert "exactly zero in frame 9" in found.message


def test_constant_energy_is_reported(sound: Dataset) -> None:
    found = only(check_dataset(replace(sound, energy=torch.full_like(sound.energy, -2080.0))))
    assert "every structure has the same energy, -2080 eV" in found.message


def test_force_outliers_are_reported(sound: Dataset) -> None:
    found = only(check_dataset(with_forces(sound, 30, 40.0 * sound.forces[30])))
    assert found.frames == (30,)
    assert "largest force is an outlier" in found.message


def test_energy_outliers_are_reported_whatever_the_compositions(sound: Dataset) -> None:
    pairs = Dataset(
        systems=tuple(System.single(system.positions[1:].numpy(), [1, 1]) for system in sound.systems),
        energy=sound.energy + 2050.0,
        forces=tuple(f[1:] - f[1:].mean(0) for f in sound.forces),
        stress=sound.stress,
        source="pairs.xyz",
    )
    found = only(check_dataset(with_energy(Dataset.join([sound, pairs]), 55, -25.0)))
    assert found.frames == (55,)
    assert "energy per atom is an outlier" in found.message


@pytest.mark.parametrize("difference", [0.0, 5e-7])
def test_duplicates_are_reported_except_for_the_first(sound: Dataset, difference: float) -> None:
    again = with_position(sound, 12, sound.systems[3].positions + difference)
    again = with_position(again, 33, again.systems[3].positions - difference)
    found = only(check_dataset(again))
    assert found.frames == (12, 33)


@pytest.mark.parametrize("order", [[2, 9, 10, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
def test_all_copies_of_one_structure_are_found(sound: Dataset, order: list[int]) -> None:
    step = 1e-8 * torch.argsort(torch.tensor(order))
    copies = sound
    for frame, shift in zip(sorted(order), step.tolist(), strict=True):
        copies = with_position(copies, frame, WATER + shift)
    assert only(check_dataset(copies)).frames == tuple(sorted(order)[1:])


def test_structures_farther_apart_than_the_tolerance_are_not_duplicates(sound: Dataset) -> None:
    moved = sound.systems[3].positions.clone()
    moved[2, 1] += 2e-6
    assert check_dataset(with_position(sound, 12, moved)) == []


def test_the_same_geometry_with_another_charge_is_not_a_duplicate(sound: Dataset) -> None:
    ion = replace(sound.systems[3], charge=torch.tensor([1]))
    assert check_dataset(replace(sound, systems=(*sound.systems[:12], ion, *sound.systems[13:]))) == []


def test_close_atoms_are_a_warning(sound: Dataset) -> None:
    found = only(check_dataset(with_position(sound, 1, WATER * torch.tensor([0.3, 1.0, 1.0]))))
    assert (found.severity, found.frames) == ("warning", (1,))
    assert "closer than 0.5 of the sum of their covalent radii in frame 1" in found.message


def test_overlapping_atoms_are_an_error_beside_close_ones(sound: Dataset) -> None:
    close = with_position(sound, 1, WATER * torch.tensor([0.3, 1.0, 1.0]))
    overlapping = with_position(close, 6, WATER * torch.tensor([0.001, 1.0, 1.0]))
    assert [(f.severity, f.frames) for f in check_dataset(overlapping)] == [("error", (6,)), ("warning", (1,))]


def test_close_periodic_images_are_found(sound: Dataset) -> None:
    small = replace(sound.systems[8], cell=torch.diag(torch.tensor([1.2, 9.0, 9.0]))[None].double())
    small = replace(small, pbc=torch.ones(1, 3, dtype=torch.bool))
    found = only(check_dataset(replace(sound, systems=(*sound.systems[:8], small, *sound.systems[9:]))))
    assert found.frames == (8,)


def test_rare_elements_are_reported_with_their_frames(sound: Dataset) -> None:
    other = replace(sound.systems[17], numbers=torch.tensor([16, 1, 1]))
    findings = check_dataset(replace(sound, systems=(*sound.systems[:17], other, *sound.systems[18:])))
    assert only(findings).frames == (17,)
    assert "S (1 frames)" in findings[0].message


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["rmd17_aspirin_train", "deepmd_water_64", "spice_dipeptides_train", "acac_train_600K"]
)
def test_published_data_has_no_findings(shared_dir: Path, name: str) -> None:
    assert check_dataset(read_dataset(shared_dir / "datasets" / f"{name}.h5")) == []
