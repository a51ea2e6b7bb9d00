"""Logs beside trajectories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest

from e2former_calc.analysis.readers import read_trajectory
from e2former_calc.analysis.thermo_log import read_thermo_log
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

HEADER = "Time[ps]      Etot[eV]     Epot[eV]     Ekin[eV]    T[K]"
ROWS = [f"{0.05 * k:.4f}  {-17.0 + k:.4f}  {-18.0 + k:.4f}  1.0000  {300 + k:.1f}" for k in range(4)]


def log(folder: Path, *lines: str) -> Path:
    path = folder / "thermo.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_columns_and_units(tmp_path: Path) -> None:
    found = read_thermo_log(log(tmp_path, HEADER, *ROWS))
    np.testing.assert_allclose(found.times_fs, [0.0, 50.0, 100.0, 150.0])
    np.testing.assert_allclose(found.potential_eV, [-18.0, -17.0, -16.0, -15.0])
    np.testing.assert_allclose(found.total_eV - found.potential_eV, found.kinetic_eV)
    assert found.temperatures_K.tolist() == [300.0, 301.0, 302.0, 303.0]


def test_a_repeated_header_loses_no_row(tmp_path: Path) -> None:
    found = read_thermo_log(log(tmp_path, HEADER, *ROWS[:2], HEADER, *ROWS[1:]))
    assert len(found) == 5
    assert found.restarts == (2,)


def test_a_row_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    path = log(tmp_path, HEADER, *ROWS)
    path.write_text(path.read_text()[:-2])
    assert len(read_thermo_log(path)) == 3


def test_further_columns_are_left_out(tmp_path: Path) -> None:
    found = read_thermo_log(log(tmp_path, f"{HEADER}  ---- stress [GPa] ----", *(f"{row} 0.1 0.2" for row in ROWS)))
    assert found.temperatures_K[-1] == 303.0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("Step Temp PotEng", "0 300 -1"), "is no thermo.log: it must begin with 'Time"),
        ((), "found 'nothing'"),
        ((HEADER,), "has a header and no row"),
        ((HEADER, ROWS[0], "0.05 oops", ROWS[1]), "line 3: needed are five numbers, found '0.05 oops'"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        read_thermo_log(log(tmp_path, *lines))


@pytest.fixture
def silent(ethanol: Trajectory, tmp_path: Path) -> Path:
    """Four frames that say nothing of time, energy and temperature."""
    bare = replace(ethanol, times_fs=None, energies=None, velocities=None)
    ase.io.write(tmp_path / "atoms.traj", [bare.to_atoms(frame) for frame in range(4)])
    return tmp_path / "atoms.traj"


def test_a_log_beside_a_trajectory_tells_its_times(silent: Path) -> None:
    log(silent.parent, HEADER, *ROWS)
    found = read_trajectory(silent)
    assert found.spacing_fs() == pytest.approx(50.0)
    np.testing.assert_allclose(found.energies, [-18.0, -17.0, -16.0, -15.0])
    assert found.temperatures_K is not None


def test_energies_per_atom_become_those_of_the_system(silent: Path) -> None:
    log(silent.parent, HEADER.replace("[eV]", "/N[eV]"), *ROWS)
    np.testing.assert_allclose(read_trajectory(silent).energies, 9 * np.array([-18.0, -17.0, -16.0, -15.0]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [((HEADER, *ROWS[:3]), "has 3 rows for the 4 frames"), (("Step Temp",), "is left aside: .* is no thermo.log")],
)
def test_a_log_of_something_else_is_left_aside_with_a_warning(
    silent: Path, lines: tuple[str, ...], message: str
) -> None:
    log(silent.parent, *lines)
    with pytest.warns(UserWarning, match=message):
        assert read_trajectory(silent).times_fs is None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["thermo_logs", "thermo_logs_b"])
def test_published_logs(shared_dir: Path, tmp_path: Path, name: str) -> None:
    with h5py.File(shared_dir / "fixtures" / "rollouts" / f"{name}.h5") as file:
        for group in file.values():
            (tmp_path / "thermo.log").write_text(group.attrs["raw_log"])
            found = read_thermo_log(tmp_path / "thermo.log")
            columns = (
                found.times_fs * 1e-3,
                found.total_eV,
                found.potential_eV,
                found.kinetic_eV,
                found.temperatures_K,
            )
            for column, key in zip(columns, ("time", "Et", "Ep", "Ek", "T"), strict=True):
                np.testing.assert_allclose(column, group["inputs"][key][: len(found)], rtol=1e-12)
