"""Time and memory of the analysis of trajectories, beside `InterRDF` of MDAnalysis on the same data if it is installed.

Run as a program it measures one case: reads it as JSON from stdin, writes the result as JSON to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from e2former_calc.analysis.distances import distance_distribution
from e2former_calc.analysis.dynamics import diffusion
from e2former_calc.analysis.pair_counts import Pair, RdfSettings
from e2former_calc.analysis.rdf import radial_distributions
from e2former_calc.analysis.stability import bond_reference, bond_stability
from e2former_calc.analysis.trajectory import Trajectory
from e2former_calc.benchmark.memory import peak_memory, reset_peak_memory, resident_memory
from e2former_calc.benchmark.runner import BenchmarkError, builtin_structure

OTHER: Final = "MDAnalysis"
H_OF_R_RANGE_A: Final = 15.0
G_OF_R_RANGE_A: Final = 6.0
N_BINS: Final = 500
TREMBLE_A: Final = 0.1
STEP_A: Final = 0.05
"""How far atoms of a periodic system wander between frames."""

FRAME_SPACING_FS: Final = 50.0


@dataclass(frozen=True)
class AnalysisCase:
    """What is analysed.

    Attributes:
        structure: built-in structure that the frames are made from.
        frames: number of frames.
        repeats: timed calls of each kind.
        seed: of the motion.
    """

    structure: str
    frames: int
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("frames", 20), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class AnalysisResult:
    """One observable of one case.

    Attributes:
        structure, frames: as in the case.
        atoms: number of atoms.
        observable: what was computed.
        seconds: median wall time.
        memory_increase: largest resident memory on top of the trajectory, in MB.
        other_seconds: median wall time of MDAnalysis for the same histogram; None if it has none or is not installed.
        other_memory_increase: the same for its memory.
        speedup: median over the repeats of the ratio of both times, each pair measured in a row.
        largest_difference: between both histograms, relative to the largest count.
    """

    structure: str
    frames: int
    atoms: int
    observable: str
    seconds: float
    memory_increase: float
    other_seconds: float | None = None
    other_memory_increase: float | None = None
    speedup: float | None = None
    largest_difference: float | None = None


DEFAULT_CASES: Final = (AnalysisCase("Ac-Ala3-NHMe", 100_000), AnalysisCase("water-216", 1_000))
"""42 atoms without a cell, and 648 periodic ones."""


def run_analysis_in_subprocess(case: AnalysisCase) -> list[AnalysisResult]:
    """Measure one case in a fresh Python process.

    Raises:
        BenchmarkError: if it fails or dies.
    """
    process = subprocess.run(
        [sys.executable, "-P", "-m", "e2former_calc.benchmark.analysis"],
        input=json.dumps(asdict(case)),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message; probably out of memory"]
        raise BenchmarkError(f"{case.structure}, {case.frames} frames: {lines[-1]}")
    return [AnalysisResult(**entry) for entry in json.loads(process.stdout)]


def measure_analysis(case: AnalysisCase) -> list[AnalysisResult]:
    """Time every observable of a case in this process.

    Raises:
        ValueError: for an unknown structure.
    """
    trajectory = moving(builtin_structure(case.structure), case.frames, seed=case.seed)
    calls = _periodic_calls(trajectory) if trajectory.is_periodic else _molecular_calls(trajectory)
    others = _other_calls(trajectory) if find_spec(OTHER) is not None else {}
    return [_measure(case, trajectory, name, (call, others.get(name))) for name, call in calls.items()]


def moving(atoms: Atoms, n_frames: int, *, seed: int) -> Trajectory:
    """Frames of a structure: atoms of a molecule tremble, those of a periodic system wander.

    Positions have the precision of single numbers, so that programs that store these see the same data.
    """
    rng = np.random.default_rng(seed)
    periodic = bool(atoms.pbc.all())
    positions = rng.normal(scale=STEP_A if periodic else TREMBLE_A, size=(n_frames, len(atoms), 3))
    if periodic:
        np.cumsum(positions, axis=0, out=positions)
    positions += atoms.positions
    if periodic:
        lengths = np.diagonal(atoms.cell.array)
        positions %= lengths
    for frame in range(n_frames):
        positions[frame] = positions[frame].astype(np.float32)
    return Trajectory(
        positions=positions,
        numbers=atoms.numbers,
        cell=atoms.cell.array if periodic else None,
        times_fs=FRAME_SPACING_FS * np.arange(n_frames),
    )


Call = Callable[[], Any]


def _molecular_calls(trajectory: Trajectory) -> dict[str, Call]:
    known = bond_reference(trajectory.read(0, 20))
    return {
        "h(r), all pairs of elements": lambda: distance_distribution(
            trajectory, r_max_A=H_OF_R_RANGE_A, n_bins=N_BINS
        ).total.numerators.sum(axis=0),
        "bond criterion": lambda: bond_stability(trajectory, known),
    }


def _periodic_calls(trajectory: Trajectory) -> dict[str, Call]:
    pairs = _pairs(trajectory)
    settings = RdfSettings(r_max_A=G_OF_R_RANGE_A, n_bins=N_BINS)
    oxygen = np.flatnonzero(trajectory.numbers == trajectory.numbers.max())
    longest_ps = 0.2 * len(trajectory) * FRAME_SPACING_FS * 1e-3
    return {
        "g(r), all pairs of elements": lambda: np.stack(
            [part.g.values() for part in radial_distributions(trajectory, pairs, settings)]
        ),
        "diffusion": lambda: diffusion(trajectory, oxygen, fit_window_ps=(0.4 * longest_ps, longest_ps)),
    }


def _pairs(trajectory: Trajectory) -> list[Pair]:
    symbols = [chemical_symbols[number] for number in np.unique(trajectory.numbers)]
    return [(a, b) for k, a in enumerate(symbols) for b in symbols[k:]]


def _other_calls(trajectory: Trajectory) -> dict[str, Call]:
    """The same histograms by MDAnalysis, from positions in memory."""
    mda, memory = import_module("MDAnalysis"), import_module("MDAnalysis.coordinates.memory")
    universe = mda.Universe.empty(trajectory.n_atoms, trajectory=False)
    universe.add_TopologyAttr("names", trajectory.symbols)
    box = None
    if trajectory.is_periodic:
        box = np.array([*np.diagonal(trajectory.cells()[0]), 90.0, 90.0, 90.0], dtype=np.float32)
    universe.load_new(trajectory.positions.astype(np.float32), format=memory.MemoryReader, dimensions=box)
    interrdf = import_module("MDAnalysis.analysis.rdf").InterRDF
    if not trajectory.is_periodic:
        everything = universe.atoms
        return {
            "h(r), all pairs of elements": lambda: interrdf(
                everything, everything, nbins=N_BINS, range=(1e-6, H_OF_R_RANGE_A), exclusion_block=(1, 1), norm="none"
            ).run().results.rdf
        }  # fmt: skip
    groups = [tuple(universe.select_atoms(f"name {symbol}") for symbol in pair) for pair in _pairs(trajectory)]
    return {
        "g(r), all pairs of elements": lambda: np.stack([
            interrdf(
                *group, nbins=N_BINS, range=(1e-6, G_OF_R_RANGE_A),
                exclusion_block=(1, 1) if group[0] is group[1] or group[0] == group[1] else None,
            ).run().results.rdf
            for group in groups
        ])
    }  # fmt: skip


def _measure(case: AnalysisCase, trajectory: Trajectory, name: str, calls: tuple[Call, Call | None]) -> AnalysisResult:
    """Both calls in turn, so that they see the same load of the machine."""
    own, other = calls
    times: list[tuple[float, float]] = []
    peaks = [0.0, 0.0]
    difference = None
    for _ in range(case.repeats):
        first, peaks[0], found = _timed(own, peaks[0])
        second = float("nan")
        if other is not None:
            second, peaks[1], expected = _timed(other, peaks[1])
            difference = _difference(found, expected)
        times.append((first, second))
    common: Mapping[str, Any] = {
        "structure": case.structure, "frames": case.frames, "atoms": trajectory.n_atoms, "observable": name,
        "seconds": float(np.median([first for first, _ in times])), "memory_increase": peaks[0],
    }  # fmt: skip
    if other is None:
        return AnalysisResult(**common)
    return AnalysisResult(
        **common,
        other_seconds=float(np.median([second for _, second in times])),
        other_memory_increase=peaks[1],
        speedup=float(np.median([second / first for first, second in times])),
        largest_difference=difference,
    )


def _timed(call: Call, peak: float) -> tuple[float, float, Any]:
    """Wall time in s, the larger one of `peak` and the memory in MB that the call took, and what it returned."""
    before = resident_memory()
    reset_peak_memory()
    start = time.perf_counter()
    value = call()
    seconds = time.perf_counter() - start
    return seconds, max(peak, peak_memory() - before), value


def _difference(found: Any, expected: Any) -> float:
    """Between histograms that are normalised differently: each is divided by its sum."""
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (found, expected))
    shares = [values / values.sum(axis=1, keepdims=True) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max() / shares[1].max())


def main() -> None:
    """Measure the case on stdin."""
    case = AnalysisCase(**json.load(sys.stdin))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = measure_analysis(case)
    json.dump([asdict(result) for result in results], sys.stdout)


if __name__ == "__main__":
    main()
