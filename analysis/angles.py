"""ADF: the distribution of angles a - centre - b between near atoms, in molecules and in periodic systems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.neighborlist import neighbor_list
from jaxtyping import Float, Int
from matscipy.neighbours import neighbour_list

from e2former_calc.analysis.histograms import BlockedHistogram, block_bounds
from e2former_calc.analysis.pair_counts import select_element
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, iterate_chunks

Leg = tuple[str, float, float]


@dataclass(frozen=True)
class Triple:
    """Which angles are counted.

    Attributes:
        center: element in the vertex.
        first: element, shortest and longest distance (Å) of one leg.
        second: the same for the other leg. If both legs are alike, each pair of neighbours counts once.
    """

    center: str
    first: Leg
    second: Leg

    def __post_init__(self) -> None:
        for _, low, high in (self.first, self.second):
            if not 0 <= low < high:
                raise ValueError(f"leg from {low} to {high} Å is empty: the second distance must be the larger one")

    @staticmethod
    def neighbours(end: str, center: str, other: str, cutoff_A: float) -> Triple:
        """Angles end - center - other with both legs up to a cutoff, such as O-O-O in water within 3.5 Å."""
        return Triple(center, (end, 0.0, cutoff_A), (other, 0.0, cutoff_A))

    @staticmethod
    def hydrogen_bond(donor: str = "O", acceptor: str = "O") -> Triple:
        """Angles donor - H ... acceptor: H bonded to the donor (1.3 Å), acceptor from there to 2.5 Å."""
        return Triple("H", (donor, 0.0, 1.3), (acceptor, 1.3, 2.5))


def angle_distribution(
    source: FrameSource, triple: Triple, *, n_bins: int = 180, stop: int | None = None, n_blocks: int = 10
) -> BlockedHistogram:
    """Distribution of angles over 0 to 180 degrees, in 1/degree, normalised to 1; all images within the legs count.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
        ValueError: if an element does not occur, or there is no bin or block.
    """
    numbers = np.asarray(source.numbers)
    roles = [select_element(numbers, symbol) for symbol in (triple.center, triple.first[0], triple.second[0])]
    end = len(source) if stop is None else min(stop, len(source))
    bounds = list(block_bounds(end, n_blocks))
    edges = np.linspace(0.0, 180.0, n_bins + 1)
    counts = np.zeros((len(bounds), n_bins))
    for block, (first, last) in enumerate(bounds):
        for chunk in iterate_chunks(source, start=first, stop=last):
            for frame in range(len(chunk)):
                counts[block] += np.histogram(_angles(chunk, frame, triple, roles), edges)[0]
    frames = np.array([last - first for first, last in bounds])
    return BlockedHistogram(edges, counts * (n_bins / 180.0), counts.sum(axis=1), frames)


def _angles(
    chunk: Trajectory, frame: int, triple: Triple, roles: list[Int[np.ndarray, "..."]]
) -> Float[np.ndarray, " angles"]:
    involved = np.unique(np.concatenate(roles))
    i, j, distance, vector = _near_pairs(chunk, frame, involved, max(triple.first[2], triple.second[2]))
    role = np.stack([np.isin(involved, atoms) for atoms in roles])
    unit = vector / distance[:, None]
    legs = [
        np.flatnonzero(role[0, i] & role[k, j] & (distance >= low) & (distance < high))
        for k, (_, low, high) in ((1, triple.first), (2, triple.second))
    ]
    first, second = _combine(i, legs[0], legs[1])
    if triple.first == triple.second:
        first, second = first[first < second], second[first < second]
    else:
        distinct = first != second
        first, second = first[distinct], second[distinct]
    cosine = np.einsum("ak,ak->a", unit[first], unit[second])
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _near_pairs(
    chunk: Trajectory, frame: int, atoms: Int[np.ndarray, " chosen"], cutoff_A: float
) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"], Float[np.ndarray, " edges"], Float[np.ndarray, "..."]]:
    """Both ends (counted within `atoms`), lengths and vectors of all pairs within the cutoff, sorted by the first."""
    if not np.all(np.asarray(chunk.pbc)):
        i, j, distance, vector = neighbor_list("ijdD", chunk.to_atoms(frame)[atoms], cutoff_A)
        return i, j, distance, vector
    i, j, distance, vector = neighbour_list(
        "ijdD",
        positions=chunk.positions[frame, atoms],
        cell=chunk.cells()[frame],
        pbc=np.ones(3, dtype=bool),
        cutoff=cutoff_A,
    )
    return i, j, distance, vector


def _combine(
    center: Int[np.ndarray, " edges"], first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """All combinations of an edge in `first` and one in `second` with the same centre; both are sorted by centre."""
    low = np.searchsorted(center[second], center[first], side="left")
    high = np.searchsorted(center[second], center[first], side="right")
    count = high - low
    left = np.repeat(first, count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return left, second[np.repeat(low, count) + offset]
