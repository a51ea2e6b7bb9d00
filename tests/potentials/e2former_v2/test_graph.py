"""Which pairs the network sees: cutoff, neighbour cap, image limits, the long-range list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from e2former_calc.potentials.e2former_v2 import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.graph import select_graphs, truncated_atoms
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.system import System

Edge = tuple[int, ...]


@pytest.fixture(scope="module")
def liquid() -> System:
    """Random but not overlapping atoms in a cubic box, some of them hydrogen."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) * 2.0
    return System.single(grid + rng.uniform(-0.4, 0.4, grid.shape), [1, 8] * 32, cell=8.0 * np.eye(3), pbc=True)


def _select(config: E2FormerV2Config, system: System, cap: str = "official") -> tuple[NeighborList, ...]:
    return select_graphs(config, system, neighbor_list(system, config.cutoff), cap)  # type: ignore[arg-type]


def _edges(found: NeighborList) -> set[Edge]:
    columns = [found.center, found.source, *found.shift.unbind(1)]
    return set(zip(*[column.tolist() for column in columns], strict=True))


def _lengths(found: NeighborList, system: System) -> torch.Tensor:
    return found.vectors(system.positions, system.cell, system.batch).norm(dim=1)


def test_without_a_cap_every_pair_within_the_cutoff_is_seen(config: E2FormerV2Config, liquid: System) -> None:
    (graph,) = _select(replace(config, max_neighbors=3), liquid, "none")
    assert _edges(graph) == _edges(neighbor_list(liquid, config.max_radius))


def test_a_skin_makes_no_difference(config: E2FormerV2Config, liquid: System) -> None:
    wide = neighbor_list(liquid, config.max_radius + 2.0)
    for cap in ("official", "none"):
        (graph,) = select_graphs(config, liquid, wide, cap)  # type: ignore[arg-type]
        assert _edges(graph) == _edges(*_select(config, liquid, cap))


@pytest.mark.parametrize("count", [1, 4, 11])
def test_cap_keeps_the_nearest_neighbors_of_every_center(config: E2FormerV2Config, liquid: System, count: int) -> None:
    (graph,) = _select(replace(config, max_neighbors=count), liquid)
    (everything,) = _select(config, liquid, "none")
    kept, lengths = _lengths(graph, liquid), _lengths(everything, liquid)
    for center in range(liquid.n_atoms):
        shortest = lengths[everything.center == center].sort().values[:count]
        assert kept[graph.center == center].sort().values.equal(shortest)


def test_cap_makes_the_list_asymmetric(config: E2FormerV2Config, liquid: System) -> None:
    (graph,) = _select(replace(config, max_neighbors=5), liquid)
    edges = _edges(graph)
    assert {(j, i, -x, -y, -z) for i, j, x, y, z in edges} != edges


def test_no_maximum_means_no_truncation(config: E2FormerV2Config, liquid: System) -> None:
    (graph,) = _select(replace(config, max_neighbors=None), liquid)
    assert _edges(graph) == _edges(neighbor_list(liquid, config.max_radius))


@pytest.mark.parametrize(("limit", "images"), [(0, 0), (1, 2), (2, 4), (3, 6), (4, 6)])
def test_images_beyond_the_limit_are_not_seen(config: E2FormerV2Config, limit: int, images: int) -> None:
    chain = System.single([[0.0, 0.0, 0.0]], [2], cell=np.diag([1.2, 0.0, 0.0]), pbc=(True, False, False))
    (graph,) = _select(replace(config, max_radius=3.7, image_limit=limit), chain)
    assert graph.n_edges == images
    (everything,) = _select(replace(config, max_radius=3.7, image_limit=limit), chain, "none")
    assert everything.n_edges == 6


def test_image_limit_follows_the_cutoff_over_the_spacing_of_lattice_planes(config: E2FormerV2Config) -> None:
    cell = np.array([[2.5, 0.0, 0.0], [2.4, 1.5, 0.0], [0.0, 0.0, 30.0]])
    sheet = System.single([[0.1, 0.1, 0.1]], [2], cell=cell, pbc=(True, True, True))
    (graph,) = _select(replace(config, max_neighbors=None), sheet)
    spacing = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    limits = np.minimum(np.ceil(config.max_radius / spacing), 4)
    allowed = {e for e in _edges(neighbor_list(sheet, config.max_radius)) if (np.abs(e[2:]) <= limits).all()}
    assert _edges(graph) == allowed


