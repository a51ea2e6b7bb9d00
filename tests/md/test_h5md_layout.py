"""The H5MD layout of trajectory files, as other programs see it, and files that other programs wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from e2former_calc.md.h5md import H5MDError, H5MDReader, read_h5md, write_h5md

EPS = np.finfo(np.float64).eps


def trajectory(base: Atoms, n_frames: int = 5) -> list[Atoms]:
    """Frames with everything that a file can hold; positions leave the cell."""
    random = np.random.default_rng(5)
    images = []
    for i in range(n_frames):
        atoms = base.copy()
        atoms.positions += random.normal(scale=20.0, size=(len(atoms), 3))
        atoms.set_momenta(random.normal(size=(len(atoms), 3)))
        atoms.info.update(step=10 * i, time_fs=5.0 * i)
        atoms.calc = SinglePointCalculator(atoms, energy=random.normal(), forces=random.normal(size=(len(atoms), 3)))
        images.append(atoms)
    return images


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5md"


@pytest.fixture
def written(path: Path) -> Path:
    write_h5md(path, trajectory(bulk("NaCl", "rocksalt", a=5.6)))
    return path


def test_single_precision_halves_the_arrays(tmp_path: Path) -> None:
    images = trajectory(bulk("Cu", cubic=True) * (3, 3, 3), 20)
    for precision in ("float32", "float64"):
        write_h5md(tmp_path / precision, images, precision=precision)
    saved = (tmp_path / "float64").stat().st_size - (tmp_path / "float32").stat().st_size
    assert saved == pytest.approx(3 * 20 * images[0].positions.size * 4, rel=0.05)
    after = next(read_h5md(tmp_path / "float32", 3))
    np.testing.assert_allclose(after.positions, images[3].positions, rtol=np.finfo(np.float32).eps)


def test_the_file_follows_the_h5md_layout(written: Path) -> None:
    with h5py.File(written) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/modules/units"].attrs["version"].tolist() == [1, 0]
        assert file["h5md/author"].attrs["name"] == b"unknown"
        assert file["h5md/creator"].attrs["name"] == b"e2former_calc"
        box = file["particles/trajectory/box"]
        assert box.attrs["dimension"] == 3
        assert box.attrs["boundary"].tolist() == [b"periodic"] * 3


def test_elements_share_one_time_axis(written: Path) -> None:
    with h5py.File(written) as file:
        particles = file["particles/trajectory"]
        elements = [*(particles[n] for n in ("velocity", "force", "box/edges")), file["observables/potential_energy"]]
        for element in elements:
            assert element["step"] == particles["position/step"]
            assert element["time"] == particles["position/time"]


def test_stored_numbers_are_in_the_stated_units(path: Path) -> None:
    hydrogen = Atoms("H", [[1.0, 2.0, 3.0]])
    hydrogen.set_velocities([[0.5 / units.fs, 0, 0]])
    hydrogen.calc = SinglePointCalculator(hydrogen, energy=-13.6, forces=[[1.0, 0, 0]])
    write_h5md(path, hydrogen)
    with h5py.File(path) as file:
        force, velocity = file["particles/trajectory/force/value"], file["particles/trajectory/velocity/value"]
        assert (force.attrs["unit"], velocity.attrs["unit"]) == ("kJ mol-1 Angstrom-1", "Angstrom fs-1")
        assert force[0, 0, 0] == pytest.approx(96.48533212, rel=1e-7)
        assert velocity[0, 0, 0] == pytest.approx(0.5, rel=4 * EPS)
        assert file["observables/potential_energy/value"][0] == -13.6


def test_a_molecule_has_no_box_edges(path: Path) -> None:
    write_h5md(path, molecule("H2O"))
    with h5py.File(path) as file:
        assert file["particles/trajectory/box"].attrs["boundary"].tolist() == [b"none"] * 3
        assert "edges" not in file["particles/trajectory/box"]


@pytest.mark.parametrize("version", [None, [2, 0]])
def test_hdf5_that_is_not_h5md_1_is_refused(path: Path, version: list[int] | None) -> None:
    with h5py.File(path, "w") as file:
        if version is not None:
            file.create_group("h5md").attrs["version"] = version
    with pytest.raises(H5MDError, match="HDF5 but not an H5MD 1 file"):
        next(read_h5md(path))


def test_a_counter_beyond_the_data_is_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file["particles/trajectory/force/value"].resize(4, axis=0)
    with pytest.raises(H5MDError, match=r"damaged: 5 frames were completed but .*force/value holds 4"):
        next(read_h5md(written))


def foreign(path: Path, **changes: Any) -> None:
    """A file of another program: nm and ps, fixed time steps, a cuboid box that does not change."""
    given = {"unit": "nm", "species": [8, 1, 1], "group": "all"} | changes
    with h5py.File(path, "w") as file:
        file.create_group("h5md").attrs["version"] = [1, 0]
        group = file.create_group(f"particles/{given['group']}")
        position = group.create_group("position")
        position["value"] = np.arange(18.0).reshape(2, 3, 3)
        position["value"].attrs["unit"] = np.bytes_(given["unit"])
        position["step"] = 5
        position["step"].attrs["offset"] = 100
        position["time"] = 0.002
        position["time"].attrs["unit"] = "ps"
        group["species"] = given["species"]
        group["box/edges"] = [1.0, 2.0, 3.0]
        group["box/edges"].attrs["unit"] = "nm"
        group["box"].attrs["boundary"] = ["periodic", "periodic", "none"]


def test_files_of_other_programs_are_read_in_our_units(path: Path) -> None:
    foreign(path)
    atoms = next(read_h5md(path))
    np.testing.assert_allclose(atoms.positions, 10 * np.arange(9.0, 18.0).reshape(3, 3))
    np.testing.assert_allclose(atoms.cell.array, np.diag([10.0, 20.0, 30.0]))
    assert atoms.pbc.tolist() == [True, True, False]
    assert atoms.info == {"step": 105, "time_fs": 2.0}
    assert atoms.get_chemical_formula() == "H2O"


def test_elements_on_another_time_axis_are_left_out(path: Path) -> None:
    foreign(path)
    with h5py.File(path, "r+") as file:
        velocity = file.create_group("particles/all/velocity")
        velocity["value"], velocity["step"] = np.zeros((2, 3, 3)), [0, 50]
    with H5MDReader(path) as reader:
        assert reader.fields == {"positions", "cell", "step", "time_fs"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "sigma"}, "has the unit 'sigma'; known are Angstrom"),
        ({"unit": ""}, "has the unit ''; known are Angstrom"),
        ({"species": [8, 1, 999]}, r"species \[1, 8, 999\], which are not atomic numbers"),
        ({"group": "all/solvent"}, "must have one group of particles with positions, but has none"),
    ],
)
def test_files_that_cannot_be_understood_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    foreign(path, **changes)
    with pytest.raises(H5MDError, match=message):
        next(read_h5md(path))


def test_unknown_elements_are_refused(path: Path) -> None:
    foreign(path)
    with h5py.File(path, "r+") as file:
        del file["particles/all/species"]
    with pytest.raises(H5MDError, match="has no constant species in /particles/all"):
        next(read_h5md(path))


def test_files_of_other_programs_are_not_continued(path: Path) -> None:
    foreign(path)
    with pytest.raises(H5MDError, match="was not written by e2former_calc and cannot be continued"):
        write_h5md(path, molecule("H2O"), append=True)


@pytest.mark.filterwarnings("ignore")
def test_mdanalysis_reads_the_same_numbers(path: Path) -> None:
    mda = pytest.importorskip("MDAnalysis")
    images = trajectory(bulk("NaCl", "rocksalt", a=5.6))
    write_h5md(path, images)
    single = {"rtol": 4 * np.finfo(np.float32).eps}
    frames = mda.Universe(str(path)).trajectory
    assert len(frames) == len(images)
    for frame, atoms in zip(frames, images, strict=True):
        np.testing.assert_allclose(frame.positions, atoms.positions, **single)
        np.testing.assert_allclose(frame.dimensions, atoms.cell.cellpar(), **single)
        np.testing.assert_allclose(frame.velocities, atoms.get_velocities() * units.fs * 1000, **single)
        np.testing.assert_allclose(frame.forces, atoms.get_forces() * units.mol / units.kJ, **single)
        assert frame.time == pytest.approx(atoms.info["time_fs"] / 1000)
        assert frame.data["potential_energy"] == atoms.get_potential_energy()
