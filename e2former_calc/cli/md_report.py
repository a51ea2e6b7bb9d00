"""What `e2former md` shows while it runs: one line per report, and a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from e2former_calc.md.recording import observable_rows
from e2former_calc.md.simulation import Simulation

FS_PER_NS, SECONDS_PER_DAY = 1e6, 86400.0


@dataclass
class Pace:
    """Steps per second since the last report and over the whole run."""

    first_step: int
    total_steps: int
    _start: float = field(default_factory=time.perf_counter)
    _last: tuple[int, float] | None = None

    def since_last(self, step: int) -> float:
        """Steps per second since the last call; NaN where no step was made."""
        now = time.perf_counter()
        before, then = self._last or (self.first_step, self._start)
        self._last = (step, now)
        return (step - before) / (now - then) if step > before else float("nan")

    def overall(self, step: int) -> float:
        """Steps per second since the start."""
        return (step - self.first_step) / (time.perf_counter() - self._start)

    def left(self, step: int) -> str:
        """Expected time to the end as h:mm:ss."""
        rate = self.overall(step)
        if not rate > 0.0:
            return "?"
        return str(tqdm.format_interval((self.total_steps - step) / rate))


class Reporter:
    """Writes a line about the running replicas, means if there are several.

    Args:
        simulation: what is reported on.
        total_steps: number of the last step.
        periodic: whether pressure and volume are shown.
        bar: of a terminal, or None.
    """

    def __init__(self, simulation: Simulation, *, total_steps: int, periodic: bool, bar: Any) -> None:
        self.pace = Pace(simulation.step, total_steps)
        self._periodic, self._bar = periodic, bar
        self._headed = False

    def advance(self, simulation: Simulation) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(simulation.step - self._bar.n)

    def line(self, simulation: Simulation) -> None:
        """Write one line."""
        running = np.array(simulation.state.running.tolist())
        rows = np.array(observable_rows(simulation.observables()))
        chosen = rows[running] if running.any() else rows
        potential, _, total, conserved, temperature, pressure, volume = chosen.mean(axis=0)
        kept = conserved if np.isfinite(conserved) else total
        rate = self.pace.since_last(simulation.step)
        per_day = rate * simulation.integrator.timestep_fs / FS_PER_NS * SECONDS_PER_DAY
        cells = [
            ("step", f"{simulation.step}", 9),
            ("ps", f"{1e-3 * simulation.time_fs:.3f}", 9),
            ("E_pot/eV", f"{potential:.4f}", 14),
            ("E_cons/eV" if np.isfinite(conserved) else "E_tot/eV", f"{kept:.4f}", 14),
            ("T/K", f"{temperature:.1f}", 7),
        ]
        if self._periodic:
            cells += [("P/bar", f"{pressure:.0f}", 9), ("V/Å^3", f"{volume:.1f}", 10)]
        if len(running) > 1:
            cells.append(("runs", f"{int(running.sum())}/{len(running)}", 7))
        cells += [
            ("steps/s", f"{rate:.1f}", 8),
            ("ns/day", f"{per_day:.3f}", 8),
            ("lists", f"{simulation.list_rebuilds}", 6),
            ("left", self.pace.left(simulation.step), 9),
        ]
        if not self._headed:
            tqdm.write(" ".join(f"{name:>{width}}" for name, _, width in cells), file=sys.stdout)
            self._headed = True
        tqdm.write(" ".join(f"{text:>{width}}" for _, text, width in cells).replace("nan", "  -"), file=sys.stdout)
        sys.stdout.flush()


def watched() -> bool:
    """True if somebody watches stderr."""
    return sys.stderr.isatty()


@contextmanager
def reporting(simulation: Simulation, *, total_steps: int, periodic: bool) -> Iterator[Reporter]:
    """A reporter, with a bar if somebody watches stderr."""
    if not watched():
        yield Reporter(simulation, total_steps=total_steps, periodic=periodic, bar=None)
        return
    with tqdm(
        total=total_steps, initial=simulation.step, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False
    ) as bar:
        yield Reporter(simulation, total_steps=total_steps, periodic=periodic, bar=bar)
