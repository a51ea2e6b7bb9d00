"""Implementations side by side: the same network and structure, called in turn, so that all see the same load.

In every round all implementations get the same positions, displaced a little from those of the case. Ratios are
formed within rounds. A call starts from positions and ends with forces; the neighbour list is part of it. Before a
short call the same implementation is called once without a clock, because in a simulation it finds its own data in the
cache, not those of another one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from e2former_calc.benchmark.case import Case, Quantiles
from e2former_calc.benchmark.floor import Floor, floor_of, matrix_product_rate
from e2former_calc.benchmark.implementations import BASELINE, Contestant, check_implementations, contestant, system_of
from e2former_calc.benchmark.timing import MINIMUM_REPEATS, device_name, timed
from e2former_calc.potentials.e2former_v2 import E2FormerV2

DISPLACEMENT = 0.01
"""Standard deviation (Å) of the displacements of a round."""
SHORT_MS = 300.0
"""Calls below this time are preceded by one that is not timed."""


@dataclass(frozen=True)
class ComparisonCase:
    """Implementations to compare on one structure.

    Attributes:
        case: structure, model, threads, number of rounds and time for them.
        implementations: the baseline, and names of `implementations.OWN` and `implementations.PEERS`.

    Raises:
        ValueError: for names that are unknown, given twice or not installed.
    """

    case: Case
    implementations: tuple[str, ...]

    def __post_init__(self) -> None:
        check_implementations(self.implementations)

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
        return ComparisonCase(Case.from_dict(values["case"]), tuple(values["implementations"]))


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
    """

    implementation: str
    energy_forces: Quantiles
    energy: Quantiles | None
    ratio: float
    energy_ratio: float | None = None
    force_difference: float | None = None
    memory: float | None = None


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
        contenders: in the order of the case.
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

    def of(self, implementation: str) -> Contender | None:
        """What was measured of an implementation, or None."""
        return next((one for one in self.contenders if one.implementation == implementation), None)

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
            quantiles = {
                "energy_forces": Quantiles(**entry["energy_forces"]),
                "energy": None if energy is None else Quantiles(**energy),
            }
            contenders.append(Contender(**{**entry, **quantiles}))
        parts = {"floor": None if floor is None else Floor(**floor), "contenders": tuple(contenders)}
        return ComparisonResult(**{**values, **parts})


def measure_comparison(comparison: ComparisonCase) -> ComparisonResult:
    """Build, warm up, and time in turn; uses the number of threads that torch is set to.

    Raises:
        ValueError: if an implementation does not cover the model, or the model the structure.
    """
    case = comparison.case
    atoms = case.to_atoms()
    competitors = [contestant(name, atoms, case.model) for name in comparison.implementations]
    for one in competitors:
        one.energy_forces(atoms.positions)
    samples, forces = _rounds(competitors, atoms.positions, case)
    reference = BASELINE if BASELINE in comparison.implementations else competitors[0].name
    potential = next((one.potential for one in competitors if one.potential is not None), None)
    if potential is None:
        raise ValueError("a comparison needs at least one implementation of this package")
    graphs = potential.graphs(system_of(atoms, case.model).to(potential.device))
    edges = sum(graph.n_edges for graph in graphs)
    peak = matrix_product_rate(potential.device, potential.dtype)
    network: object = potential.model
    floor = None
    if isinstance(network, E2FormerV2):
        floor = floor_of(network.config, atoms=len(atoms), edges=edges, peak=peak)
    index = comparison.implementations.index(reference)
    return ComparisonResult(
        name=case.name,
        model=case.model.label,
        threads=torch.get_num_threads(),
        atoms=len(atoms),
        neighbors=edges / len(atoms),
        rounds=len(samples[0]["energy_forces"]),
        device=device_name(potential.device),
        peak_gflops=1e-9 * peak,
        floor=floor,
        contenders=tuple(
            _contender(one, own, samples[index], difference)
            for one, own, difference in zip(competitors, samples, _differences(competitors, forces, index), strict=True)
        ),
    )


def _rounds(
    competitors: Sequence[Contestant], positions: Float[np.ndarray, "atoms 3"], case: Case
) -> tuple[list[dict[str, list[float]]], list[Float[np.ndarray, "atoms 3"]]]:
    """Times in ms of every implementation in every round, and their forces in the first one."""
    samples: list[dict[str, list[float]]] = [{"energy_forces": [], "energy": []} for _ in competitors]
    first_forces = []
    start = time.perf_counter()
    for done, displaced in enumerate(_displaced(positions, case)):
        if done >= MINIMUM_REPEATS and time.perf_counter() - start > case.seconds:
            break
        for one, own in zip(competitors, samples, strict=True):
            forces = _time_once(one, displaced, own)
            if done == 0:
                first_forces.append(forces)
    return samples, first_forces


def _time_once(
    one: Contestant, positions: Float[np.ndarray, "atoms 3"], samples: dict[str, list[float]]
) -> Float[np.ndarray, "atoms 3"]:
    device = None if one.potential is None else one.potential.device
    is_short = bool(samples["energy_forces"]) and samples["energy_forces"][-1] < SHORT_MS
    # A peer would start from its own solution for the same positions.
    if is_short and one.potential is not None:
        one.energy_forces(positions)
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


def _differences(
    competitors: Sequence[Contestant], forces: Sequence[Float[np.ndarray, "atoms 3"]], reference: int
) -> list[float | None]:
    return [
        None if one.potential is None or position == reference else float(np.abs(own - forces[reference]).max())
        for position, (one, own) in enumerate(zip(competitors, forces, strict=True))
    ]


def _contender(
    one: Contestant, samples: Mapping[str, list[float]], reference: Mapping[str, list[float]], difference: float | None
) -> Contender:
    energy = samples["energy"]
    return Contender(
        implementation=one.name,
        energy_forces=Quantiles.of(samples["energy_forces"]),
        energy=Quantiles.of(energy) if energy else None,
        ratio=_ratio(reference["energy_forces"], samples["energy_forces"]),
        energy_ratio=_ratio(reference["energy"], energy) if energy and reference["energy"] else None,
        force_difference=difference,
    )


def _ratio(reference: Sequence[float], own: Sequence[float]) -> float:
    return float(np.median(np.array(reference) / np.array(own)))
