"""Other packages, each in the Python environment where it is installed: a process that answers on a pipe."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from ase import Atoms
from jaxtyping import Float

from e2former_calc.benchmark import peer_worker
from e2former_calc.benchmark.processes import how_it_ended, thread_variables

PEER_NAMES = tuple(peer_worker.BUILDERS)

START_SECONDS, CALL_SECONDS, END_SECONDS = 900.0, 600.0, 10.0
"""How long a peer may take to build and compile its model, for one call, and to end."""


class PeerError(RuntimeError):
    """A peer cannot be measured."""


@dataclass(frozen=True)
class PeerSpec:
    """A peer and where it is installed.

    Attributes:
        name: one of `PEER_NAMES`.
        python: the interpreter of its environment.

    Raises:
        ValueError: for another name.
    """

    name: str
    python: str

    def __post_init__(self) -> None:
        if self.name not in PEER_NAMES:
            raise ValueError(f"no peer {self.name!r}: choose from {', '.join(PEER_NAMES)}")

    @staticmethod
    def parse(text: str) -> PeerSpec:
        """Read NAME=PYTHON, such as mace=/opt/mace/bin/python.

        Raises:
            ValueError: for anything else.
        """
        name, _, python = text.partition("=")
        if not python:
            raise ValueError(f"a peer is NAME=PYTHON, such as mace=/opt/mace/bin/python; got {text!r}")
        return PeerSpec(name, python)


def check_peers(peers: tuple[PeerSpec, ...]) -> None:
    """Make sure that the peers are different ones.

    Raises:
        ValueError: if a name is given twice.
    """
    names = [peer.name for peer in peers]
    if len(set(names)) < len(names):
        raise ValueError(f"peers must be different ones, got {', '.join(names)}")


class Peer:
    """A peer at work on one structure; a context manager that ends its process.

    Attributes:
        version: of the package.
        description: what it evaluates, in words.
    """

    def __init__(self, spec: PeerSpec, atoms: Atoms, *, threads: int, device: str = "cpu", seed: int = 0) -> None:
        """Start the interpreter and build the model.

        Args:
            spec: name and interpreter.
            atoms: elements, cell and periodicity; positions of later calls differ.
            threads: of the process, which also inherits priority and processor from this one.
            device: such as cpu or cuda.
            seed: of the weights.

        Raises:
            PeerError: if there is no such interpreter, or no such package in it, or anything else fails.
        """
        self._name = spec.name
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = self._started(spec.python, threads)
        content = {
            "numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(), "pbc": atoms.pbc.tolist(),
        }  # fmt: skip
        request = {"peer": spec.name, "atoms": content, "threads": threads, "device": device, "seed": seed}
        try:
            answer = self._asked(request, START_SECONDS)
            if not {"version", "description"} <= set(answer):
                raise self._error(f"answered {_shortened(json.dumps(answer))!r}, not its version and what it evaluates")
        except PeerError:
            self.close()
            raise
        self.version, self.description = str(answer["version"]), str(answer["description"])

    def energy_forces(self, positions: Float[np.ndarray, "atoms 3"]) -> tuple[float, Float[np.ndarray, "atoms 3"]]:
        """Wall time in ms, by the clock of the peer, of energy and forces with the neighbour list, and the forces.

        Args:
            positions: Å.

        Raises:
            PeerError: if the process ends, takes too long, or answers something else.
        """
        answer = self._asked({"positions": positions.tolist()}, CALL_SECONDS)
        try:
            seconds, forces = float(answer["seconds"]), np.array(answer["forces"], dtype=float)
        except (KeyError, TypeError, ValueError):
            raise self._error(f"answered {_shortened(json.dumps(answer))!r}, not seconds and forces") from None
        if not (seconds > 0 and math.isfinite(seconds)):
            raise self._error(f"took {seconds} s, which is no time")
        if forces.shape != positions.shape or not np.isfinite(forces).all():
            raise self._error(f"gave forces of shape {forces.shape}, not finite ones of {positions.shape}")
        return 1e3 * seconds, forces

    def close(self) -> None:
        """End the process."""
        # Closing a pipe to a process that is gone fails, and does all that is needed.
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._messages.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _input(self) -> IO[str]:
        return cast(IO[str], self._process.stdin)

    @property
    def _output(self) -> IO[str]:
        return cast(IO[str], self._process.stdout)

    def _started(self, python: str, threads: int) -> subprocess.Popen[str]:
        # -I keeps the modules of this folder and the variables of this Python away from the other one.
        command = [python, "-I", str(Path(peer_worker.__file__).resolve())]
        try:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True,
                encoding="utf-8", errors="replace", env={**os.environ, **thread_variables(threads)},
            )  # fmt: skip
        except OSError as error:
            self._messages.close()
            raise self._error(f"cannot run {python!r}: {error.strerror}") from None

    def _asked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one line."""
        line = self._exchanged(json.dumps(request), seconds)
        if not line:
            raise self._error(self._how_it_ended())
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise self._error(f"answered {_shortened(line.strip())!r}, which is not what was asked for")
        if "error" in answer:
            raise self._error(_shortened(" ".join(str(answer["error"]).split()), 300))
        return answer

    def _exchanged(self, line: str, seconds: float) -> str:
        """The next line of the peer, empty if it has ended."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            self._input.write(line + "\n")
            self._input.flush()
            answer = self._output.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise self._error(f"gave no answer within {seconds:g} s")
        return answer

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output"
        self._messages.seek(0)
        return how_it_ended(code, self._messages.read().decode(errors="replace"))

    def _error(self, text: str) -> PeerError:
        return PeerError(f"{self._name}: {text}")


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."
