"""H5MD trajectories: what is written comes back, on every structure, and other files are refused clearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.h5md import H5MDError, H5MDReader, H5MDWriter, read_h5md, write_h5md

EPS = np.finfo(np.float64).eps
POSITION = "particles/trajectory/position"
COUNTER = "parameters/committed_frames"


def triclinic_crystal() -> Atoms:
    return bulk("NaCl", "rocksalt", a=5.6)


def molecule_in_a_box() -> Atoms:
    return Atoms(molecule("CH3OH"), cell=[9.0, 8.0, 7.0])


def slab_without_third_vector() -> Atoms:
    slab = fcc111("Cu", (1, 1, 2), vacuum=None)
    slab.set_cell([*slab.cell.array[:2], np.zeros(3)])
    slab.pbc = (True, True, False)
    slab.info.clear()
    return slab


BASES = [triclinic_crystal(), molecule("CH3OH"), molecule_in_a_box(), slab_without_third_vector()]


def trajectory(base: Atoms, n_frames: int = 5) -> list[Atoms]:
    """Frames with everything that a file can hold; positions leave the cell."""
    random = np.random.default_rng(3)
    images = []
    for i in range(n_frames):
        atoms = base.copy()
        atoms.positions += random.normal(scale=20.0, size=(len(atoms), 3))
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * i))
        atoms.set_momenta(random.normal(size=(len(atoms), 3)))
        atoms.info.update(step=10 * i, time_fs=5.0 * i, charge=np.int64(-1), spin=2)
        atoms.calc = SinglePointCalculator(atoms, energy=random.normal(), forces=random.normal(size=(len(atoms), 3)))
        images.append(atoms)
    return images


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5md"


@pytest.fixture(params=BASES, ids=["triclinic", "molecule", "boxed", "slab"])
def images(request: pytest.FixtureRequest) -> list[Atoms]:
    return trajectory(request.param)


@pytest.fixture
def written(path: Path) -> Path:
    write_h5md(path, trajectory(triclinic_crystal()))
    return path


def test_positions_come_back_bit_by_bit_and_unwrapped(path: Path, images: list[Atoms]) -> None:
    write_h5md(path, images)
    for before, after in zip(images, read_h5md(path, ":"), strict=True):
        assert np.array_equal(after.positions, before.positions)
        assert np.array_equal(after.numbers, before.numbers)


def test_cell_and_periodicity_come_back(path: Path, images: list[Atoms]) -> None:
    write_h5md(path, images)
    for before, after in zip(images, read_h5md(path, ":"), strict=True):
        assert np.array_equal(after.cell.array, before.cell.array)
        assert np.array_equal(after.pbc, before.pbc)


def test_momenta_come_back(path: Path, images: list[Atoms]) -> None:
    write_h5md(path, images)
    for before, after in zip(images, read_h5md(path, ":"), strict=True):
        np.testing.assert_allclose(after.get_momenta(), before.get_momenta(), rtol=8 * EPS)


def test_energy_and_forces_come_back(path: Path, images: list[Atoms]) -> None:
    write_h5md(path, images)
    for before, after in zip(images, read_h5md(path, ":"), strict=True):
        assert after.get_potential_energy() == before.get_potential_energy()
        np.testing.assert_allclose(after.get_forces(), before.get_forces(), rtol=4 * EPS)


def test_step_time_charge_and_spin_come_back(path: Path, images: list[Atoms]) -> None:
    write_h5md(path, images)
    for before, after in zip(images, read_h5md(path, ":"), strict=True):
        assert after.info == before.info
        assert {type(value) for value in after.info.values()} == {int, float}


def test_isotope_masses_come_back(path: Path) -> None:
    water = molecule("H2O")
    water.set_masses([15.999, 2.014, 1.008])
    write_h5md(path, water)
    assert np.array_equal(next(read_h5md(path)).get_masses(), water.get_masses())


def test_standard_masses_are_left_to_ase(written: Path) -> None:
    assert not next(read_h5md(written)).has("masses")


def test_only_what_the_frames_have_is_stored(path: Path) -> None:
    write_h5md(path, [molecule("H2O")] * 3)
    atoms = next(read_h5md(path))
    assert atoms.calc is None
    assert not atoms.has("momenta")
    assert atoms.info == {"step": 2}


def test_values_that_appear_later_are_left_out(path: Path) -> None:
    later = molecule("H2O")
    later.set_momenta(np.ones((3, 3)))
    write_h5md(path, [molecule("H2O"), later])
    assert not next(read_h5md(path)).has("momenta")


def test_nothing_is_calculated(path: Path) -> None:
    copper = bulk("Cu")
    copper.calc = EMT()
    write_h5md(path, copper)
    assert copper.calc.results == {}
    assert next(read_h5md(path)).calc is None


def test_results_of_other_positions_are_not_stored(path: Path) -> None:
    atoms = trajectory(molecule("H2O"), 1)[0]
    atoms.positions[0] += 1.0
    write_h5md(path, atoms)
    assert next(read_h5md(path)).calc is None


def test_constraints_do_not_change_stored_forces(path: Path) -> None:
    atoms = trajectory(molecule("H2O"), 1)[0]
    forces = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    write_h5md(path, atoms)
    np.testing.assert_allclose(next(read_h5md(path)).get_forces(), forces, rtol=4 * EPS)


def test_writing_changes_no_atoms(path: Path) -> None:
    atoms = trajectory(triclinic_crystal(), 1)[0]
    before = atoms.copy()
    write_h5md(path, atoms)
    assert atoms == before
    assert atoms.info == before.info


def test_frames_are_copied_when_they_are_appended(path: Path) -> None:
    water = molecule("H2O")
    before = water.positions.copy()
    with H5MDWriter(path) as writer:
        writer.append(water)
        water.positions += 1.0
    assert np.array_equal(next(read_h5md(path)).positions, before)


@pytest.mark.parametrize("index", [":", "1:3", "::2", "::-1", "-2:", "4:0:-3", slice(7, 9), slice(None, -1)])
def test_slices_choose_frames_as_in_a_list(written: Path, index: str | slice) -> None:
    chosen = slice(*(int(s) if s else None for s in index.split(":"))) if isinstance(index, str) else index
    assert [atoms.info["step"] for atoms in read_h5md(written, index)] == [0, 10, 20, 30, 40][chosen]


@pytest.mark.parametrize("index", [0, 2, 4, -1, -5])
def test_a_number_chooses_one_frame(written: Path, index: int) -> None:
    assert [atoms.info["step"] for atoms in read_h5md(written, index)] == [[0, 10, 20, 30, 40][index]]


@pytest.mark.parametrize("index", [5, -6, slice(5, None)])
def test_a_frame_that_is_not_there_is_refused(written: Path, index: int | slice) -> None:
    with pytest.raises(IndexError, match="holds 5 complete frames: there is no frame"):
        list(read_h5md(written, index))


def test_an_index_that_is_no_slice_is_refused(written: Path) -> None:
    with pytest.raises(ValueError, match=r"number or a slice.*got 'last'"):
        list(read_h5md(written, "last"))


def test_one_field_of_many_frames_is_read_as_an_array(path: Path) -> None:
    images = trajectory(triclinic_crystal())
    write_h5md(path, images)
    with H5MDReader(path) as reader:
        assert np.array_equal(reader.array("positions", slice(1, None, 2)), [a.positions for a in images[1::2]])
        assert np.array_equal(reader.array("time_fs"), [0.0, 5.0, 10.0, 15.0, 20.0])


def test_a_field_that_is_not_stored_is_refused(path: Path) -> None:
    write_h5md(path, molecule("H2O"))
    with H5MDReader(path) as reader, pytest.raises(H5MDError, match=r"holds no 'forces', only \['positions', 'step'\]"):
        reader.array("forces")


def test_long_trajectories_are_read_block_by_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = trajectory(molecule("H2O"), 7)
    write_h5md(path, images)
    monkeypatch.setattr("e2former_calc.md.h5md.READ_BYTES", 2 * 24 * 3)
    steps = [atoms.info["step"] for atoms in read_h5md(path, "::-1")]
    assert steps == [60, 50, 40, 30, 20, 10, 0]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=st.lists(st.integers(1, 5), min_size=1, max_size=4), flush_every=st.integers(1, 6))
def test_sessions_and_flushes_do_not_show_in_the_file(path: Path, sessions: list[int], flush_every: int) -> None:
    images = trajectory(triclinic_crystal(), sum(sessions))
    path.unlink(missing_ok=True)
    remaining = iter(images)
    for n_frames in sessions:
        with H5MDWriter(path, append=True, flush_every=flush_every) as writer:
            for _ in range(n_frames):
                writer.append(next(remaining))
    assert list(read_h5md(path, ":")) == images


def test_frames_without_steps_are_numbered_across_sessions(path: Path) -> None:
    write_h5md(path, [molecule("H2O")] * 2)
    write_h5md(path, [molecule("H2O")] * 2, append=True)
    assert [atoms.info["step"] for atoms in read_h5md(path, ":")] == [0, 1, 2, 3]


def test_writing_again_without_append_starts_afresh(written: Path) -> None:
    write_h5md(written, molecule("H2O"))
    assert [len(atoms) for atoms in read_h5md(written, ":")] == [3]


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compression_loses_nothing(path: Path, compression: Any) -> None:
    images = trajectory(triclinic_crystal())
    write_h5md(path, images, compression=compression)
    assert list(read_h5md(path, ":")) == images


def with_other_numbers(atoms: Atoms) -> Atoms:
    atoms.numbers[1] = 9
    return atoms


def with_other_pbc(atoms: Atoms) -> Atoms:
    atoms.pbc = (True, False, True)
    return atoms


def with_other_masses(atoms: Atoms) -> Atoms:
    atoms.set_masses([23.0, 40.0])
    return atoms


def with_other_charge(atoms: Atoms) -> Atoms:
    atoms.info["charge"] = 1
    return atoms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_other_numbers, r"frame 1 has different atoms \(atom 1 has atomic number 9 instead of 17\)"),
        (lambda atoms: atoms[:1], "frame 1 has 1 atoms instead of 2"),
        (with_other_pbc, r"frame 1 has pbc \[True, False, True\] instead of \[True, True, True\]"),
        (with_other_masses, "frame 1 has different masses"),
        (with_other_charge, "frame 1 has atoms.info {'charge': 1} instead of {}"),
    ],
    ids=["numbers", "count", "pbc", "masses", "charge"],
)
@pytest.mark.parametrize("append", [False, True], ids=["one session", "appended"])
def test_frames_of_another_system_are_refused(path: Path, change: Any, message: str, append: bool) -> None:
    first, other = triclinic_crystal(), change(triclinic_crystal())
    if append:
        write_h5md(path, first)
    with pytest.raises(H5MDError, match=message):
        write_h5md(path, [other] if append else [first, other], append=append)


@pytest.mark.parametrize("quantity", ["momenta", "energy", "forces", "time_fs"])
def test_quantities_may_not_vanish(path: Path, quantity: str) -> None:
    first, second = trajectory(triclinic_crystal(), 2)
    if quantity == "time_fs":
        del second.info["time_fs"]
    elif quantity == "momenta":
        del second.arrays["momenta"]
    else:
        del second.calc.results[quantity]
    name = {"momenta": "velocities"}.get(quantity, quantity)
    with pytest.raises(H5MDError, match=f"frame 1 has no {name}, which the frames before it have"):
        write_h5md(path, [first, second])


def test_a_cell_may_not_appear(path: Path) -> None:
    with pytest.raises(H5MDError, match="frame 1 has a cell, which the frames before it have not"):
        write_h5md(path, [molecule("CH3OH"), molecule_in_a_box()])


@pytest.mark.parametrize(("step", "time_fs"), [(0, 9.0), (-1, 9.0), (1, 4.0)])
def test_step_and_time_may_not_go_back(path: Path, step: int, time_fs: float) -> None:
    with H5MDWriter(path) as writer:
        writer.append(molecule("H2O"), step=0, time_fs=5.0)
        with pytest.raises(H5MDError, match=rf"step {step} \(time_fs {time_fs}\) after step 0 \(time_fs 5.0\)"):
            writer.append(molecule("H2O"), step=step, time_fs=time_fs)


def test_step_and_time_may_not_go_back_between_sessions(written: Path) -> None:
    with pytest.raises(H5MDError, match=r"step 0 \(time_fs 0.0\) after step 40 \(time_fs 20.0\)"):
        write_h5md(written, trajectory(triclinic_crystal(), 1), append=True)


@pytest.mark.parametrize("key", ["step", "time_fs", "charge", "spin"])
def test_info_that_is_no_number_is_refused(path: Path, key: str) -> None:
    water = molecule("H2O")
    water.info[key] = "one"
    with pytest.raises(ValueError, match=rf"atoms.info\['{key}'\] must be a number to be stored, got 'one'"):
        write_h5md(path, water)


def test_arrays_of_another_shape_are_refused(path: Path) -> None:
    with H5MDWriter(path) as writer, pytest.raises(H5MDError, match=r"positions of shape \(2, 3\), but needs \(3, 3\)"):
        writer.append_frame(Topology.from_atoms(molecule("H2O")), Frame(step=0, positions=np.zeros((2, 3))))


def test_an_empty_structure_is_refused(path: Path) -> None:
    with pytest.raises(H5MDError, match="not empty"):
        write_h5md(path, Atoms())


def test_writing_nothing_is_refused_and_keeps_the_file(written: Path) -> None:
    with pytest.raises(ValueError, match="`images` is empty"):
        write_h5md(written, iter(()))
    assert len(list(read_h5md(written, ":"))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flush_every": 0}, "`flush_every` must be at least 1, got 0"),
        ({"precision": "float16"}, "`precision` must be 'float32' or 'float64', got 'float16'"),
        ({"compression": "zip"}, "`compression` must be 'gzip', 'lzf' or None, got 'zip'"),
    ],
)
def test_unknown_options_are_refused(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        H5MDWriter(path, **options)
    assert not path.exists()


def test_a_closed_writer_refuses_frames(path: Path) -> None:
    writer = H5MDWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(H5MDError, match="is closed: open it again with append=True"):
        writer.append(molecule("H2O"))


def test_frames_before_an_error_are_kept(path: Path) -> None:
    writer = H5MDWriter(path)
    writer.append(molecule("H2O"))
    with pytest.raises(ZeroDivisionError), writer:
        1 / 0  # noqa: B018
    assert len(list(read_h5md(path, ":"))) == 1


def test_frames_are_on_disk_after_every_flush(path: Path) -> None:
    with H5MDWriter(path, flush_every=2) as writer:
        for _ in range(5):
            writer.append(molecule("H2O"))
        assert len(writer) == 5
        with H5MDReader(path) as reader:
            assert len(reader) == 4


def tear(path: Path, committed: int) -> None:
    """Leave the file as if the process had been killed behind frame `committed`."""
    with h5py.File(path, "r+") as file:
        file[COUNTER][()] = committed
        file[f"{POSITION}/value"].resize(7, axis=0)


@pytest.mark.parametrize("committed", [1, 3])
def test_a_torn_tail_is_ignored(written: Path, committed: int) -> None:
    tear(written, committed)
    assert list(read_h5md(written, ":")) == trajectory(triclinic_crystal())[:committed]


@pytest.mark.parametrize("committed", [0, 1, 3])
def test_a_torn_tail_is_overwritten(written: Path, committed: int) -> None:
    images = trajectory(triclinic_crystal())
    tear(written, committed)
    write_h5md(written, images[committed:], append=True)
    assert list(read_h5md(written, ":")) == images
    with h5py.File(written) as file:
        assert len(file[f"{POSITION}/value"]) == 5


def test_opening_to_append_cuts_a_torn_tail(written: Path) -> None:
    tear(written, 3)
    H5MDWriter(written, append=True).close()
    with h5py.File(written) as file:
        particles = file["particles/trajectory"]
        assert {len(particles[f"{name}/value"]) for name in ("position", "velocity", "force")} == {3}


def test_a_file_without_a_complete_frame_is_empty(path: Path) -> None:
    H5MDWriter(path).close()
    assert list(read_h5md(path, ":")) == []
    with pytest.raises(IndexError, match="holds 0 complete frames"):
        next(read_h5md(path))
    with H5MDReader(path) as reader, pytest.raises(H5MDError, match="holds no complete frame yet"):
        reader.topology()


WRITE_UNTIL_KILLED = """
import sys
from ase.build import molecule
from e2former_calc.md.h5md import H5MDWriter
writer = H5MDWriter(sys.argv[1], flush_every=2)
for _ in range(5):
    writer.append(molecule("H2O"))
print("five appended", flush=True)
sys.stdin.read()
"""


def test_a_running_and_then_killed_writer_leaves_its_flushed_frames(path: Path) -> None:
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "five appended\n"
        assert len(list(read_h5md(path, ":"))) == 4
        with pytest.raises(BlockingIOError, match="another process has this trajectory open"):
            write_h5md(path, molecule("H2O"), append=True)
        process.kill()
    write_h5md(path, molecule("H2O"), append=True)
    assert len(list(read_h5md(path, ":"))) == 5
