"""Implementations side by side: the same network and structure, called in turn, so that all see the same load.

In every round all implementations get the same positions, displaced a little from those of the case. Ratios are
formed within rounds. A call starts from positions and ends with forces; the neighbour list is part of it. Before a
short call the same implementation is called once without a clock, because in a simulation it finds its own data in the
cache, not those of another one. Peers in environments of their own are called through their ASE calculators, in
processes with the same number of threads, and timed there; one that fails is left out, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from e2former_calc.benchmark.case import Case, Quantiles
from e2former_calc.benchmark.floor import Floor, floor_of, matrix_product_rate
from e2former_calc.benchmark.implementations import (
    BASELINE,
    Contestant,
    check_implementations,
    contestant,
    peer_contestant,
    system_of,
)
from e2former_calc.benchmark.peer import Peer, PeerError, PeerSpec, check_peers
from e2former_calc.benchmark.timing import MINIMUM_REPEATS, device_name, timed
from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.potential import EnergyPotential

DISPLACEMENT = 0.01
"""Standard deviation (Å) of the displacements of a round."""
SHORT_MS = 300.0
"""Calls below this time are preceded by one that is not timed."""
PEER_WARM_UP = 3
"""Calls after which just-in-time compilers of peers are done."""

Samples = dict[str, list[float]]
"""Times in ms of one implementation, by kind of call: energy_forces and energy."""


@dataclass(frozen=True)
class ComparisonCase:
    """Implementations to compare on one structure.

    Attributes:
        case: structure, model, threads, number of rounds and time for them.
        implementations: the baseline, and names of `implementations.OWN` and `implementations.PEERS`.
        peers: packages in environments of their own.

    Raises:
        ValueError: for names that are unknown, given twice or not installed.
    """

    case: Case
    implementations: tuple[str, ...]
    peers: tuple[PeerSpec, ...] = ()

    def __post_init__(self) -> None:
        check_implementations(self.implementations)
        check_peers(self.peers)

    @property
    def name(self) -> str:
        """Of the structure."""
        return self.case.name

    @property
    def threads(self) -> int:
        """On the host."""
        return self.case.threads

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ComparisonCase:
        """Inverse of `to_dict`."""
        peers = tuple(PeerSpec(**peer) for peer in values["peers"])
        return ComparisonCase(Case.from_dict(values["case"]), tuple(values["implementations"]), peers)


@dataclass(frozen=True)
class Contender:
    """What was measured of one implementation; times in ms.

    Attributes:
        implementation: its name.
        energy_forces: calls for energy and forces.
        energy: calls for the energy alone, or None.
        ratio, energy_ratio: how many times faster it is than the baseline (or than the first implementation if the
            baseline is not compared): the median over rounds.
        force_difference: largest difference of a force component (eV/Å) from the same; None for other methods.
        memory: largest resident memory (MB) beyond that before the model was loaded, or None if not measured.
        samples: calls for energy and forces, one for each round.
        version, description: of a peer, in words.
    """

    implementation: str
    energy_forces: Quantiles
    energy: Quantiles | None
    ratio: float
    energy_ratio: float | None = None
    force_difference: float | None = None
    memory: float | None = None
    samples: tuple[float, ...] = ()
    version: str | None = None
    description: str | None = None

    @property
    def label(self) -> str:
        """Name and version."""
        return self.implementation if self.version is None else f"{self.implementation} {self.version}"


@dataclass(frozen=True)
class ComparisonResult:
    """One structure and one network.

    Attributes:
        name, threads: as in the case.
        model: name of the network.
        atoms: number of atoms.
        neighbors: edges per atom that the network works on.
        rounds: calls of each implementation.
        device: where the network ran.
        peak_gflops: rate of matrix products on this machine, with these threads, in the same process.
        floor: smallest times (ms) at that rate, or None for other architectures than E2Former-V2.
        contenders: in the order of the case, its peers last.
        missing: peers that failed, and why.
    """

    name: str
    model: str
    threads: int
    atoms: int
    neighbors: float
    rounds: int
    device: str
    peak_gflops: float
    floor: Floor | None
    contenders: tuple[Contender, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    def of(self, implementation: str) -> Contender | None:
        """What was measured of an implementation, or None."""
        return next((one for one in self.contenders if one.implementation == implementation), None)

    def times_faster(self, implementation: str, other: str) -> float | None:
        """Median over rounds of the time of the other one in units of that of the first, for energy and forces."""
        fast, slow = self.of(implementation), self.of(other)
        return None if fast is None or slow is None else _ratio(slow.samples, fast.samples)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ComparisonResult:
        """Inverse of `to_dict`."""
        floor = values["floor"]
        contenders = []
        for entry in values["contenders"]:
            energy = entry["energy"]
            converted = {
                "energy_forces": Quantiles(**entry["energy_forces"]),
                "energy": None if energy is None else Quantiles(**energy),
                "samples": tuple(entry["samples"]),
            }
            contenders.append(Contender(**{**entry, **converted}))
        parts = {"floor": None if floor is None else Floor(**floor), "contenders": tuple(contenders)}
        return ComparisonResult(**{**values, **parts})


class _Field:
    """Contestants that are still in, and why peers are out."""

    def __init__(self, running: list[Contestant], missing: dict[str, str]) -> None:
        self.running = running
        self.missing = missing

    def each(self, call: Callable[[Contestant], None]) -> None:
        """Call with every contestant; a peer that fails is out."""
        for one in list(self.running):
            try:
                call(one)
            except PeerError as error:
                self.missing[one.name] = str(error)
                self.running.remove(one)


def measure_comparison(comparison: ComparisonCase) -> ComparisonResult:
    """Build, warm up, and time in turn; uses the number of threads that torch is set to.

    Raises:
        ValueError: if an implementation does not cover the model, or the model the structure.
    """
    case = comparison.case
    atoms = case.to_atoms()
    own = [contestant(name, atoms, case.model) for name in comparison.implementations]
    potential = next((one.potential for one in own if one.potential is not None), None)
    if potential is None:
        raise ValueError("a comparison needs at least one implementation of this package")
    with ExitStack() as processes:
        peers, missing = _started(comparison, potential.device, processes)
        contestants = _Field(own + peers, missing)
        contestants.each(lambda one: _warm_up(one, atoms.positions))
        samples, forces = _rounds(contestants, atoms.positions, case)
    reference = BASELINE if BASELINE in comparison.implementations else own[0].name
    edges = sum(graph.n_edges for graph in potential.graphs(system_of(atoms, case.model).to(potential.device)))
    peak = matrix_product_rate(potential.device, potential.dtype)
    return ComparisonResult(
        name=case.name,
        model=case.model.label,
        threads=torch.get_num_threads(),
        atoms=len(atoms),
        neighbors=edges / len(atoms),
        rounds=len(samples[reference]["energy_forces"]),
        device=device_name(potential.device),
        peak_gflops=1e-9 * peak,
        floor=_floor(potential, len(atoms), edges, peak),
        contenders=tuple(
            _contender(one, samples[one.name], samples[reference], _difference(one, forces, reference))
            for one in contestants.running
        ),
        missing=contestants.missing,
    )


def _started(
    comparison: ComparisonCase, device: torch.device, processes: ExitStack
) -> tuple[list[Contestant], dict[str, str]]:
    """Peers that run, until `processes` is closed, and why others do not."""
    atoms = comparison.case.to_atoms()
    running, missing = [], {}
    for spec in comparison.peers:
        try:
            peer = Peer(spec, atoms, threads=comparison.threads, device=device.type, seed=comparison.case.model.seed)
        except PeerError as error:
            missing[spec.name] = str(error)
            continue
        running.append(peer_contestant(spec.name, processes.enter_context(peer)))
    return running, missing


def _warm_up(one: Contestant, positions: Float[np.ndarray, "atoms 3"]) -> None:
    for _ in range(1 if one.stopwatch is None else PEER_WARM_UP):
        one.energy_forces(positions)


def _floor(potential: EnergyPotential, atoms: int, edges: int, peak: float) -> Floor | None:
    network: object = potential.model
    return floor_of(network.config, atoms=atoms, edges=edges, peak=peak) if isinstance(network, E2FormerV2) else None


def _rounds(
    contestants: _Field, positions: Float[np.ndarray, "atoms 3"], case: Case
) -> tuple[dict[str, Samples], dict[str, Float[np.ndarray, "atoms 3"]]]:
    """Times of every contestant in every round, and its forces in the last one."""
    samples: dict[str, Samples] = {one.name: {"energy_forces": [], "energy": []} for one in contestants.running}
    forces: dict[str, Float[np.ndarray, "atoms 3"]] = {}
    start = time.perf_counter()
    for done, displaced in enumerate(_displaced(positions, case)):
        if done >= MINIMUM_REPEATS and time.perf_counter() - start > case.seconds:
            break

        def run(one: Contestant, at: Float[np.ndarray, "atoms 3"] = displaced) -> None:
            forces[one.name] = _time_once(one, at, samples[one.name])

        contestants.each(run)
    return samples, forces


def _time_once(
    one: Contestant, positions: Float[np.ndarray, "atoms 3"], samples: Samples
) -> Float[np.ndarray, "atoms 3"]:
    device = None if one.potential is None else one.potential.device
    is_short = bool(samples["energy_forces"]) and samples["energy_forces"][-1] < SHORT_MS
    # GFN2-xTB would start from its own solution for the same positions.
    starts_anew = one.potential is not None or one.stopwatch is not None
    if is_short and starts_anew:
        one.energy_forces(positions)
    if one.stopwatch is not None:
        elapsed, forces = one.stopwatch(positions)
    else:
        elapsed, forces = timed(lambda: one.energy_forces(positions), device)
    samples["energy_forces"].append(elapsed)
    energy = one.energy
    if energy is not None:
        samples["energy"].append(timed(lambda: energy(positions), device)[0])
    return forces


def _displaced(positions: Float[np.ndarray, "atoms 3"], case: Case) -> Iterator[Float[np.ndarray, "atoms 3"]]:
    generator = np.random.default_rng(case.model.seed)
    for _ in range(case.repeats):
        yield positions + generator.normal(scale=DISPLACEMENT, size=positions.shape)


def _difference(one: Contestant, forces: Mapping[str, Float[np.ndarray, "atoms 3"]], reference: str) -> float | None:
    if one.potential is None or one.name == reference:
        return None
    return float(np.abs(forces[one.name] - forces[reference]).max())


def _contender(one: Contestant, samples: Samples, reference: Samples, difference: float | None) -> Contender:
    energy = samples["energy"]
    return Contender(
        implementation=one.name,
        energy_forces=Quantiles.of(samples["energy_forces"]),
        energy=Quantiles.of(energy) if energy else None,
        ratio=_ratio(reference["energy_forces"], samples["energy_forces"]),
        energy_ratio=_ratio(reference["energy"], energy) if energy and reference["energy"] else None,
        force_difference=difference,
        samples=tuple(samples["energy_forces"]),
        version=one.version,
        description=one.description,
    )


def _ratio(reference: Sequence[float], own: Sequence[float]) -> float:
    return float(np.median(np.array(reference) / np.array(own)))
