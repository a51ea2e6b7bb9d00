# ruff: noqa: N802, N815 (units in names)
"""Counting pairs of atoms by distance in periodic cells: the inner loop of g(r)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Bool, Float, Int
from matscipy.neighbours import neighbour_list

from e2former_calc.analysis.histograms import uniform_bin_index
from e2former_calc.analysis.topology import nearest_image, plane_spacings
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError

FIRST_EDGE_A: Final = 1e-6
BATCH_PAIRS: Final = 4_000_000
"""Pairs in frames looked at between two histograms; at most half of them are in range and held in memory."""
CACHE_NUMBERS: Final = 24_000
"""Distances taken at a time: so many stay in the processor's cache, fewer are dominated by the overhead of calls."""
FAR_BATCH_PAIRS: Final = 250_000
"""The same where vectors of all of them are held in memory."""
CELL_LIST_PAIRS: Final = 2_000_000
"""With more pairs of atoms than this a cell list finds the near ones."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class RdfSettings:
    """Range, bins and normalisation of g(r).

    Attributes:
        r_max_A: end of the range.
        n_bins: number of bins from 1e-6 Å to `r_max_A`.
        normalization: "pairs" divides by the density of the pairs that exist (N_a N_b, less self pairs and excluded
            ones), so that an ideal gas gives 1; "density" by N_a N_b / V, so that replicating the cell changes nothing.
        images: "all" counts every periodic image within the range; "nearest" only the nearest of each pair.

    Raises:
        ValueError: for values that are not allowed.
    """

    r_max_A: float = 6.0
    n_bins: int = 500
    normalization: str = "pairs"
    images: str = "all"

    def __post_init__(self) -> None:
        if not self.r_max_A > FIRST_EDGE_A or self.n_bins < 1:
            raise ValueError(f"no range: `r_max_A` is {self.r_max_A}, `n_bins` is {self.n_bins}; both must be positive")
        if self.normalization not in ("pairs", "density"):
            raise ValueError(f"`normalization` must be 'pairs' or 'density', got {self.normalization!r}")
        if self.images not in ("all", "nearest"):
            raise ValueError(f"`images` must be 'all' or 'nearest', got {self.images!r}")

    @property
    def edges_A(self) -> Float[np.ndarray, " edges"]:
        """Bin edges in Å."""
        return np.linspace(FIRST_EDGE_A, self.r_max_A, self.n_bins + 1)


@dataclass(frozen=True, eq=False)
class PairList:
    """Atoms of a partial distribution: each unordered pair once, and whether it lies inside a molecule."""

    centers: Int[np.ndarray, " a"]
    partners: Int[np.ndarray, " b"]
    same: bool
    molecule_of: Int[np.ndarray, " atoms"] | None

    @staticmethod
    def build(
        numbers: Int[np.ndarray, " atoms"], pair: Pair, molecule_of: Int[np.ndarray, " atoms"] | None
    ) -> PairList:
        """Pairs of two elements.

        Raises:
            ValueError: if an element does not occur, or "*" is mixed with an element.
        """
        centers, partners = (select_element(numbers, symbol) for symbol in pair)
        if pair[0] != pair[1] and "*" in pair:
            raise ValueError(f"pair {pair} mixes '*' with an element: use ('*', '*') or two elements")
        return PairList(centers, partners, pair[0] == pair[1], molecule_of)

    @property
    def size(self) -> int:
        """Number of unordered pairs."""
        n, m = len(self.centers), len(self.partners)
        return n * (n - 1) // 2 if self.same else n * m

    def indices(self) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
        """Both atoms of every unordered pair, and whether they are in the same molecule."""
        if self.same:
            first, second = np.triu_indices(len(self.centers), 1)
            i, j = self.centers[first], self.centers[second]
        else:
            i, j = np.repeat(self.centers, len(self.partners)), np.tile(self.partners, len(self.centers))
        inside = (
            np.zeros(len(i), dtype=bool) if self.molecule_of is None else self.molecule_of[i] == self.molecule_of[j]
        )
        return i, j, inside

    def n_ordered(self, normalization: str) -> int:
        """Number of ordered pairs that g(r) is divided by."""
        n, m = len(self.centers), len(self.partners)
        if normalization == "density":
            return n * m
        total = n * (n - 1) if self.same else n * m
        return total - self._n_inside()

    def _n_inside(self) -> int:
        if self.molecule_of is None:
            return 0
        size = int(self.molecule_of.max()) + 1
        per_molecule = [np.bincount(self.molecule_of[atoms], minlength=size) for atoms in (self.centers, self.partners)]
        return int((per_molecule[0] * per_molecule[1]).sum()) - (len(self.centers) if self.same else 0)


def count_pairs(chunk: Trajectory, pairs: PairList, settings: RdfSettings) -> Float[np.ndarray, "frames bins"]:
    """Ordered pairs in each bin and frame.

    Raises:
        TrajectoryError: if the system is not periodic in three directions.
    """
    if not np.all(np.asarray(chunk.pbc)):
        raise TrajectoryError(
            f"{chunk.source} has pbc {np.asarray(chunk.pbc).tolist()}: g(r) needs three periodic directions; "
            "use `distance_distribution` for a molecule"
        )
    reach = 0.5 * float(plane_spacings(chunk.cells()).min())
    if pairs.size > CELL_LIST_PAIRS and settings.r_max_A <= reach:
        return np.stack([_count_cell_list(chunk, frame, pairs, settings) for frame in range(len(chunk))])
    if settings.r_max_A <= reach:
        return _count_short(chunk, pairs, settings)
    return _count_far(chunk, pairs, settings)


def select_element(numbers: Int[np.ndarray, " atoms"], symbol: str) -> Int[np.ndarray, " chosen"]:
    """Atoms of an element; "*" for all.

    Raises:
        ValueError: if there is none, or no such element.
    """
    if symbol == "*":
        return np.arange(len(numbers))
    chosen = np.flatnonzero(numbers == atomic_numbers.get(symbol, -1))
    if not len(chosen):
        present = ", ".join(chemical_symbols[number] for number in np.unique(numbers))
        raise ValueError(f"there is no element {symbol!r} here, only {present}")
    return chosen


def _count_short(chunk: Trajectory, pairs: PairList, settings: RdfSettings) -> Float[np.ndarray, "frames bins"]:
    """Pairs within half the smallest plane spacing: fractional coordinates and the metric find the nearest image."""
    cells = chunk.cells()
    fractional = chunk.positions @ np.linalg.inv(cells)
    metric = cells @ cells.transpose(0, 2, 1)
    rows = max(1, min(BATCH_PAIRS // max(1, pairs.size), CACHE_NUMBERS // max(1, len(pairs.partners))))
    found = []
    for start in range(0, len(chunk), rows):
        frames = slice(start, start + rows)
        first, second = (
            np.ascontiguousarray(fractional[frames][:, atoms].transpose(2, 1, 0))
            for atoms in (pairs.centers, pairs.partners)
        )
        found.append(_count_batch(first, second, metric[frames], pairs=pairs, settings=settings))
    total = np.concatenate(found)
    return 2.0 * total if pairs.same else total


def _count_batch(
    first: Float[np.ndarray, "3 a frames"],
    second: Float[np.ndarray, "3 b frames"],
    metric: Float[np.ndarray, "frames 3 3"],
    *,
    pairs: PairList,
    settings: RdfSettings,
) -> Float[np.ndarray, "frames bins"]:
    """Only the squares of the distances are taken of all pairs; most of these are out of range."""
    n_frames, width, limit = first.shape[2], settings.n_bins + 1, settings.r_max_A**2
    found = []
    for k, center in enumerate(pairs.centers):
        skip = k + 1 if pairs.same else 0
        delta = second[:, skip:] - first[:, k : k + 1]
        delta -= np.rint(delta)
        squares = _squared_length(delta, metric)
        if pairs.molecule_of is not None:
            squares[pairs.molecule_of[pairs.partners[skip:]] == pairs.molecule_of[center]] = np.inf
        near = np.flatnonzero(squares < limit)
        index = uniform_bin_index(np.sqrt(squares.ravel()[near]), FIRST_EDGE_A, settings.r_max_A, settings.n_bins)
        near %= n_frames
        near *= width
        index += near
        found.append(index)
    counts = np.bincount(np.concatenate(found), minlength=n_frames * width).reshape(n_frames, width)
    return counts[:, :-1].astype(np.float64)


def _squared_length(
    fractional: Float[np.ndarray, "3 pairs frames"], metric: Float[np.ndarray, "frames 3 3"]
) -> Float[np.ndarray, "pairs frames"]:
    """Overwrites `fractional`."""
    cross = [(i, j) for i, j in ((0, 1), (0, 2), (1, 2)) if metric[:, i, j].any()]
    mixed = [fractional[i] * fractional[j] * (2.0 * metric[:, i, j]) for i, j in cross]
    fractional *= fractional
    fractional *= metric[:, np.arange(3), np.arange(3)].T[:, None]
    squared: Float[np.ndarray, "pairs frames"] = fractional[0]
    for part in (fractional[1], fractional[2], *mixed):
        squared += part
    return squared


def _count_far(chunk: Trajectory, pairs: PairList, settings: RdfSettings) -> Float[np.ndarray, "frames bins"]:
    """Pairs whose distance may exceed half the cell: every image within the range, or the nearest of 27."""
    i, j, inside = pairs.indices()
    nearest_only = settings.images == "nearest"
    if nearest_only:
        i, j = i[~inside], j[~inside]
    rows = max(1, FAR_BATCH_PAIRS // max(1, len(i)))
    counts = []
    for start in range(0, len(chunk), rows):
        frames = slice(start, start + rows)
        cells = chunk.cells()[frames]
        delta = np.take(chunk.positions[frames], j, axis=1) - np.take(chunk.positions[frames], i, axis=1)
        delta = nearest_image(delta, cells, np.ones(3, dtype=bool))
        if nearest_only:
            found = _bin(np.sqrt(_shortest_squared(delta, cells)), settings)
        else:
            found = _count_images(delta, cells, inside, settings)
        counts.append(2.0 * found if pairs.same else found)
    total = np.concatenate(counts)
    if pairs.same and not nearest_only:
        total += len(pairs.centers) * _self_images(chunk.cells(), settings)
    return total


def _count_images(
    delta: Float[np.ndarray, "frames pairs 3"],
    cells: Float[np.ndarray, "frames 3 3"],
    inside: Bool[np.ndarray, " pairs"],
    settings: RdfSettings,
) -> Float[np.ndarray, "frames bins"]:
    total = np.zeros((len(delta), settings.n_bins))
    for shift in _image_shifts(cells, settings.r_max_A, wrapped=True):
        moved = delta + (shift @ cells)[:, None]
        distance = np.sqrt(np.einsum("fpk,fpk->fp", moved, moved))
        if not shift.any():
            distance = distance[:, ~inside]
        total += _bin(distance, settings)
    return total


def _shortest_squared(
    delta: Float[np.ndarray, "frames pairs 3"], cells: Float[np.ndarray, "frames 3 3"]
) -> Float[np.ndarray, "frames pairs"]:
    best = np.full(delta.shape[:2], np.inf)
    for shift in product((-1, 0, 1), repeat=3):
        moved = delta + (np.array(shift) @ cells)[:, None]
        np.minimum(best, np.einsum("fpk,fpk->fp", moved, moved), out=best)
    return best


def _self_images(cells: Float[np.ndarray, "frames 3 3"], settings: RdfSettings) -> Float[np.ndarray, "frames bins"]:
    shifts = [shift for shift in _image_shifts(cells, settings.r_max_A, wrapped=False) if shift.any()]
    if not shifts:
        return np.zeros((len(cells), settings.n_bins))
    return _bin(np.linalg.norm(np.array(shifts) @ cells, axis=-1), settings)


def _image_shifts(
    cells: Float[np.ndarray, "frames 3 3"], r_max_A: float, *, wrapped: bool
) -> list[Int[np.ndarray, "3"]]:
    margin = 0.5 if wrapped else 0.0
    reach = np.floor(r_max_A / plane_spacings(cells).min(axis=0) + margin + 1e-9).astype(int)
    return [np.array(shift) for shift in product(*(range(-n, n + 1) for n in reach))]


def _bin(distances: Float[np.ndarray, "frames pairs"], settings: RdfSettings) -> Float[np.ndarray, "frames bins"]:
    return _count_index(uniform_bin_index(distances, FIRST_EDGE_A, settings.r_max_A, settings.n_bins), settings.n_bins)


def _count_index(index: Int[np.ndarray, "frames pairs"], n_bins: int) -> Float[np.ndarray, "frames bins"]:
    """Histogram of each row; the index n_bins is dropped. Overwrites `index`."""
    n_frames, width = len(index), n_bins + 1
    index += (np.arange(n_frames) * width)[:, None]
    counts = np.bincount(index.ravel(), minlength=n_frames * width).reshape(n_frames, width)
    return counts[:, :-1].astype(np.float64)


def _count_cell_list(
    chunk: Trajectory, frame: int, pairs: PairList, settings: RdfSettings
) -> Float[np.ndarray, " bins"]:
    i, j, distance = neighbour_list(
        "ijd",
        positions=chunk.positions[frame],
        cell=chunk.cells()[frame],
        pbc=np.ones(3, dtype=bool),
        cutoff=settings.r_max_A,
    )
    role = np.zeros((2, len(chunk.numbers)), dtype=bool)
    role[0, pairs.centers], role[1, pairs.partners] = True, True
    wanted = role[0, i] & role[1, j]
    if pairs.molecule_of is not None:
        wanted &= pairs.molecule_of[i] != pairs.molecule_of[j]
    return np.asarray(_bin(distance[None, wanted], settings)[0])
