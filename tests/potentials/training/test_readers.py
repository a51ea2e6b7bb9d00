"""Files become the numbers that are in them, in eV and Å, or one message that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from e2former_calc.potentials.training.dataset import Dataset, DatasetError
from e2former_calc.potentials.training.readers import read_dataset

KCAL = units.kcal / units.mol
STRESS = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
WRITERS = {
    "extxyz": lambda path, images: ase.io.write(path, images, format="extxyz"),
    "traj": lambda path, images: ase.io.write(path, images),
    "db": lambda path, images: [ase.db.connect(path).write(atoms) for atoms in images],
}


def water(k: int = 0) -> Atoms:
    """A periodic water molecule; no two `k` give the same numbers."""
    x = 0.01 * k
    return Atoms("OHH", [[x, 0, 0], [0.96, x, 0], [-0.24, 0.93, x]], cell=[5.0, 6.0, 7.0], pbc=True)


def labelled(k: int = 0, **results: Any) -> Atoms:
    """Water with calculator results."""
    atoms = water(k)
    default = {"energy": -10.0 - k, "forces": 0.1 * atoms.positions, "stress": 0.01 * STRESS}
    atoms.calc = SinglePointCalculator(atoms, **{**default, **results})
    return atoms


def write_xyz(path: Path, atoms: Atoms | list[Atoms]) -> Path:
    """The structures as an extended xyz file."""
    ase.io.write(path, atoms, format="extxyz")
    return path


def write_hdf5(path: Path, **changes: Any) -> Path:
    """Four frames of two atoms; `changes` replace tables, None removes one."""
    generator = np.random.default_rng(5)
    tables = {
        "numbers": np.array([1, 8], dtype=np.int8),
        "positions": generator.normal(size=(4, 2, 3)).astype(np.float32),
        "energy": generator.normal(size=4),
        "forces": generator.normal(size=(4, 2, 3)).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, values in {**tables, **changes}.items():
            if values is not None:
                file[name] = values
    return path


def write_npz(path: Path, names: str = "z R E F", **extra: Any) -> Path:
    """Three frames of two atoms in kcal/mol."""
    generator = np.random.default_rng(6)
    values = (np.array([6, 1]), generator.normal(size=(3, 2, 3)), generator.normal(size=(3, 1)))
    arrays = dict(zip(names.split(), (*values, generator.normal(size=(3, 2, 3))), strict=True))
    np.savez(path, **{**arrays, **extra})
    return path


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_files_of_ase_keep_structures_and_labels(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"water.{suffix}", [labelled(0), labelled(1)])
    dataset = read_dataset(tmp_path / f"water.{suffix}")
    torch.testing.assert_close(dataset.energy, torch.tensor([-10.0, -11.0], dtype=torch.float64))
    system = dataset.systems[1]
    assert (system.numbers.tolist(), system.pbc.tolist()) == ([8, 1, 1], [[True] * 3])
    np.testing.assert_allclose(system.positions, water(1).positions, atol=1e-8)
    np.testing.assert_allclose(system.cell[0], water().cell, atol=1e-8)
    np.testing.assert_allclose(dataset.forces[1], 0.1 * water(1).positions, atol=1e-8)


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_stress_becomes_a_symmetric_matrix(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"water.{suffix}", [labelled()])
    stress = read_dataset(tmp_path / f"water.{suffix}").stress[0]
    np.testing.assert_allclose(stress, 0.01 * np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]), atol=1e-8)


def test_stress_of_a_molecule_is_no_label(tmp_path: Path) -> None:
    atoms = labelled()
    atoms.pbc = atoms.calc.atoms.pbc = False
    assert read_dataset(write_xyz(tmp_path / "a.xyz", atoms)).stress == (None,)


def test_reference_labels_are_found(tmp_path: Path) -> None:
    atoms = water()
    atoms.info.update(REF_energy=-3.0, REF_stress=np.eye(3))
    atoms.arrays["REF_forces"] = 2.0 * atoms.positions
    dataset = read_dataset(write_xyz(tmp_path / "a.xyz", atoms))
    assert dataset.energy.tolist() == [-3.0]
    np.testing.assert_allclose(dataset.forces[0], 2.0 * water().positions, atol=1e-8)
    np.testing.assert_allclose(dataset.stress[0], np.eye(3))


def test_calculator_results_go_before_reference_labels(tmp_path: Path) -> None:
    atoms = labelled()
    atoms.info["REF_energy"] = -3.0
    assert read_dataset(write_xyz(tmp_path / "a.xyz", atoms)).energy.tolist() == [-10.0]


def test_forces_on_fixed_atoms_are_not_zeroed(tmp_path: Path) -> None:
    atoms = labelled()
    atoms.set_constraint(FixAtoms([1]))
    ase.io.write(tmp_path / "a.traj", atoms)
    np.testing.assert_allclose(read_dataset(tmp_path / "a.traj").forces[0], 0.1 * water().positions)


@pytest.mark.parametrize(
    ("info", "charge", "spin"),
    [
        ({}, 0, 1),
        ({"charge": -1, "spin": 2}, -1, 2),
        ({"charge": 1.0, "spin": 5, "spin_multiplicity": 3}, 1, 3),
    ],
)
def test_charge_and_multiplicity_come_from_info(tmp_path: Path, info: dict[str, Any], charge: int, spin: int) -> None:
    atoms = labelled()
    atoms.info.update(info)
    system = read_dataset(write_xyz(tmp_path / "a.xyz", atoms)).systems[0]
    assert (system.charge.tolist(), system.spin.tolist()) == ([charge], [spin])


def test_charge_and_reference_labels_are_found_in_a_database(tmp_path: Path) -> None:
    forces = np.ones((3, 3))
    ase.db.connect(tmp_path / "a.db").write(water(), charge=2, REF_energy=-4.0, data={"REF_forces": forces})
    dataset = read_dataset(tmp_path / "a.db")
    assert (dataset.systems[0].charge.tolist(), dataset.energy.tolist()) == ([2], [-4.0])
    np.testing.assert_array_equal(dataset.forces[0], forces)


@pytest.mark.parametrize(
    ("info", "message"),
    [({"charge": 0.5}, "`charge` must be an integer, got .*0.5"), ({"spin": 0}, "must be at least 1, got 0")],
)
def test_impossible_electronic_states_are_refused(tmp_path: Path, info: dict[str, Any], message: str) -> None:
    atoms = labelled(1)
    atoms.info.update(info)
    with pytest.raises(DatasetError, match=f"a.xyz, frame 1: .*{message}"):
        read_dataset(write_xyz(tmp_path / "a.xyz", [labelled(0), atoms]))


@pytest.mark.parametrize("missing", ["energy", "forces"])
def test_missing_labels_are_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DatasetError, match=f"a.xyz, frame 1: no {missing}; store .* REF_{missing}"):
        read_dataset(write_xyz(tmp_path / "a.xyz", [labelled(0), labelled(1, **{missing: None})]))


@pytest.mark.parametrize(
    ("name", "value"), [("energy", np.nan), ("forces", np.full((3, 3), np.nan)), ("stress", np.full(6, np.inf))]
)
def test_labels_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    ase.io.write(tmp_path / "a.traj", [labelled(0), labelled(1, **{name: value})])
    with pytest.raises(DatasetError, match=f"a.traj, frame 1: {name} not finite"):
        read_dataset(tmp_path / "a.traj")


def test_dummy_atoms_are_refused(tmp_path: Path) -> None:
    atoms = labelled()
    atoms.numbers[2] = atoms.calc.atoms.numbers[2] = 0
    ase.io.write(tmp_path / "a.traj", atoms)
    with pytest.raises(DatasetError, match=r"a.traj, frame 0: 0 is not an atomic number"):
        read_dataset(tmp_path / "a.traj")


@pytest.mark.parametrize(("name", "content"), [("a.xyz", ""), ("a.h5", ""), ("a.npz", "")])
def test_empty_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=f"{name} is empty"):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.dat", "a.dat cannot be read by ASE"),
        ("a.xyz", "a.xyz cannot be read by ASE"),
        ("a.h5", "a.h5 is not an HDF5 file"),
        ("a.npz", "a.npz is not a readable npz file"),
        ("a.db", "a.db cannot be read by ASE"),
    ],
)
def test_unknown_content_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("some words\nthat are no structure\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_dataset(tmp_path / "nowhere.xyz")


@pytest.mark.parametrize("write", [write_hdf5, lambda path: write_xyz(path, [labelled(k) for k in range(4)])])
@pytest.mark.parametrize(("index", "expected"), [("1:3", [1, 2]), ("::2", [0, 2]), ("-1", [3]), ("::-1", [3, 2, 1, 0])])
def test_index_selects_frames(tmp_path: Path, write: Callable[[Path], Path], index: str, expected: list[int]) -> None:
    path = write(tmp_path / "data")
    part = read_dataset(path, index=index)
    assert torch.equal(part.energy, read_dataset(path).energy[expected])
    assert part.source == f"data[{index}]"


def test_index_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a.h5 has no frame in the selection '7:'"):
        read_dataset(write_hdf5(tmp_path / "a.h5"), index="7:")


@pytest.mark.parametrize("index", ["first", "::0", ""])
def test_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    with pytest.raises(DatasetError, match=f"`index` must select frames like .* got '{index}'"):
        read_dataset(write_hdf5(tmp_path / "a.h5"), index=index)


def test_hdf5_cell_without_pbc_is_periodic_along_its_vectors(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", cell=np.diag([4.0, 5.0, 0.0]))
    system = read_dataset(path).systems[2]
    assert system.pbc.tolist() == [[True, True, False]]
    assert torch.equal(system.cell[0], torch.diag(torch.tensor([4.0, 5.0, 0.0], dtype=torch.float64)))


def test_hdf5_tables_with_one_row_per_frame_are_used(tmp_path: Path) -> None:
    cells = np.eye(3) * np.arange(4.0, 8.0)[:, None, None]
    pbc = np.eye(4, 3, dtype=bool)
    path = write_hdf5(tmp_path / "a.h5", cell=cells, pbc=pbc, stress=cells, charge=np.arange(4), spin=3)
    dataset = read_dataset(path)
    assert [system.charge.tolist() for system in dataset.systems] == [[0], [1], [2], [3]]
    assert dataset.systems[2].spin.tolist() == [3]
    np.testing.assert_array_equal(dataset.systems[1].cell[0], cells[1])
    np.testing.assert_array_equal(dataset.stress[1], cells[1])
    assert dataset.stress[3] is None  # not periodic


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": None, "forces": None}, r"a.h5 lacks energy, forces; it holds \['numbers', 'positions'\]"),
        ({"energy": np.zeros(3)}, r"`positions` has shape \(4, 2, 3\), but there are 3 energies"),
        ({"forces": np.zeros((4, 1, 3))}, r"a.h5, frame 0: forces have shape \(1, 3\), expected \(2, 3\)"),
        ({"numbers": np.array([1])}, r"a.h5: .*must have shapes"),
        ({"cell": np.zeros((2, 3, 3))}, r"`cell` has shape \(2, 3, 3\): expected one row for each of 4 frames"),
        ({"ptr": np.array([0, 2])}, "`ptr` must ascend from 0 and have 5 entries for 4 energies"),
        ({"energy": np.array([0, 0, np.nan, 0])}, "a.h5, frame 2: energy not finite"),
    ],
)
def test_damaged_hdf5_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset(write_hdf5(tmp_path / "a.h5", **changes))


def test_hdf5_source_tells_the_level_of_theory(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.attrs.update(level="PBE", source="somewhere")
    assert read_dataset(path).source == "a.h5 (PBE; somewhere)"


@pytest.mark.parametrize("names", ["z R E F", "nuclear_charges coords energies forces"])
def test_npz_is_converted_from_kcal(tmp_path: Path, names: str) -> None:
    path = write_npz(tmp_path / "md17.npz", names)
    dataset, raw = read_dataset(path), np.load(path)
    z, x, energy, forces = (raw[name] for name in names.split())
    np.testing.assert_allclose(dataset.energy, KCAL * energy[:, 0], rtol=1e-15)
    np.testing.assert_allclose(torch.stack(dataset.forces), KCAL * forces, rtol=1e-15)
    np.testing.assert_array_equal(dataset.systems[2].positions, x[2])
    assert dataset.systems[0].numbers.tolist() == z.tolist()
    assert dataset.source == "md17.npz (energies converted from kcal/mol, forces from kcal/mol/Å)"


def test_npz_that_states_ev_is_not_converted(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", e_unit="eV", r_unit="Ang")
    dataset = read_dataset(path)
    np.testing.assert_array_equal(dataset.energy, np.load(path)["E"][:, 0])
    assert dataset.source == "a.npz"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"e_unit": "Hartree"}, "a.npz is in Hartree and Ang: convert it"),
        ({"r_unit": "Bohr"}, "a.npz is in kcal/mol and Bohr: convert it"),
        ({"E": np.zeros(2)}, "do not belong together"),
        ({"z": np.array([1])}, "must have shapes"),
        ({"F": np.array([None, "pickle"])}, "not a readable npz file of plain arrays"),
        ({"F": np.full((3, 2, 3), np.nan)}, "a.npz, frame 0: forces not finite"),
    ],
)
def test_damaged_npz_is_refused(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset(write_npz(tmp_path / "a.npz", **extra))


def test_npz_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has the arrays \['a', 'b', 'c', 'd'\], but a data set has z, R, E, F or"):
        read_dataset(write_npz(tmp_path / "a.npz", "a b c d"))


def assert_equals_file(dataset: Dataset, path: Path, frame: int, atoms: slice | int) -> None:
    """Frame `frame` has the numbers at `atoms` of the tables."""
    with h5py.File(path) as file:
        np.testing.assert_array_equal(dataset.energy, file["energy"])
        np.testing.assert_array_equal(dataset.systems[frame].positions, file["positions"][atoms])
        np.testing.assert_array_equal(dataset.forces[frame], file["forces"][atoms])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["rmd17_aspirin_train", "deepmd_water_64"])
def test_published_trajectories_are_read_number_by_number(shared_dir: Path, name: str) -> None:
    path = shared_dir / "datasets" / f"{name}.h5"
    assert_equals_file(read_dataset(path), path, 123, 123)


@pytest.mark.shared
def test_published_ragged_set_is_read_number_by_number(shared_dir: Path) -> None:
    path = shared_dir / "datasets" / "spice_dipeptides_train.h5"
    dataset = read_dataset(path)
    with h5py.File(path) as file:
        start, stop = (int(bound) for bound in file["ptr"][[200, 201]])
        assert dataset.systems[200].numbers.tolist() == file["numbers"][start:stop].tolist()
        assert sum(system.n_atoms for system in dataset.systems) == len(file["numbers"])
    assert_equals_file(dataset, path, 200, slice(start, stop))


@pytest.mark.shared
def test_published_water_has_its_cell(shared_dir: Path) -> None:
    system = read_dataset(shared_dir / "datasets" / "deepmd_water_64.h5", index="5").systems[0]
    assert bool(system.pbc.all())
    np.testing.assert_allclose(system.cell[0], 12.444661 * np.eye(3), atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["md22_Ac-Ala3-NHMe_first98", "acac_test_dihedral", "isolated_atoms"])
def test_published_files_without_labels_are_refused(shared_dir: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"{name}.h5 lacks .*forces"):
        read_dataset(shared_dir / "datasets" / f"{name}.h5")
