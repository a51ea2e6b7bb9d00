"""The suites: fixed lists of measurements with the numbers that they should reach, for a CPU and for a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from e2former_calc.benchmark.case import Case, ModelSpec
from e2former_calc.benchmark.comparison import ComparisonCase, ComparisonResult
from e2former_calc.benchmark.implementations import IMPLEMENTATIONS, is_installed
from e2former_calc.benchmark.peer import PeerSpec
from e2former_calc.benchmark.runner import (
    BenchmarkError,
    builtin_structure,
    run_comparison_in_subprocess,
    run_precision_in_subprocess,
    run_step_in_subprocess,
)
from e2former_calc.benchmark.step import StepCase, StepResult

PUBLISHED, COMPACT = "256x4", "64x3"
MOLECULE: Final = "Ac-Ala3-NHMe"
REPLICAS: Final = 64
MEMORY_OF: Final = ("baseline", "fused", "auto")


@dataclass(frozen=True)
class Criterion:
    """One number of a measurement and what it should be.

    Attributes:
        quantity, unit: what it is.
        limit: the aim.
        value: reads it from a result; None where the measurement has no such number.
        at_least: whether more is better.
        peer: whose absence explains that there is no number.
    """

    quantity: str
    unit: str
    limit: float
    value: Callable[[Any], float | None]
    at_least: bool = False
    peer: str = ""


@dataclass(frozen=True)
class Entry:
    """One measurement of a suite."""

    work: str
    run: Callable[[], Any]
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True)
class Finding:
    """What became of one criterion.

    Attributes:
        work, quantity, unit, limit, at_least: as in entry and criterion.
        value: the measured number, or None.
        remark: why there is none.
    """

    work: str
    quantity: str
    unit: str
    limit: float
    at_least: bool
    value: float | None
    remark: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim is met; None without a number."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form with `reached`."""
        return asdict(self) | {"reached": self.reached}


@dataclass(frozen=True)
class Pair:
    """Two results that are judged by their ratio."""

    first: Any
    second: Any

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"first": self.first.to_dict(), "second": self.second.to_dict()}


def run_entries(entries: tuple[Entry, ...]) -> Iterator[tuple[Any, list[Finding]]]:
    """Measure one entry after the other; a result is None if its measurement failed."""
    for entry in entries:
        try:
            result, remark = entry.run(), ""
        except BenchmarkError as error:
            result, remark = None, str(error)
        yield result, [_finding(entry.work, criterion, result, remark) for criterion in entry.criteria]


def _finding(work: str, criterion: Criterion, result: Any, remark: str) -> Finding:
    value = None if result is None else criterion.value(result)
    absent = result.missing.get(criterion.peer) if criterion.peer and isinstance(result, ComparisonResult) else None
    missing = "" if value is not None else remark or absent or "not measured here"
    return Finding(
        work, criterion.quantity, criterion.unit, criterion.limit, criterion.at_least, value=value, remark=missing
    )


def cpu_suite(bundled: ModelSpec, *, seed: int = 0, peers: tuple[PeerSpec, ...] = ()) -> tuple[Entry, ...]:
    """Measurements for a processor, one thread unless stated.

    Args:
        bundled: the trained model for `MOLECULE`.
        seed: of random weights and displacements.
        peers: measured beside the compact network, which is of their size.
    """
    published, compact = (ModelSpec({"device": "cpu"}, shape, seed) for shape in (PUBLISHED, COMPACT))
    installed = ("gfn2",) if is_installed("gfn2") else ()
    fused = _of("fused")
    return (
        Entry(
            f"{PUBLISHED}, aspirin", _comparison("aspirin", published, IMPLEMENTATIONS, rounds=10, seconds=15.0),
            (Criterion("faster than the baseline", "x", 3.2, fused("ratio"), at_least=True),),
        ),
        Entry(
            f"{PUBLISHED}, 216 waters", _comparison("water-216", published, ("baseline", "fused"), rounds=2),
            (
                Criterion("faster than the baseline", "x", 6.5, fused("ratio"), at_least=True),
                Criterion("memory", "MB", 600.0, fused("memory")),
            ),
        ),
        Entry(
            f"{COMPACT}, {MOLECULE}",
            _comparison(MOLECULE, compact, IMPLEMENTATIONS, rounds=20, seconds=15.0, peers=peers),
            (Criterion("energy and forces", "ms", 6.0, _time("fused")), *_faster_than_peers(peers)),
        ),
        Entry(
            f"{COMPACT}, 216 waters",
            _comparison("water-216", compact, IMPLEMENTATIONS, rounds=3, seconds=30.0, peers=peers),
            (Criterion("energy and forces", "ms", 130.0, _time("fused")), *_faster_than_peers(peers)),
        ),
        Entry(
            f"{bundled.label}, {MOLECULE}",
            _comparison(MOLECULE, bundled, IMPLEMENTATIONS + installed, rounds=20, seconds=15.0),
            (
                Criterion("energy and forces", "ms", 6.5, _time("fused")),
                Criterion("faster than GFN2-xTB", "x", 4.0, _faster_than("gfn2"), at_least=True),
            ),
        ),
        _engine_entry(bundled),
        Entry(
            f"{COMPACT}, 216 waters, 2 threads", _two_threads("water-216", compact),
            (Criterion("faster than 1 thread", "x", 1.6, _faster_with_threads, at_least=True),),
        ),
        _precision_entry(bundled),
    )  # fmt: skip


