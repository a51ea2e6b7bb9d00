"""Trajectory, log and restart file of a simulation, written so that they always belong together.

Whenever a restart file is due, trajectory and log are brought to disk first. A run that is continued goes back to
its restart file and cuts the other files behind that step: it writes the same bytes that it wrote before it was
killed, and then what an uninterrupted run would have written.

>>> import tempfile
>>> import ase.io
>>> from ase.build import molecule
>>> from ase.calculators.emt import EMT
>>> from e2former_calc.md.integrators import Langevin
>>> from e2former_calc.md.simulation import Simulation
>>> simulation = Simulation(molecule("H2O"), EMT(), Langevin(0.5, 300.0, 5.0), seed=1)
>>> folder = tempfile.TemporaryDirectory()
>>> files = RecordingFiles(Path(folder.name, "water.h5md"), restart=Path(folder.name, "water.restart"))
>>> with Recording(simulation, files, every=5) as recording:
...     simulation.run(20, observers=recording.observers)
20
>>> len(ase.io.read(files.trajectory, ":"))
5
>>> folder.cleanup()
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.log_file import LogFile
from e2former_calc.md.simulation import Observables, Observer, Simulation
from e2former_calc.md.trajectory import TrajectoryWriter, replica_paths
from e2former_calc.md.trajectory_files import topology_path, write_topology


@dataclass(frozen=True)
class RecordingFiles:
    """Which files are written; None for none.

    Attributes:
        trajectory: .h5md, .extxyz or .traj; for several replicas one file each, see `replica_paths`. Beside .h5md
            files a topology (.pdb) is written.
        log: CSV.
        restart: to continue from.
        precision, compression: of .h5md files, see `H5MDWriter`.
    """

    trajectory: Path | None = None
    log: Path | None = None
    restart: Path | None = None
    precision: str = "float64"
    compression: str | None = None

    def trajectories(self, n_replicas: int) -> list[Path]:
        """One path for each replica, or none."""
        return [] if self.trajectory is None else replica_paths(self.trajectory, n_replicas)


class Recording:
    """Writes what happens in a simulation; use it in a `with` statement and pass `observers` to `Simulation.run`.

    Args:
        simulation: a new one; for `resume` made with the same arguments as the one to be continued.
        files: what is written.
        every, log_every, restart_every: steps between frames, rows of the log and restart files.
        resume: continue from the restart file and cut trajectory and log behind its step.

    Attributes:
        observers: in the right order.

    Raises:
        FileNotFoundError: if a file to be continued is absent.
        H5MDError, OSError: if a file cannot be written or continued.
        RestartError: if the restart file is damaged or belongs to another simulation, and why.
        ValueError: if `resume` is asked for without a restart file, or an interval is below 1.
    """

    def __init__(
        self,
        simulation: Simulation,
        files: RecordingFiles,
        *,
        every: int = 10,
        log_every: int = 100,
        restart_every: int = 1000,
        resume: bool = False,
    ) -> None:
        self.observers = (
            Observer(self._record_frames, every), Observer(self._record_row, log_every),
            Observer(lambda _: self.checkpoint(), restart_every),
        )  # fmt: skip
        self._simulation, self._files = simulation, files
        keep = self._restore() if resume else None
        if not resume:
            # From here on a killed run can be continued, so that no file without a restart file is ever left behind.
            self._save()
        self._topologies = [simulation.topology(i) for i in range(simulation.n_replicas)]
        self._log = None if files.log is None else LogFile(files.log, keep_until=keep)
        self._trajectory: TrajectoryWriter | None = None
        try:
            self._trajectory = self._open_trajectory(keep)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def checkpoint(self) -> None:
        """Bring trajectory and log to disk, then write the restart file.

        Raises:
            OSError: if that fails; the older restart file stays.
        """
        if self._trajectory is not None:
            self._trajectory.commit()
        if self._log is not None:
            self._log.commit()
        self._save()

    def close(self) -> None:
        """Write what is waiting and close the files, without a restart file; further calls do nothing.

        Raises:
            OSError: if a file cannot be written.
        """
        try:
            if self._trajectory is not None:
                self._trajectory.close()
        finally:
            if self._log is not None:
                self._log.close()

    def _restore(self) -> int:
        """Continue the simulation; returns the step up to which frames stay, -1 for none."""
        if self._files.restart is None:
            raise ValueError("`resume` needs `files.restart`, the restart file to continue from")
        self._simulation.restore(self._files.restart)
        return self._simulation.step if self._simulation.step > 0 else -1

    def _save(self) -> None:
        path = self._files.restart
        if path is None:
            return
        try:
            self._simulation.save(path)
        except OSError as error:
            if error.errno is None:
                raise
            remains = "; the one before stays" if path.exists() else ""
            reason = (
                f"cannot write the restart file ({os.strerror(error.errno).lower()}){remains}: make space or choose a "
                "writable folder"
            )
            raise OSError(error.errno, reason, str(path)) from error

    def _open_trajectory(self, keep: int | None) -> TrajectoryWriter | None:
        files, simulation = self._files, self._simulation
        paths = files.trajectories(simulation.n_replicas)
        if not paths:
            return None
        if keep == -1:
            keep = None
        if keep is None:
            for index, path in enumerate(paths):
                if path.suffix == ".h5md":
                    atoms = simulation.atoms(index)
                    write_topology(topology_path(path, len(atoms)), atoms)
        return TrajectoryWriter(
            paths, self._topologies, keep_until=keep, precision=files.precision, compression=files.compression
        )

    def _record_frames(self, simulation: Simulation) -> None:
        if self._trajectory is None:
            return
        for replica, frame in running_frames(simulation, self._topologies).items():
            self._trajectory.append(replica, frame)

    def _record_row(self, simulation: Simulation) -> None:
        if self._log is None:
            return
        table = observable_rows(simulation.observables())
        running = simulation.state.running.tolist()
        for replica, values in enumerate(table):
            if running[replica]:
                self._log.append((simulation.step, 1e-3 * simulation.time_fs, replica, *values))
        self._log.show()


def observable_rows(observables: Observables) -> list[tuple[float, ...]]:
    """For each replica potential, kinetic, total and conserved energy (eV), temperature (K), pressure (bar), volume."""
    columns = (
        observables.potential_energy, observables.kinetic_energy,
        observables.potential_energy + observables.kinetic_energy, observables.conserved_energy,
        observables.temperature_K, observables.pressure_bar, observables.volume,
    )  # fmt: skip
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return [(*row[:5], row[5] if row[6] > 0 else math.nan, row[6] if row[6] > 0 else math.nan) for row in rows]


def running_frames(simulation: Simulation, topologies: list[Topology]) -> dict[int, Frame]:
    """The present frame of every replica that has not been stopped, with one transfer from the device per array."""
    state, observables = simulation.state, simulation.observables()
    arrays = [tensor.cpu().numpy() for tensor in (state.positions, state.velocities, state.forces, state.cell)]
    positions, velocities, forces, cells = arrays
    rows, running = observable_rows(observables), state.running.tolist()
    frames: dict[int, Frame] = {}
    end = 0
    for replica, topology in enumerate(topologies):
        atoms = slice(end, end + len(topology.numbers))
        end = atoms.stop
        if not running[replica]:
            continue
        potential, kinetic, _, conserved, temperature, *_ = rows[replica]
        frames[replica] = Frame(
            step=state.step,
            time_fs=simulation.time_fs,
            positions=positions[atoms],
            cell=cells[replica] if np.any(cells[replica]) else None,
            velocities=velocities[atoms],
            forces=forces[atoms],
            energy=potential,
            kinetic_energy=kinetic,
            conserved_energy=conserved if math.isfinite(conserved) else None,
            temperature_K=temperature,
        )
    return frames
