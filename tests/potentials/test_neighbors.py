"""Neighbour lists: against brute force and ASE over all kinds of cells, exact reuse, order, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from e2former_calc.potentials import neighbors as module
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import System

Array = NDArray[np.float64]
Edge = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Case:
    positions: Array
    cell: Array
    pbc: tuple[bool, bool, bool]
    cutoff: float

    def system(self) -> System:
        return System.single(self.positions, [18] * len(self.positions), cell=self.cell, pbc=self.pbc)


def _rotated(cell: Array, rng: np.random.Generator) -> Array:
    return cell @ Rotation.random(rng=rng).as_matrix().T


def _skewed(rng: np.random.Generator) -> Array:
    return _rotated(np.tril(rng.uniform(-3, 3, (3, 3)), -1) + np.diag(rng.uniform(2.5, 5, 3)), rng)


def _mixed(rng: np.random.Generator) -> tuple[bool, bool, bool]:
    x, y, z = rng.permutation([True, False, bool(rng.integers(2))]).tolist()
    return x, y, z


CELLS: dict[str, Callable[[np.random.Generator], tuple[Array, tuple[bool, bool, bool]]]] = {
    "box": lambda rng: (np.diag(rng.uniform(4, 8, 3)), (True, True, True)),
    "tiny": lambda rng: (_rotated(np.diag(rng.uniform(0.8, 1.5, 3)), rng), (True, True, True)),
    "skewed": lambda rng: (_skewed(rng), (True, True, True)),
    "left-handed": lambda rng: (_skewed(rng)[[1, 0, 2]] * [[1], [1], [-1]], (True, True, True)),
    "slab": lambda rng: (np.diag([3.0, 2.5, 20.0]), (True, True, False)),
    "slab without third vector": lambda rng: (_skewed(rng) * [[1], [1], [0]], (True, True, False)),
    "wire": lambda rng: (np.diag([0.0, 2.2, 0.0]), (False, True, False)),
    "rotated mixed": lambda rng: (_skewed(rng), _mixed(rng)),
    "dummy cell": lambda rng: (np.eye(3), (False, False, False)),
    "no cell": lambda rng: (np.zeros((3, 3)), (False, False, False)),
}


def _shift_range(delta: Array, periodic: Array, cutoff: float) -> list[range]:
    """All n for which delta - n . periodic can be as short as the cutoff."""
    inverse = np.linalg.pinv(periodic) if len(periodic) else np.zeros((3, 0))
    middle, reach = delta @ inverse, cutoff * np.linalg.norm(inverse, axis=0) + 1e-9
    return [range(int(np.ceil(m - r)), int(np.floor(m + r)) + 1) for m, r in zip(middle, reach, strict=True)]


def _brute_force(case: Case) -> dict[Edge, float]:
    """Every pair and every image that can be in reach, one after the other."""
    axes = np.flatnonzero(case.pbc)
    found: dict[Edge, float] = {}
    for i, j in product(range(len(case.positions)), repeat=2):
        delta = case.positions[i] - case.positions[j]
        for combination in product(*_shift_range(delta, case.cell[axes], case.cutoff)):
            shift = np.zeros(3, dtype=int)
            shift[axes] = combination
            distance = float(np.linalg.norm(delta - shift @ case.cell))
            if distance <= case.cutoff and (i != j or shift.any()):
                found[(i, j, *shift.tolist())] = distance
    return found


def _edges(found: NeighborList) -> list[Edge]:
    columns = [found.center, found.source, *found.shift.unbind(1)]
    return list(zip(*[column.tolist() for column in columns], strict=True))


def _ase_edges(case: Case) -> set[Edge]:
    i, j, shift = primitive_neighbor_list("ijS", case.pbc, case.cell, case.positions, case.cutoff)
    return {(*pair, *s) for pair, s in zip(zip(i.tolist(), j.tolist(), strict=True), shift.tolist(), strict=True)}


def _identical(first: NeighborList, second: NeighborList) -> bool:
    names = ("center", "source", "shift", "row_ptr")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(CELLS), max_atoms: int = 6) -> Case:
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_atoms = draw(st.integers(1, max_atoms))
    cell, pbc = CELLS[kind](rng)
    spread = draw(st.sampled_from([1.0, 1.0, 8.0]))
    free = _rotated(np.diag([5.0, 5.0, 5.0]), rng)
    box = np.where(np.array(pbc)[:, None], cell, free)
    positions = rng.uniform(-0.2, 1.2, (n_atoms, 3)) @ box + rng.integers(-1, 2, (n_atoms, 3)) * (spread - 1) @ box
    case = Case(positions, cell, pbc, draw(st.floats(0.5, 5.0)))
    # A pair at the cutoff to rounding is in or out by the order of summation, which differs between programs.
    longest = _brute_force(Case(positions, cell, pbc, case.cutoff + 1e-9)).values()
    assume(max(longest, default=0.0) < case.cutoff - 1e-9)
    assume(min(_brute_force(Case(positions, cell, pbc, 0.1)).values(), default=1.0) > 2 * module.OVERLAP_DISTANCE)
    return case


@pytest.mark.parametrize("method", ["torch", "matscipy", "native", "auto"])
@pytest.mark.parametrize("kind", CELLS)
@settings(deadline=None, derandomize=True, max_examples=12)
@given(data=st.data())
def test_list_is_what_brute_force_finds(method: str, kind: str, data: st.DataObject) -> None:
    case = data.draw(cases((kind,)))
    found = neighbor_list(case.system(), case.cutoff, method=method)
    assert _edges(found) == sorted(_brute_force(case))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(case=cases())
def test_list_is_what_ase_finds(case: Case) -> None:
    assert set(_edges(neighbor_list(case.system(), case.cutoff))) == _ase_edges(case)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(case=cases(max_atoms=12))
def test_all_methods_give_equal_tensors(case: Case) -> None:
    lists = [neighbor_list(case.system(), case.cutoff, method=method) for method in ("torch", "matscipy", "native")]
    assert _identical(lists[0], lists[1])
    assert _identical(lists[0], lists[2])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(case=cases(), skin=st.floats(0.0, 2.0), method=st.sampled_from(["torch", "matscipy", "native"]))
def test_list_with_a_skin_within_the_cutoff_equals_a_fresh_list(case: Case, skin: float, method: str) -> None:
    system = case.system()
    wide = neighbor_list(system, case.cutoff + skin, method=method)
    assert _identical(wide.within(system, case.cutoff), neighbor_list(system, case.cutoff))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(first=cases(), second=cases(), third=cases())
def test_list_of_a_batch_is_the_lists_of_its_structures(first: Case, second: Case, third: Case) -> None:
    systems = [case.system() for case in (first, second, third)]
    together, expected, offset = neighbor_list(System.stack(systems), 3.0), [], 0
    for system in systems:
        expected += [(i + offset, j + offset, *s) for i, j, *s in _edges(neighbor_list(system, 3.0))]
        offset += system.n_atoms
    assert _edges(together) == expected


@settings(deadline=None, derandomize=True, max_examples=40)
@given(case=cases(("tiny", "skewed", "slab", "wire", "rotated mixed")), seed=st.integers(0, 1000))
def test_atoms_moved_by_lattice_vectors_keep_their_neighbors(case: Case, seed: int) -> None:
    moves = np.random.default_rng(seed).integers(-9, 10, (len(case.positions), 3)) * np.array(case.pbc)
    moved = Case(case.positions + moves @ case.cell, case.cell, case.pbc, case.cutoff)
    found = _edges(neighbor_list(moved.system(), case.cutoff))
    brought_back = sorted((i, j, *(np.array(s) - moves[i] + moves[j]).tolist()) for i, j, *s in found)
    assert brought_back == _edges(neighbor_list(case.system(), case.cutoff))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(case=cases())
def test_every_edge_has_its_reverse(case: Case) -> None:
    found = _edges(neighbor_list(case.system(), case.cutoff))
    assert {(j, i, -x, -y, -z) for i, j, x, y, z in found} == set(found)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(case=cases())
def test_row_pointers_delimit_the_edges_of_each_center(case: Case) -> None:
    found = neighbor_list(case.system(), case.cutoff)
    assert found.counts.equal(torch.bincount(found.center, minlength=len(case.positions)))
    assert found.row_ptr[0] == 0
    assert found.row_ptr[-1] == found.n_edges == len(found.source) == len(found.shift)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(case=cases())
def test_vectors_point_from_source_image_to_center(case: Case) -> None:
    system = case.system()
    found = neighbor_list(system, case.cutoff)
    image = case.positions[found.source] + found.shift.numpy() @ case.cell
    vector = found.vectors(system.positions, system.cell, system.batch)
    np.testing.assert_allclose(vector.numpy(), case.positions[found.center] - image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["torch", "matscipy", "native"])
def test_cutoff_is_inclusive(method: str) -> None:
    cubic = System.single([[0.0, 0.0, 0.0]], [18], cell=np.eye(3), pbc=True)
    counts = [neighbor_list(cubic, cutoff, method=method).n_edges for cutoff in (0.999, 1.0, 2.0, 3.0)]
    assert counts == [0, 6, 32, 122]


@pytest.mark.parametrize(("cutoff", "count"), [(1.0, 6), (2.0, 32), (2.9999999, 92), (3.0, 122)])
def test_cutoff_of_a_reused_list_is_inclusive(cutoff: float, count: int) -> None:
    cubic = System.single([[0.0, 0.0, 0.0]], [18], cell=np.eye(3), pbc=True)
    assert neighbor_list(cubic, 4.0).within(cubic, cutoff).n_edges == count


@pytest.mark.parametrize("method", ["torch", "matscipy", "native"])
def test_an_atom_on_the_cell_boundary_is_listed_once(method: str) -> None:
    positions = [[0.0, 1.0, 1.0], [-1e-17, 3.0, 1.0], [4.0 - 1e-16, 1.0, 3.0], [4.0, 3.0, 3.0]]
    case = Case(np.array(positions), 4.0 * np.eye(3), (True, True, True), 2.5)
    assert _edges(neighbor_list(case.system(), case.cutoff, method=method)) == sorted(_brute_force(case))


@pytest.mark.parametrize("method", ["torch", "matscipy", "native", "auto"])
def test_a_lone_atom_has_no_edges(method: str) -> None:
    found = neighbor_list(System.single([[1.0, 2.0, 3.0]], [2]), 5.0, method=method)
    assert (found.n_edges, found.row_ptr.tolist(), found.shift.shape) == (0, [0, 0], (0, 3))


@pytest.mark.parametrize("method", ["torch", "matscipy", "native", "auto"])
def test_a_structure_without_atoms_has_no_edges(method: str) -> None:
    nothing = System.single(np.zeros((0, 3)), np.zeros(0))
    helium = System.single([[0.0, 0.0, 0.0]], [2], cell=2.0 * np.eye(3), pbc=True)
    found = neighbor_list(System.stack([helium, nothing, helium]), 2.1, method=method)
    assert found.counts.tolist() == [6, 6]


def test_large_structures_are_searched_in_chunks(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), -1).reshape(-1, 3) * 1.3
    system = System.single(grid, [18] * len(grid), cell=6.5 * np.eye(3), pbc=True)
    whole = neighbor_list(system, 2.0, method="torch")
    monkeypatch.setattr(module, "_CANDIDATE_CHUNK", 1000)
    assert _identical(neighbor_list(system, 2.0, method="torch"), whole)


def test_edges_of_atoms_millions_of_cells_away_are_sorted() -> None:
    near = Case(np.array([[0.1, 0.2, 0.3], [1.5, 1.4, 1.6]]), 3.0 * np.eye(3), (True, True, True), 4.0)
    far = np.array([[0, 0, 0], [2**21, -(2**21), 2**21]])
    moved = Case(near.positions + far @ near.cell, near.cell, near.pbc, near.cutoff)
    found = _edges(neighbor_list(moved.system(), 4.0))
    assert found == sorted(found)
    brought_back = sorted((i, j, *(np.array(s) - far[i] + far[j]).tolist()) for i, j, *s in found)
    assert brought_back == _edges(neighbor_list(near.system(), 4.0))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 10_000), span=st.sampled_from([2, 1000, 2**19, 2**21, 2**30]), n_atoms=st.integers(1, 9))
def test_sort_key_orders_by_center_source_shift(seed: int, span: int, n_atoms: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.integers(0, n_atoms, (50, 2)), rng.integers(-span, span, (50, 3))], axis=1)
    rows = np.unique(rows, axis=0)
    shuffled = torch.from_numpy(rng.permutation(rows))
    key = module._sort_key(shuffled[:, 0], shuffled[:, 1], shuffled[:, 2:], n_atoms)
    assert shuffled[torch.argsort(key)].tolist() == rows.tolist()


def test_selection_keeps_order_and_row_pointers() -> None:
    system = Case(np.random.default_rng(0).uniform(0, 4, (8, 3)), np.zeros((3, 3)), (False,) * 3, 9.0).system()
    found = neighbor_list(system, 9.0)
    kept = found.select(found.source > 3)
    assert _edges(kept) == [edge for edge in _edges(found) if edge[1] > 3]
    assert kept.counts.tolist() == [4, 4, 4, 4, 3, 3, 3, 3]


def test_a_larger_cutoff_than_the_list_has_is_refused() -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [1, 1])
    with pytest.raises(ValueError, match=r"built with cutoff 3\.0 Å has no pairs up to 3\.1 Å: rebuild it"):
        neighbor_list(system, 3.0).within(system, 3.1)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(case=cases(max_atoms=9), count=st.integers(1, 12))
def test_nearest_keeps_the_shortest_edges(case: Case, count: int) -> None:
    system = case.system()
    kept = neighbor_list(system, case.cutoff).nearest(system, count)
    reference = _brute_force(case)
    for atom in range(len(case.positions)):
        edges = sorted((round(d * 1e9), e) for e, d in reference.items() if e[0] == atom)[:count]
        assert [edge for edge in _edges(kept) if edge[0] == atom] == sorted(edge for _, edge in edges)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(case=cases(), count=st.integers(1, 8))
def test_nearest_does_not_depend_on_the_skin(case: Case, count: int) -> None:
    system = case.system()
    fresh = neighbor_list(system, case.cutoff)
    reused = neighbor_list(system, case.cutoff + 1.0).within(system, case.cutoff)
    assert _identical(fresh.nearest(system, count), reused.nearest(system, count))


@pytest.mark.parametrize("count", [1, 5, 7, 13, 17])
@pytest.mark.parametrize("seed", range(3))
def test_nearest_breaks_ties_alike_in_every_orientation(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fcc, basis = 4.05 * np.eye(3), np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    rotation = Rotation.random(rng=rng).as_matrix()
    plain = Case(basis @ fcc, fcc, (True,) * 3, 5.0).system()
    moved = Case((basis @ fcc + rng.uniform(0, 0.1, 3)) @ rotation.T, fcc @ rotation.T, (True,) * 3, 5.0).system()
    nearest = [_edges(neighbor_list(s, 5.0).nearest(s, count)) for s in (plain, moved)]
    assert nearest[0] == nearest[1]
    assert len(nearest[0]) == 4 * count


@pytest.mark.parametrize(("gap", "nearest"), [(1e-8, 2), (1e-11, 1)])
def test_nearest_tells_distances_apart_down_to_a_billionth(gap: float, nearest: int) -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 1.5 - gap, 0.0]], [18] * 3)
    assert neighbor_list(system, 2.0).nearest(system, 1).source[0] == nearest


def test_nearest_with_room_for_all_is_the_same_list() -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [1, 1, 1])
    found = neighbor_list(system, 3.0)
    assert found.nearest(system, 2) is found


def test_positions_are_neither_wrapped_nor_tracked() -> None:
    case = Case(np.array([[9.0, 0.0, 0.0], [-7.0, 1.0, 0.0]]), 3.0 * np.eye(3), (True,) * 3, 3.0)
    system = case.system()
    tracked = system.with_positions(system.positions.clone().requires_grad_(True))
    assert _identical(neighbor_list(tracked, 3.0), neighbor_list(system, 3.0))
    assert system.positions.numpy().tolist() == case.positions.tolist()


def test_squared_length_is_the_sum_of_squares() -> None:
    assert squared_length(torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]])).tolist() == [169.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_positions_are_named(value: float) -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.0, value, 0.0]], [1, 1])
    with pytest.raises(ValueError, match=r"position of atom 1 is not finite: .*exploded simulation"):
        neighbor_list(system, 3.0)


def test_a_broken_cell_is_named() -> None:
    system = System.single([[0.0, 0.0, 0.0]], [1], cell=[[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], pbc=True)
    with pytest.raises(ValueError, match=r"the cell is not finite: \[\[\[1.0, 0.0, 0.0\], \[0.0, nan"):
        neighbor_list(system, 3.0)


def test_a_periodic_direction_needs_a_lattice_vector() -> None:
    good = System.single([[0.0, 0.0, 0.0]], [1])
    bad = System.single([[0.0, 0.0, 0.0]], [1], cell=np.diag([3.0, 3.0, 0.0]), pbc=True)
    with pytest.raises(ValueError, match=r"lattice vector 2 of structure 1, but that vector is zero: set atoms.cell"):
        neighbor_list(System.stack([good, bad]), 3.0)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)])
def test_dependent_lattice_vectors_are_refused(pbc: tuple[bool, bool, bool]) -> None:
    system = System.single([[0.0, 0.0, 0.0]], [1], cell=[[1, 0, 0], [2, 0, 0], [0, 0, 3]], pbc=pbc)
    with pytest.raises(ValueError, match=r"lattice vectors \[\[1.0, 0.0, 0.0\], \[2.0.* are linearly dependent"):
        neighbor_list(system, 3.0)


@pytest.mark.parametrize("method", ["torch", "matscipy", "native"])
def test_overlapping_atoms_are_named(method: str) -> None:
    system = System.single([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.005, 0.0]], [1, 1, 1])
    with pytest.raises(ValueError, match=r"atoms 1 and 2 overlap: they are 5.00e-03 Å apart, the limit is 0.01 Å"):
        neighbor_list(system, 3.0, method=method)


def test_overlap_across_the_boundary_names_image_and_structure() -> None:
    good = System.single([[0.0, 0.0, 0.0]], [1])
    bad = System.single([[0.0, 0.0, 0.0], [2.999, 0.0, 0.0]], [1, 1], cell=3.0 * np.eye(3), pbc=True)
    with pytest.raises(ValueError, match=r"atoms 1 and 2 \(periodic image \[-1, 0, 0\]\) of structure 1 overlap"):
        neighbor_list(System.stack([good, bad]), 3.0)


def test_coinciding_atoms_are_an_error_not_a_missing_pair() -> None:
    with pytest.raises(ValueError, match=r"overlap: they are 0.00e"):
        neighbor_list(System.single(np.zeros((2, 3)), [1, 1]), 3.0)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="`method` must be 'auto', 'native', 'matscipy' or 'torch', got 'kdtree'"):
        neighbor_list(System.single([[0.0, 0.0, 0.0]], [1]), 3.0, method="kdtree")


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan")])
def test_cutoff_must_be_positive(cutoff: float) -> None:
    with pytest.raises(ValueError, match=f"`cutoff` must be positive, got {cutoff}"):
        neighbor_list(System.single([[0.0, 0.0, 0.0]], [1]), cutoff)
