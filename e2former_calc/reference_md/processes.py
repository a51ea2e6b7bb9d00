"""Several reference trajectories, side by side in processes.

Each trajectory has a process of its own: what kills one (memory, a crash in compiled code) leaves the others alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from e2former_calc.reference_md.dynamics import error_text
from e2former_calc.reference_md.run import Outcome, Replica, run_replica

THREADS_VARIABLE = "OMP_NUM_THREADS"
REPORT_INTERVAL_S, POLL_S = 0.2, 0.2

Report = Callable[[int, int], None]
"""Called with the position of a replica and the steps it has done."""


def run_replicas(
    replicas: Sequence[Replica],
    *,
    processes: int = 1,
    threads: int = 1,
    resume: bool = False,
    report: Report = lambda _index, _step: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Run trajectories, at most `processes` at a time.

    The number of threads of compiled libraries can only be set before they are loaded. Therefore everything
    runs in new processes, unless one at a time is wanted and the environment sets the same number already.

    Args:
        replicas: what to run.
        processes: how many at a time.
        threads: of each.
        resume: continue files that exist.
        report: called now and then.
        interrupted: looked at now and then; when true, everything is saved and the runs end.

    Returns:
        How each of them ended, in their order; nothing is raised for one that fails.
    """
    if min(processes, len(replicas)) <= 1 and os.environ.get(THREADS_VARIABLE) == str(threads):
        return [
            _run_here(replica, resume, lambda step, index=index: report(index, step), interrupted)  # type: ignore[misc]
            for index, replica in enumerate(replicas)
        ]
    pool = _Pool(replicas, processes, threads, resume)
    try:
        return pool.run(report, interrupted)
    finally:
        pool.kill()


def _run_here(
    replica: Replica, resume: bool, report: Callable[[int], None], interrupted: Callable[[], bool]
) -> Outcome:
    if interrupted():
        return Outcome("stopped", "before the first step")
    try:
        return run_replica(replica, resume=resume, report=report, interrupted=interrupted)
    except Exception as error:  # the other trajectories shall go on
        return Outcome("failed", error_text(error))


@dataclass(frozen=True)
class _Running:
    index: int
    process: SpawnProcess


class _Pool:
    def __init__(self, replicas: Sequence[Replica], processes: int, threads: int, resume: bool) -> None:
        self._replicas, self._processes, self._threads, self._resume = replicas, processes, threads, resume
        self._waiting = list(range(len(replicas)))
        self._running: dict[Connection, _Running] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._stopping = False

    def run(self, report: Report, interrupted: Callable[[], bool]) -> list[Outcome]:
        """Start, listen, stop; until all have ended."""
        while self._waiting or self._running:
            if self._stopping or interrupted():
                self._stop()
            while self._waiting and len(self._running) < self._processes:
                self._begin(self._waiting.pop(0))
            for connection in wait(list(self._running), POLL_S):
                self._stopping = self._stopping or interrupted()
                self._listen(connection, report)  # type: ignore[arg-type]
        return [self._outcomes[index] for index in range(len(self._replicas))]

    def kill(self) -> None:
        """End what still runs; the files stay as they were saved last."""
        for running in self._running.values():
            running.process.kill()
            running.process.join()

    def _stop(self) -> None:
        self._stopping = True
        for index in self._waiting:
            self._outcomes[index] = Outcome("stopped", "before the first step")
        self._waiting = []
        for running in self._running.values():
            running.process.terminate()

    def _begin(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(self._replicas[index], self._resume, self._threads, there), daemon=True
        )
        process.start()
        there.close()
        self._running[here] = _Running(index, process)

    def _listen(self, connection: Connection, report: Report) -> None:
        running = self._running[connection]
        try:
            message = connection.recv()
        except EOFError:
            running.process.join()
            # A process that is asked to stop while it starts ends at once.
            status = "stopped" if self._stopping else "failed"
            died = Outcome(status, f"its process ended with exit code {running.process.exitcode}")
            self._outcomes.setdefault(running.index, died)
            del self._running[connection]
            connection.close()
            return
        if isinstance(message, Outcome):
            self._outcomes[running.index] = message
        else:
            report(running.index, message)


def _work(replica: Replica, resume: bool, threads: int, connection: Connection) -> None:
    """Run one trajectory in this process, which is ours alone: environment and signals may be set."""
    os.environ[THREADS_VARIABLE] = str(threads)
    stop: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    last = [0.0]

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except OSError:  # the parent is gone
            stop.append(0)

    def report(step: int) -> None:
        if time.monotonic() - last[0] >= REPORT_INTERVAL_S:
            last[0] = time.monotonic()
            send(step)

    send(_run_here(replica, resume, report, lambda: bool(stop)))