def gpu_suite(bundled: ModelSpec, *, seed: int = 0) -> tuple[Entry, ...]:
    """Measurements for an accelerator; arguments as in `cpu_suite`."""
    published = ModelSpec({"device": "cuda"}, PUBLISHED, seed)
    sizes = (("water-343", 3.0, ("baseline", "auto")), ("water-3375", 2.0, ("auto",)), ("water-17576", 2.0, ("auto",)))
    throughput = tuple(
        Entry(
            f"{PUBLISHED}, {name}", _comparison(name, published, names, rounds=10, seconds=60.0),
            (Criterion("time per atom and step", "us", limit, _time_per_atom("auto")),),
        )
        for name, limit, names in sizes
    )  # fmt: skip
    return (
        *throughput,
        Entry(
            f"{PUBLISHED}, water-35937", _comparison("water-35937", published, ("auto",), rounds=2),
            (Criterion("memory", "MB", 139_000.0, _of("auto")("memory")),),
        ),
        Entry(
            f"{bundled.label}, {MOLECULE}, MD", lambda: _steps(bundled, replicas=1, execution="cuda-graph"),
            (Criterion("steps per second", "1/s", 1500.0, lambda result: 1e6 / result.step_us, at_least=True),),
        ),
        Entry(
            f"{bundled.label}, {MOLECULE}, MD, {REPLICAS} replicas",
            lambda: Pair(
                _steps(bundled, replicas=1, execution="cuda-graph"),
                _steps(bundled, replicas=REPLICAS, execution="cuda-graph"),
            ),
            (Criterion("throughput of one replica", "x", 20.0, _replica_gain, at_least=True),),
        ),
        _precision_entry(bundled),
    )  # fmt: skip


def _engine_entry(bundled: ModelSpec) -> Entry:
    return Entry(
        f"{bundled.label}, {MOLECULE}, MD", lambda: _steps(bundled, replicas=1, execution="eager"),
        (
            Criterion("list and integrator", "us", 50.0, lambda result: result.engine_us),
            Criterion("share of a step", "%", 10.0, lambda result: 100.0 * result.engine_share),
        ),
    )  # fmt: skip


def _precision_entry(bundled: ModelSpec) -> Entry:
    return Entry(
        f"{bundled.label}, {MOLECULE}, against float64",
        lambda: run_precision_in_subprocess(_case(MOLECULE, bundled)),
        (
            Criterion("force error", "eV/Å", 1e-5, lambda result: result.force),
            Criterion("energy error per atom", "eV", 1e-6, lambda result: result.energy),
            Criterion("force error of the tables", "eV/Å", 1e-6, lambda result: result.table_force),
            Criterion("energy error of the tables", "eV", 1e-7, lambda result: result.table_energy),
        ),
    )


def _case(structure: str, model: ModelSpec, **timing: Any) -> Case:
    return Case.of(structure, builtin_structure(structure), model, **timing)


def _comparison(
    structure: str, model: ModelSpec, implementations: tuple[str, ...], *, rounds: int, seconds: float = 1.0,
    peers: tuple[PeerSpec, ...] = (),
) -> Callable[[], ComparisonResult]:  # fmt: skip
    def run() -> ComparisonResult:
        case = _case(structure, model, repeats=rounds, seconds=seconds)
        return run_comparison_in_subprocess(ComparisonCase(case, implementations, peers), memory_of=MEMORY_OF)

    return run


def _two_threads(structure: str, model: ModelSpec) -> Callable[[], Pair]:
    def run() -> Pair:
        if usable_cores() < 2:
            raise BenchmarkError("2 threads need 2 cores, this process may use 1")
        found = []
        for threads in (1, 2):
            case = ComparisonCase(_case(structure, model, threads=threads, repeats=10, seconds=20.0), ("fused",))
            found.append(run_comparison_in_subprocess(case, memory_of=()))
        return Pair(*found)

    return run


def _steps(model: ModelSpec, *, replicas: int, execution: Any) -> StepResult:
    case = _case(MOLECULE, model, repeats=8)
    return run_step_in_subprocess(StepCase(case, replicas, execution))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of(implementation: str) -> Callable[[str], Callable[[ComparisonResult], float | None]]:
    def attribute(name: str) -> Callable[[ComparisonResult], float | None]:
        return lambda result: getattr(result.of(implementation), name, None)

    return attribute


def _time(implementation: str) -> Callable[[ComparisonResult], float | None]:
    def median(result: ComparisonResult) -> float | None:
        found = result.of(implementation)
        return None if found is None else found.energy_forces.median

    return median


def _time_per_atom(implementation: str) -> Callable[[ComparisonResult], float | None]:
    def microseconds(result: ComparisonResult) -> float | None:
        found = result.of(implementation)
        return None if found is None else 1e3 * found.energy_forces.median / result.atoms

    return microseconds


def _faster_than(peer: str) -> Callable[[ComparisonResult], float | None]:
    return lambda result: result.times_faster("fused", peer)


def _faster_than_peers(peers: tuple[PeerSpec, ...]) -> tuple[Criterion, ...]:
    return tuple(
        Criterion(f"faster than {peer.name}", "x", 1.0, _faster_than(peer.name), at_least=True, peer=peer.name)
        for peer in peers
    )


def _faster_with_threads(pair: Pair) -> float:
    one, two = (result.contenders[0].energy_forces.median for result in (pair.first, pair.second))
    return float(one / two)


def _replica_gain(pair: Pair) -> float:
    return float(REPLICAS * pair.first.step_us / pair.second.step_us)