@pytest.mark.parametrize("limit", [1, 4])
def test_image_limit_counts_from_the_wrapped_atoms(config: E2FormerV2Config, limit: int) -> None:
    positions = np.array([[0.3, 0.2, 0.1], [1.9, 0.4, 0.3]])
    moves = np.array([[2, -3, 0], [-5, 1, 4]])
    capped, found = replace(config, image_limit=limit), []
    for shift in (0 * moves, moves):
        crystal = System.single(positions + 2.9 * shift, [11, 17], cell=2.9 * np.eye(3), pbc=True)
        (graph,) = _select(capped, crystal)
        found.append({(i, j, *(np.array(n) - shift[i] + shift[j]).tolist()) for i, j, *n in _edges(graph)})
    assert found[0] == found[1]


def test_structures_of_a_batch_are_selected_independently(config: E2FormerV2Config, liquid: System) -> None:
    capped = replace(config, max_neighbors=6, image_limit=1)
    crystal = System.single([[0.1, 0.0, 0.0]], [18], cell=1.9 * np.eye(3), pbc=True)
    (together,), (alone,) = _select(capped, System.stack([crystal, liquid])), _select(capped, liquid)
    assert {(i - 1, j - 1, *n) for i, j, *n in _edges(together) if i > 0} == _edges(alone)
    assert together.counts[0] == _select(capped, crystal)[0].n_edges


@pytest.mark.parametrize("count", [None, 3, 17, 60])
def test_truncated_atoms_are_those_that_lose_pairs(config: E2FormerV2Config, liquid: System, count: int | None) -> None:
    capped, everything = replace(config, max_neighbors=count), neighbor_list(liquid, config.max_radius)
    found = truncated_atoms(capped, liquid, neighbor_list(liquid, config.max_radius + 1.0))
    assert found.tolist() == [n > (count or 1000) for n in everything.counts.tolist()]
    assert bool(found.any()) == (count in (3, 17))


def test_atoms_truncated_in_the_long_range_list_count(config: E2FormerV2Config, liquid: System) -> None:
    everything = neighbor_list(liquid, 9.0)
    enough = int(everything.within(liquid, config.max_radius).counts.max())
    far = replace(config, long_range="node", long_upper=9.0, max_neighbors=enough)
    assert int(truncated_atoms(replace(far, long_range="none"), liquid, everything).sum()) == 0
    assert int(truncated_atoms(far, liquid, everything).sum()) > 0


@pytest.fixture(scope="module")
def far(config: E2FormerV2Config) -> E2FormerV2Config:
    return replace(config, long_range="node", long_lower=2.2, long_upper=6.5, max_neighbors=None)


def test_long_range_list_is_the_second_list(far: E2FormerV2Config, liquid: System) -> None:
    short, _ = _select(far, liquid)
    assert _edges(short) == _edges(neighbor_list(liquid, far.max_radius))
    assert far.cutoff == 6.5


@pytest.mark.parametrize("cap", ["official", "none"])
def test_long_range_sources_are_not_hydrogen(far: E2FormerV2Config, liquid: System, cap: str) -> None:
    _, graph = _select(far, liquid, cap)
    assert set(liquid.numbers[graph.source].tolist()) == {8}
    assert set(liquid.numbers[graph.center].tolist()) == {1, 8}


def test_long_range_pairs_lie_in_the_distance_window(far: E2FormerV2Config, liquid: System) -> None:
    _, graph = _select(far, liquid, "none")
    edges = neighbor_list(liquid, 6.5)
    length = _lengths(edges, liquid)
    assert _edges(graph) == _edges(edges.select((length >= 2.2) & (liquid.numbers[edges.source] > 1)))


def test_long_range_cap_is_two_and_a_half_times_the_short_one(far: E2FormerV2Config, liquid: System) -> None:
    _, graph = _select(replace(far, max_neighbors=5), liquid)
    assert set(graph.counts.tolist()) == {12}


def test_official_long_range_list_misses_images_of_small_cells(far: E2FormerV2Config) -> None:
    crystal = System.single([[0.1, 0.2, 0.3]], [18], cell=2.1 * np.eye(3), pbc=True)
    _, official = _select(far, crystal)
    _, complete = _select(far, crystal, "none")
    assert int(official.shift.abs().max()) == 2
    assert int(complete.shift.abs().max()) == 3


def test_an_isolated_atom_has_empty_lists(far: E2FormerV2Config) -> None:
    for graph in _select(far, System.single([[0.0, 0.0, 0.0]], [8])):
        assert (graph.n_edges, graph.row_ptr.tolist()) == (0, [0, 0])
