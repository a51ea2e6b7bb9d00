"""Output files of `e2former md`: names, what may be replaced, the structure that a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms

from e2former_calc.cli.output import check_outputs, with_suffix
from e2former_calc.cli.structures import read_frames, write_extxyz
from e2former_calc.md.recording import RecordingFiles
from e2former_calc.md.simulation import Simulation
from e2former_calc.md.trajectory_files import check_suffix, topology_path


@dataclass(frozen=True)
class OutputFiles:
    """All files that a run writes.

    Attributes:
        trajectories: one for each replica.
        topologies: beside them, where a trajectory needs one.
        recording: trajectory, log and restart file.
        final: last structures of all replicas.
        relaxed: structure that the run starts from, with --relax.
    """

    trajectories: list[Path]
    topologies: list[Path]
    recording: RecordingFiles
    restart: Path
    final: Path
    summary: Path
    relaxed: Path | None

    @staticmethod
    def of(
        prefix: Path, trajectory: Path | None, *, replicas: int, relax: bool, storage: RecordingFiles
    ) -> OutputFiles:
        """Names from the prefix; `storage` says how a trajectory is stored.

        Raises:
            ValueError: for a prefix that is a folder, or a trajectory of unknown format.
        """
        chosen = trajectory or with_suffix(prefix, ".h5md")
        check_suffix(chosen)
        restart = with_suffix(prefix, ".restart")
        recording = RecordingFiles(
            chosen, with_suffix(prefix, ".csv"), restart, precision=storage.precision, compression=storage.compression
        )
        paths = recording.trajectories(replicas)
        files = OutputFiles(
            trajectories=paths,
            topologies=[topology_path(path, 0) for path in paths if path.suffix == ".h5md"],
            recording=recording,
            restart=restart,
            final=with_suffix(prefix, "-final.extxyz"),
            summary=with_suffix(prefix, "-summary.json"),
            relaxed=with_suffix(prefix, "-relaxed.extxyz") if relax else None,
        )
        names = [path.resolve() for path in files.all()]
        if len(set(names)) < len(names):
            raise ValueError(f"--trajectory {chosen} is also the name of another output: choose another one")
        return files

    def all(self) -> list[Path]:
        """Every file."""
        log = [] if self.recording.log is None else [self.recording.log]
        relaxed = [] if self.relaxed is None else [self.relaxed]
        return [*self.trajectories, *self.topologies, *log, self.restart, self.final, self.summary, *relaxed]

    def check(self, structure: Path, *, resume: bool, overwrite: bool) -> bool:
        """Refuse what would be lost; returns whether there is a run to be continued.

        Raises:
            FileExistsError: if files of another run are there.
            OSError: if a folder is absent or not writable.
            ValueError: if both `resume` and `overwrite` are asked for, or an output is the structure.
        """
        if resume and overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it: give one of them")
        continues = resume and self.restart.is_file()
        # A run that was killed while it relaxed left nothing else; it begins again.
        lost = [path for path in self.all() if not (resume and path == self.relaxed)]
        check_outputs(lost, inputs=[structure], overwrite=overwrite or continues)
        return continues

    def remove(self) -> None:
        """Delete the files of an earlier run, the restart file first; the relaxed structure is the new one already."""
        for path in (self.restart, *self.all()):
            if path != self.relaxed:
                path.unlink(missing_ok=True)


def relaxed_structure(path: Path, atoms: Atoms, *, continues: bool, relax: Callable[[Atoms], None]) -> Atoms:
    """The structure with the positions of the file `path`, which is made first unless a run is continued.

    A run starts from what the file says, and continues from the same, to the last bit.

    Raises:
        FileNotFoundError: if the file of a run that is continued is absent.
        ValueError: if the relaxation fails, or the file cannot be read.
    """
    start: Atoms = atoms.copy()
    if not continues:
        atoms = atoms.copy()
        relax(atoms)
        write_extxyz(path, [Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=atoms.info)])
    start.positions = read_frames(path, "-1")[0].atoms.positions
    return start


def write_final(path: Path, simulation: Simulation) -> None:
    """Write the last structures of all replicas; of a stopped one the last good structure and the reason.

    Raises:
        OSError: if they cannot be written.
    """
    images = []
    for replica, stop in enumerate(simulation.stops()):
        atoms = simulation.atoms(replica)
        atoms.info["replica"] = replica
        if stop is not None:
            atoms.info.update(stopped=stop.message, stopped_at_step=stop.step)
        images.append(atoms)
    write_extxyz(path, images)
