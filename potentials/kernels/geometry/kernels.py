"""Triton kernels of `edge_vectors`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def difference(positions, center, source, image, edge, mask):
    """r_i - r_j - image of a block of edges, component by component."""
    i, j = 3 * center.to(tl.int64), 3 * source.to(tl.int64)
    x = tl.load(positions + i, mask=mask, other=0.0) - tl.load(positions + j, mask=mask, other=0.0)
    y = tl.load(positions + i + 1, mask=mask, other=0.0) - tl.load(positions + j + 1, mask=mask, other=0.0)
    z = tl.load(positions + i + 2, mask=mask, other=0.0) - tl.load(positions + j + 2, mask=mask, other=0.0)
    x -= tl.load(image + 3 * edge, mask=mask, other=0.0)
    y -= tl.load(image + 3 * edge + 1, mask=mask, other=0.0)
    z -= tl.load(image + 3 * edge + 2, mask=mask, other=0.0)
    return x, y, z


@triton.jit
def load_vector(vectors, row, mask):
    """Components of rows of a (rows, 3) matrix, in float64."""
    x = tl.load(vectors + 3 * row, mask=mask, other=0.0).to(tl.float64)
    y = tl.load(vectors + 3 * row + 1, mask=mask, other=0.0).to(tl.float64)
    z = tl.load(vectors + 3 * row + 2, mask=mask, other=0.0).to(tl.float64)
    return x, y, z


@triton.jit
def vector_kernel(positions, strain, image, batch, center, source, vector, n_edges, BLOCK: tl.constexpr):
    """One block of edges."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = edge < n_edges
    i = tl.load(center + edge, mask=mask, other=0)
    x, y, z = difference(positions, i, tl.load(source + edge, mask=mask, other=0), image, edge, mask)
    local = strain + 9 * tl.load(batch + i, mask=mask, other=0)
    for column in tl.static_range(3):
        moved = x * tl.load(local + column, mask=mask, other=0.0)
        moved += y * tl.load(local + 3 + column, mask=mask, other=0.0)
        moved += z * tl.load(local + 6 + column, mask=mask, other=0.0)
        own = x if column == 0 else (y if column == 1 else z)
        tl.store(vector + 3 * edge + column, own + moved, mask=mask)


@triton.jit
def gather_kernel(
    positions,
    strain,
    image,
    batch,
    center,
    source,
    row_ptr,
    by_source,
    source_ptr,
    d_vector,
    d_positions,
    virial,
    BLOCK: tl.constexpr,
):
    """Gradient of one atom from the edges at both of its ends, and the strain gradient of those it receives."""
    atom = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    f_x, f_y, f_z = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    w_x, w_y, w_z = tl.zeros([BLOCK, 4], tl.float64), tl.zeros([BLOCK, 4], tl.float64), tl.zeros([BLOCK, 4], tl.float64)
    component = tl.arange(0, 4)
    last = tl.load(row_ptr + atom + 1).to(tl.int64)
    for start in range(tl.load(row_ptr + atom).to(tl.int64), last, BLOCK):
        edge = start + lane
        mask = edge < last
        g_x, g_y, g_z = load_vector(d_vector, edge, mask)
        f_x, f_y, f_z = f_x + g_x, f_y + g_y, f_z + g_z
        target = tl.load(center + edge, mask=mask, other=0)
        x, y, z = difference(positions, target, tl.load(source + edge, mask=mask, other=0), image, edge, mask)
        inside = mask[:, None] & (component[None, :] < 3)
        g = tl.load(d_vector + 3 * edge[:, None] + component[None, :], mask=inside, other=0.0).to(tl.float64)
        w_x += x[:, None] * g
        w_y += y[:, None] * g
        w_z += z[:, None] * g
    row = virial + atom.to(tl.int64) * 9 + component
    tl.store(row, tl.sum(w_x, axis=0), mask=component < 3)
    tl.store(row + 3, tl.sum(w_y, axis=0), mask=component < 3)
    tl.store(row + 6, tl.sum(w_z, axis=0), mask=component < 3)
    last = tl.load(source_ptr + atom + 1).to(tl.int64)
    for start in range(tl.load(source_ptr + atom).to(tl.int64), last, BLOCK):
        mask = start + lane < last
        g_x, g_y, g_z = load_vector(d_vector, tl.load(by_source + start + lane, mask=mask, other=0).to(tl.int64), mask)
        f_x, f_y, f_z = f_x - g_x, f_y - g_y, f_z - g_z
    total_x, total_y, total_z = tl.sum(f_x, axis=0), tl.sum(f_y, axis=0), tl.sum(f_z, axis=0)
    local = strain + 9 * tl.load(batch + atom)
    for column in tl.static_range(3):
        own = total_x if column == 0 else (total_y if column == 1 else total_z)
        moved = tl.load(local + 3 * column) * total_x + tl.load(local + 3 * column + 1) * total_y
        moved += tl.load(local + 3 * column + 2) * total_z
        tl.store(d_positions + atom.to(tl.int64) * 3 + column, own + moved)


@triton.jit
def structure_kernel(virial, atom_ptr, partial, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the virial over one slice of the atoms of one structure."""
    structure, part = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(atom_ptr + structure).to(tl.int64), tl.load(atom_ptr + structure + 1).to(tl.int64)
    size = tl.cdiv(last - first, SLICES)
    stop = tl.minimum(first + (part + 1) * size, last)
    component = tl.arange(0, 16)
    total = tl.zeros([BLOCK, 16], tl.float64)
    for start in range(first + part * size, stop, BLOCK):
        atom = start + tl.arange(0, BLOCK)
        mask = (atom[:, None] < stop) & (component[None, :] < 9)
        total += tl.load(virial + atom[:, None] * 9 + component[None, :], mask=mask, other=0.0)
    tl.store(partial + (structure * SLICES + part) * 9 + component, tl.sum(total, axis=0), mask=component < 9)
