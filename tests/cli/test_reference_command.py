"""`e2former reference`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import bulk
from click.testing import Result

from .conftest import Run

SHORT = ("--calculator", "emt", "--temperature-K", "300", "--time-ps", "0.05", "--equilibration-ps", "0.01")


@pytest.fixture
def copper(folder: Path) -> Path:
    """A crystal that EMT knows."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=1)
    ase.io.write(folder / "copper.extxyz", atoms)
    return folder / "copper.extxyz"


def table(path: str | Path, name: str = "positions") -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][()]


def failure(result: Result) -> str:
    """The line that says what went wrong."""
    assert result.exit_code == 1, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_a_trajectory_is_written_and_summarised(run: Run, copper: Path) -> None:
    result = run("reference", copper, *SHORT)
    assert result.exit_code == 0, result.output
    assert table("copper-reference.h5").shape == (11, 4, 3)
    for text in ("done", "11, 0.05 ps", "steps/s", "target 300 K"):
        assert text in result.output


def test_drift_is_shown_for_constant_energy(run: Run, copper: Path) -> None:
    result = run("reference", copper, *SHORT, "--ensemble", "nve")
    assert "meV/atom/ps" in result.output


def test_files_are_named_after_what_differs(run: Run, copper: Path, folder: Path) -> None:
    ase.io.write(folder / "silver.extxyz", bulk("Ag", cubic=True))
    several = ("--replicas", 2, "--temperature-K", "400", "--out", "set")
    result = run("reference", copper, "silver.extxyz", *SHORT, *several)
    assert result.exit_code == 0, result.output
    expected = {f"set-{m}-{t}K-{r}.h5" for m in ("copper", "silver") for t in (300, 400) for r in (0, 1)}
    assert {path.name for path in folder.glob("*.h5")} == expected


def test_frames_of_one_file_have_their_index_in_the_name(run: Run, folder: Path) -> None:
    ase.io.write(folder / "metals.extxyz", [bulk("Cu", cubic=True), bulk("Ag", cubic=True)])
    assert run("reference", "metals.extxyz", *SHORT, "--index", ":").exit_code == 0
    assert {path.name for path in folder.glob("*.h5")} == {"reference-metals-0.h5", "reference-metals-1.h5"}


def test_structures_with_the_same_name_are_refused(run: Run, copper: Path) -> None:
    assert "give their files different names" in failure(run("reference", copper, copper, *SHORT))


def test_outputs_are_not_overwritten_by_accident(run: Run, copper: Path) -> None:
    run("reference", copper, *SHORT)
    assert "add --overwrite" in failure(run("reference", copper, *SHORT))
    assert run("reference", copper, *SHORT, "--overwrite").exit_code == 0


def test_a_longer_time_continues_the_file(run: Run, copper: Path) -> None:
    run("reference", copper, *SHORT, "--out", "parts")
    run("reference", copper, *SHORT, "--time-ps", "0.1", "--out", "whole")
    assert run("reference", copper, *SHORT, "--time-ps", "0.1", "--out", "parts", "--resume").exit_code == 0
    np.testing.assert_array_equal(table("parts.h5"), table("whole.h5"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--resume",), "there is nothing to continue, copper-reference.h5 does not exist"),
        (("--resume", "--overwrite"), "--resume continues files and --overwrite replaces them"),
        (("--every-fs", "0.7"), "--every-fs 0.7 must be a multiple of --timestep-fs 0.5"),
        (("--calculator", "nonsense"), "there is no calculator 'nonsense'"),
        (("--calculator-options", "asap_cutoff"), "must be key=value"),
        (("--temperature-K", "-3"), "--temperature-K must be positive, got -3"),
        (("--charge", "1"), "--charge and --multiplicity are for gfn1, gfn2 and models"),
    ],
)
def test_errors_are_one_line(run: Run, copper: Path, options: tuple[str, ...], text: str) -> None:
    assert text in failure(run("reference", copper, *SHORT, *options))


def test_other_settings_are_not_continued(run: Run, copper: Path) -> None:
    run("reference", copper, *SHORT)
    line = failure(run("reference", copper, *SHORT, "--seed", "4", "--friction-per-ps", "2", "--resume"))
    assert "friction_per_ps was 10.0 and is 2.0; seed was 0 and is 4" in line


def test_a_failing_trajectory_is_named_and_the_others_are_kept(run: Run, copper: Path, folder: Path) -> None:
    ase.io.write(folder / "iron.extxyz", bulk("Fe", cubic=True))
    result = run("reference", "iron.extxyz", copper, *SHORT, "--out", "x")
    assert "replica 0 (x-iron.h5): step 0 failed: No EMT-potential for Fe" in failure(result)
    assert len(table("x-copper.h5")) == 11


def command(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, that saves at every restart point."""
    program = (
        "import e2former_calc.reference_md.run as run; from e2former_calc.cli import main\n"
        "if __name__ == '__main__':\n    run.SAVE_INTERVAL_S = run.SAVE_RATIO = 0\n    main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "reference", *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)]
)
def test_an_ended_run_leaves_no_trace(run: Run, copper: Path, number: int, processes: int) -> None:
    options = (*SHORT, "--replicas", processes, "--processes", processes, "--out")
    process = command(copper, *options, "parts", "--time-ps", "1000")
    first = Path("parts.h5" if processes == 1 else "parts-0.h5")
    wait_for(first)
    time.sleep(0.7)
    process.send_signal(number)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == (-9 if number == signal.SIGKILL else 0), output
    assert ("with --resume continues" in output) == (number != signal.SIGKILL)
    # Replicas stop at different frames; all of them are continued beyond the longest.
    frames = max(len(table(path)) for path in Path().glob("parts*.h5"))
    assert len(table(first)) > 0
    whole = (*options, "whole", "--time-ps", frames * 0.005 + 0.05)
    parts = (*options, "parts", "--time-ps", frames * 0.005 + 0.05, "--resume")
    assert [run("reference", copper, *arguments).exit_code for arguments in (whole, parts)] == [0, 0]
    for path in Path().glob("parts*.h5"):
        np.testing.assert_array_equal(table(path), table(str(path).replace("parts", "whole")))


def test_workers_save_and_end_when_the_command_is_killed(run: Run, copper: Path) -> None:
    process = command(copper, *SHORT, "--threads", 2, "--time-ps", "1000", "--out", "orphan")
    wait_for(Path("orphan.h5"))
    time.sleep(0.7)
    process.kill()
    process.communicate(timeout=60)
    time.sleep(1.5)
    frames = len(table("orphan.h5"))
    assert frames > 0
    time.sleep(0.5)
    assert len(table("orphan.h5")) == frames
