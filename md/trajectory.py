"""Trajectories of a running simulation, written by a thread while the next steps are made.

Every replica has its own file (`run-0.h5md`, `run-1.h5md`, ...; a single one is `run.h5md`): MDAnalysis, ase.io and
OVITO know no dimension of replicas, a replica that was stopped simply ends, and files can be moved and deleted one
by one. Frames wait in a queue of bounded length: if the disk is slower than the simulation, the simulation waits,
and no frame is ever dropped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from e2former_calc.md.frame import Frame, Topology
from e2former_calc.md.trajectory_files import FrameFile, check_suffix, frame_bytes, open_frame_file

QUEUE_BYTES = 2**26
"""Memory that waiting frames may take."""
MAX_WAITING = 256

Job = tuple[int, Frame] | threading.Event | None


def replica_paths(path: Path, n_replicas: int) -> list[Path]:
    """File of each replica: the path itself for one, else with "-0", "-1", ... before the suffix.

    Raises:
        ValueError: for a suffix that stands for no format.
    """
    check_suffix(path)
    return [path] if n_replicas == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(n_replicas)]


class TrajectoryWriter:
    """Writes one trajectory per replica in the background; use it in a `with` statement.

    Args:
        paths: one file for each replica; the suffix is the format.
        topologies: of each replica.
        keep_until: continue existing files behind this step; None begins new ones.
        precision, compression: of .h5md files, see `H5MDWriter`.
        waiting: frames that may wait; by default as many as take 64 MiB, but at most 256.

    Raises:
        H5MDError, OSError: if a file cannot be opened or continued.
        ValueError: for a suffix that stands for no format.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        topologies: Sequence[Topology],
        *,
        keep_until: int | None = None,
        precision: str = "float64",
        compression: str | None = None,
        waiting: int | None = None,
    ) -> None:
        self._files: list[FrameFile] = []
        self._error: BaseException | None = None
        try:
            for path, topology in zip(paths, topologies, strict=True):
                self._files.append(
                    open_frame_file(path, topology, keep_until=keep_until, precision=precision, compression=compression)
                )
        except BaseException:
            self._close_files()
            raise
        largest = max(frame_bytes(topology) for topology in topologies)
        limit = max(2, min(MAX_WAITING, QUEUE_BYTES // largest)) if waiting is None else waiting
        self._jobs: queue.Queue[Job] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._work, name="trajectory", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, replica: int, frame: Frame) -> None:
        """Hand over a frame, whose arrays must not change any more; waits while the queue is full.

        Raises:
            OSError: if writing has failed since the last call, for instance on a full disk.
        """
        self._put((replica, frame))

    def commit(self) -> None:
        """Wait until all frames are on disk.

        Raises:
            OSError: if they cannot be written.
        """
        done = threading.Event()
        self._put(done)
        done.wait()
        self._check()

    def close(self) -> None:
        """Write what is waiting and close all files; further calls do nothing.

        Raises:
            OSError: if a file cannot be written, unless an earlier call said so.
        """
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
            self._check()

    def _put(self, job: Job) -> None:
        self._check()
        if not self._thread.is_alive():
            raise ValueError("the trajectory is closed")
        self._jobs.put(job)

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        """Body of the thread; after an error it throws frames away, so that nobody waits for ever."""
        failed = False
        while (job := self._jobs.get()) is not None:
            try:
                if not failed:
                    self._do(job)
            except BaseException as error:
                failed, self._error = True, error
            if isinstance(job, threading.Event):
                job.set()
        try:
            self._close_files()
        except BaseException as error:
            self._error = self._error if failed else error

    def _do(self, job: Job) -> None:
        if isinstance(job, threading.Event):
            for file in self._files:
                file.commit()
        elif job is not None:
            replica, frame = job
            self._files[replica].append(frame)

    def _close_files(self) -> None:
        """Close all files, also if some of them fail; then the first error is raised."""
        errors = []
        for file in self._files:
            try:
                file.close()
            except (OSError, ValueError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
