"""Edges of one evaluation: selection by distance, unit vectors, table positions, envelope; and the way back to forces.

Coordinates are float64; what the network reads is rounded once to its arithmetic. Kernels keep to the order of what is
written, so that an edge is the same wherever it stands in the list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.exact_kernels import exact
from e2former_calc.potentials.inference.compilation import inline, kernel

Array = NDArray[Any]


class Edges(NamedTuple):
    """Directed edges in CSR order by center, and the same sorted by source.

    Attributes:
        row_ptr: edges of center i are row_ptr[i] ... row_ptr[i + 1] - 1.
        center, source: atoms of each edge.
        column_ptr, by_source: edges that leave atom j are by_source[column_ptr[j] ... column_ptr[j + 1] - 1].
        vector: r_center - r_source in Å, float64, (edges, 3).
        distance: its length in Å, float64.
        unit: vector / distance in the arithmetic of the network, (edges, 3).
        slot: row of the radial tables below each distance.
        spline: weights of a quintic Hermite spline, (edges, 11): for its value those of value, slope and curvature at
            that row and at the next one (0 ... 5); for its derivative those of the chord between them, and of slope
            and curvature at both (6 ... 10).
        envelope: u(r) and du/dr, (edges, 2).
    """

    row_ptr: Array
    center: Array
    source: Array
    column_ptr: Array
    by_source: Array
    vector: Array
    distance: Array
    unit: Array
    slot: Array
    spline: Array
    envelope: Array


class PairList(NamedTuple):
    """All pairs to choose from: a neighbour list with or without a skin."""

    row_ptr: Array
    source: Array
    shift: Array


class Structure(NamedTuple):
    """Positions (Å), lattice vectors (Å), structure and element row of every atom."""

    positions: Array
    cell: Array
    batch: Array
    element: Array


class Grid(NamedTuple):
    """Knots of the radial tables: their distance (Å) and number; pairs of elements; exponent of the envelope."""

    cutoff: float
    n_knots: int
    n_elements: int
    exponent: int


@kernel
def sees_all_images(pairs: PairList, structure: Structure, cutoff: float, image_limit: int) -> bool:
    """Whether images up to `image_limit` cells away, where the official code stops, are all that the cutoff needs."""
    complete = np.empty(structure.cell.shape[0], np.bool_)
    for index in range(structure.cell.shape[0]):
        complete[index] = _sees_all_images(structure.cell[index], cutoff, image_limit)
    for i in range(structure.positions.shape[0]):
        if complete[structure.batch[i]]:
            continue
        for pair in range(pairs.row_ptr[i], pairs.row_ptr[i + 1]):
            if pairs.shift[pair, 0] != 0 or pairs.shift[pair, 1] != 0 or pairs.shift[pair, 2] != 0:
                return False
    return True


@inline
def _sees_all_images(cell: Array, cutoff: float, image_limit: int) -> bool:
    """Whether no pair up to the cutoff, of atoms wrapped into the cell, is more than `image_limit` cells apart."""
    most = 0.0
    for k in range(3):
        u, v, w = cell[k], cell[(k + 1) % 3], cell[(k + 2) % 3]
        x, y, z = v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0]
        volume = abs(u[0] * x + u[1] * y + u[2] * z)
        if volume <= 1e-6:
            return False
        most = max(most, cutoff * np.sqrt(x * x + y * y + z * z) / volume)
    return bool(np.ceil(most) <= image_limit)


@exact
def select_edges(pairs: PairList, structure: Structure, grid: Grid, edges: Edges, most: int) -> int:
    """Fill `edges` with the pairs up to the cutoff, for each center the `most` shortest; returns their number."""
    n_atoms = structure.positions.shape[0]
    limit = grid.cutoff * grid.cutoff
    count = 0
    edges.row_ptr[0] = 0
    edges.column_ptr[:] = 0
    for i in range(n_atoms):
        cell = structure.cell[structure.batch[i]]
        for pair in range(pairs.row_ptr[i], pairs.row_ptr[i + 1]):
            j = pairs.source[pair]
            x = structure.positions[i, 0] - structure.positions[j, 0]
            y = structure.positions[i, 1] - structure.positions[j, 1]
            z = structure.positions[i, 2] - structure.positions[j, 2]
            a, b, c = pairs.shift[pair, 0], pairs.shift[pair, 1], pairs.shift[pair, 2]
            if a != 0 or b != 0 or c != 0:
                x -= a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0]
                y -= a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1]
                z -= a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2]
            squared = x * x + y * y + z * z
            if squared <= limit:
                edges.vector[count, 0], edges.vector[count, 1], edges.vector[count, 2] = x, y, z
                edges.distance[count] = np.sqrt(squared)
                edges.center[count], edges.source[count] = i, j
                count += 1
        if count - edges.row_ptr[i] > most:
            count = _drop_longest(edges, edges.row_ptr[i], count, most)
        edges.row_ptr[i + 1] = count
    _sort_by_source(edges, n_atoms, count)
    return count


@exact
def _drop_longest(edges: Edges, begin: int, end: int, most: int) -> int:
    """Keep the `most` shortest edges, of equal ones (to 1e-9 Å) the first; returns where they end."""
    step = np.rint(edges.distance[begin:end] * 1e9)
    place = begin
    for edge in range(begin, end):
        rank, own = 0, step[edge - begin]
        for other in range(end - begin):
            rank += (step[other] < own) | ((step[other] == own) & (other < edge - begin))
        if rank < most:
            edges.vector[place] = edges.vector[edge]
            edges.distance[place], edges.source[place] = edges.distance[edge], edges.source[edge]
            place += 1
    return place


@kernel
def _sort_by_source(edges: Edges, n_atoms: int, count: int) -> None:
    for edge in range(count):
        edges.column_ptr[edges.source[edge] + 1] += 1
    for j in range(n_atoms):
        edges.column_ptr[j + 1] += edges.column_ptr[j]
    place = edges.column_ptr[:n_atoms].copy()
    for edge in range(count):
        j = edges.source[edge]
        edges.by_source[place[j]] = edge
        place[j] += 1


@exact
def describe_edges(structure: Structure, grid: Grid, edges: Edges, count: int) -> None:
    """Unit vectors, positions in the tables, and the polynomial envelope of J. Gasteiger et al. (ICLR 2020, eq. 8)."""
    step = grid.cutoff / (grid.n_knots - 1)
    p = grid.exponent
    for edge in range(count):
        r = edges.distance[edge]
        for k in range(3):
            edges.unit[edge, k] = edges.vector[edge, k] / r
        knot = min(int(r / step), grid.n_knots - 2)
        t = r / step - knot
        center, source = structure.element[edges.center[edge]], structure.element[edges.source[edge]]
        edges.slot[edge] = (center * grid.n_elements + source) * grid.n_knots + knot
        spline = edges.spline[edge]
        _quintic(t, step, spline)
        x = min(r / grid.cutoff, 1.0)
        power = x ** (p - 1)
        inside = -(p + 1) * (p + 2) / 2.0 + x * (p * (p + 2) - x * (p * (p + 1) / 2.0))
        edges.envelope[edge, 0] = 1.0 + power * x * inside
        edges.envelope[edge, 1] = -0.5 * p * (p + 1) * (p + 2) * power * (1.0 - x) * (1.0 - x) / grid.cutoff


@inline
def _quintic(t: float, step: float, spline: Array) -> None:
    """Hermite polynomials of degree 5 at the fraction t of an interval, and their derivatives by the distance."""
    s = 1.0 - t
    spline[0] = s * s * s * (1.0 + t * (3.0 + 6.0 * t))
    spline[1] = step * t * s * s * s * (1.0 + 3.0 * t)
    spline[2] = 0.5 * step * step * t * t * s * s * s
    spline[3] = t * t * t * (1.0 + s * (3.0 + 6.0 * s))
    spline[4] = -step * s * t * t * t * (1.0 + 3.0 * s)
    spline[5] = 0.5 * step * step * s * s * t * t * t
    spline[6] = 30.0 * t * t * s * s
    spline[7] = s * s * (1.0 + t * (2.0 - 15.0 * t))
    spline[8] = 0.5 * step * t * s * s * (2.0 - 5.0 * t)
    spline[9] = t * t * (1.0 + s * (2.0 - 15.0 * s))
    spline[10] = -0.5 * step * s * t * t * (2.0 - 5.0 * s)


@exact
def edge_gradients(edges: Edges, count: int, d_unit: Array, d_distance: Array, d_vector: Array) -> None:
    """dE/dvector (float64) from the derivatives by unit vector and distance."""
    for edge in range(count):
        r = edges.distance[edge]
        u0, u1, u2 = edges.vector[edge, 0] / r, edges.vector[edge, 1] / r, edges.vector[edge, 2] / r
        g0, g1, g2 = np.float64(d_unit[edge, 0]), np.float64(d_unit[edge, 1]), np.float64(d_unit[edge, 2])
        radial = np.float64(d_distance[edge]) - (g0 * u0 + g1 * u1 + g2 * u2) / r
        d_vector[edge, 0] = g0 / r + radial * u0
        d_vector[edge, 1] = g1 / r + radial * u1
        d_vector[edge, 2] = g2 / r + radial * u2


@exact
def atom_forces(first: int, last: int, edges: Edges, d_vector: Array, forces: Array) -> None:
    """-dE/dposition: minus the edges that end at an atom, plus those that begin there."""
    for i in range(first, last):
        f0 = f1 = f2 = 0.0
        for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
            f0 -= d_vector[edge, 0]
            f1 -= d_vector[edge, 1]
            f2 -= d_vector[edge, 2]
        for place in range(edges.column_ptr[i], edges.column_ptr[i + 1]):
            edge = edges.by_source[place]
            f0 += d_vector[edge, 0]
            f1 += d_vector[edge, 1]
            f2 += d_vector[edge, 2]
        forces[i, 0], forces[i, 1], forces[i, 2] = f0, f1, f2


@exact
def strain_gradient(edges: Edges, structure: Structure, d_vector: Array, result: Array) -> None:
    """dE/dstrain[a, b] = sum over edges of vector[a] dE/dvector[b], added up for each structure."""
    result[:] = 0.0
    for i in range(structure.positions.shape[0]):
        own = result[structure.batch[i]]
        for edge in range(edges.row_ptr[i], edges.row_ptr[i + 1]):
            for a in range(3):
                for b in range(3):
                    own[a, b] += edges.vector[edge, a] * d_vector[edge, b]
