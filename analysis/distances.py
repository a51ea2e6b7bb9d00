"""h(r): the distribution of interatomic distances of a molecule, total and per pair of elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from e2former_calc.analysis.histograms import BlockedHistogram, block_bounds, uniform_bin_index
from e2former_calc.analysis.trajectory import FrameSource, iterate_chunks

FIRST_EDGE_A = 1e-6
"""Lower end of the range in the published definition."""

CACHE_FRAMES = 512
"""Frames whose distances from one atom are binned together: the arrays stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class DistanceDistribution:
    """h(r) of a trajectory: 1/Å, normalised to 1 over the range, every pair of atoms once, no periodic images.

    Attributes:
        total: all pairs.
        partial: the same for each pair of elements, called "C-H" (alphabetically), each normalised for itself.
    """

    total: BlockedHistogram
    partial: Mapping[str, BlockedHistogram]


def distance_distribution(
    source: FrameSource,
    *,
    r_max_A: float = 10.0,
    n_bins: int = 500,
    stop: int | None = None,
    n_blocks: int = 10,
) -> DistanceDistribution:
    """h(r) and all h_ab(r), reading the source in parts.

    Args:
        source: trajectory or open file.
        r_max_A: end of the range; farther pairs are dropped before normalising. Published: 10, 15, 25.
        n_bins: number of bins from 1e-6 Å to `r_max_A`.
        stop: use frames 0 ... stop - 1; default all.
        n_blocks: consecutive blocks kept apart for error bars.

    Raises:
        TrajectoryError: naming the first frame that is not finite.
        ValueError: if there are fewer than two atoms, no frame, or no range.
    """
    if len(source.numbers) < 2:
        raise ValueError(f"h(r) needs two atoms or more, got {len(source.numbers)}")
    if not r_max_A > FIRST_EDGE_A or n_bins < 1:
        raise ValueError(f"no range: `r_max_A` is {r_max_A}, `n_bins` is {n_bins}; both must be positive")
    end = len(source) if stop is None else min(stop, len(source))
    order, labels, kinds = _pair_kinds(np.asarray(source.numbers))
    bounds = list(block_bounds(end, n_blocks))
    counts = np.zeros((len(bounds), len(labels), n_bins))
    for block, (first, last) in enumerate(bounds):
        for chunk in iterate_chunks(source, start=first, stop=last):
            counts[block] += _count(chunk.positions[:, order], kinds, len(labels), r_max_A=r_max_A, n_bins=n_bins)
    edges = np.linspace(FIRST_EDGE_A, r_max_A, n_bins + 1)
    frames = np.array([last - first for first, last in bounds])
    partial = {label: _density(counts[:, k], edges, frames) for k, label in enumerate(labels)}
    return DistanceDistribution(_density(counts.sum(axis=1), edges, frames), partial)


def _pair_kinds(
    numbers: Int[np.ndarray, " atoms"],
) -> tuple[Int[np.ndarray, " atoms"], list[str], Int[np.ndarray, "atoms atoms"]]:
    """Atoms sorted by element, names of the pairs of elements, and which of them each pair of sorted atoms is."""
    order = np.argsort(numbers, kind="stable")
    elements, element = np.unique(numbers[order], return_inverse=True)
    n = len(elements)
    first, second = np.triu_indices(n)
    table = np.zeros((n, n), dtype=np.intp)
    table[first, second] = table[second, first] = np.arange(len(first))
    kinds = table[element[:, None], element[None, :]]
    upper = kinds[np.triu_indices(len(numbers), 1)]
    used, renumbered = np.unique(upper, return_inverse=True)
    compact = np.zeros((len(numbers), len(numbers)), dtype=np.intp)
    compact[np.triu_indices(len(numbers), 1)] = renumbered
    symbols = [chemical_symbols[number] for number in elements]
    labels = ["-".join(sorted((symbols[first[k]], symbols[second[k]]))) for k in used]
    return order, labels, compact


def _count(
    positions: Float[np.ndarray, "frames atoms 3"],
    kinds: Int[np.ndarray, "atoms atoms"],
    n_kinds: int,
    *,
    r_max_A: float,
    n_bins: int,
) -> Float[np.ndarray, "kinds bins"]:
    total = np.zeros(n_kinds * (n_bins + 1))
    n_atoms = positions.shape[1]
    for start in range(0, len(positions), CACHE_FRAMES):
        x = np.ascontiguousarray(positions[start : start + CACHE_FRAMES].transpose(2, 1, 0))
        for i in range(n_atoms - 1):
            delta = x[:, i + 1 :] - x[:, i : i + 1]
            distance = np.sqrt(np.einsum("kaf,kaf->af", delta, delta))
            index = uniform_bin_index(distance, FIRST_EDGE_A, r_max_A, n_bins)
            index += (kinds[i, i + 1 :] * (n_bins + 1))[:, None]
            total += np.bincount(index.ravel(), minlength=len(total))
    return total.reshape(n_kinds, n_bins + 1)[:, :n_bins]


def _density(
    counts: Float[np.ndarray, "blocks bins"], edges: Float[np.ndarray, " edges"], frames: Int[np.ndarray, " blocks"]
) -> BlockedHistogram:
    width = (edges[-1] - edges[0]) / (len(edges) - 1)
    return BlockedHistogram(edges, counts / width, counts.sum(axis=1), frames)
