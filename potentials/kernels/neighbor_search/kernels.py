"""Triton kernel of `neighbor_search`; it runs twice, to count the edges of every center and to write them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def image_of(bin_index, COUNT: tl.constexpr, REACH: tl.constexpr):
    """floor(bin_index / COUNT) for bin_index from -REACH on; integer division truncates, hence the detour."""
    return (bin_index + COUNT * REACH) // COUNT - REACH


@triton.jit
def translated(frame, shift_x, shift_y, shift_z, column):
    """One component of the lattice translation of an image."""
    x = shift_x * tl.load(frame + column)
    y = shift_y * tl.load(frame + 3 + column)
    return x + y + shift_z * tl.load(frame + 6 + column)


@triton.jit
def search_kernel(
    inside,
    moved,
    bins,
    batch,
    frame,
    periodic,
    order,
    bin_ptr,
    counts,
    row_ptr,
    center,
    source,
    shift,
    capacity,
    SQUARED_CUTOFF: tl.constexpr,
    COUNT_X: tl.constexpr,
    COUNT_Y: tl.constexpr,
    COUNT_Z: tl.constexpr,
    REACH_X: tl.constexpr,
    REACH_Y: tl.constexpr,
    REACH_Z: tl.constexpr,
    WRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Edges of one center: their number, or (WRITE) the edges themselves from row_ptr on."""
    atom = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    structure = tl.load(batch + atom)
    vectors, repeats = frame + 9 * structure, periodic + 3 * structure
    x, y, z = tl.load(inside + 3 * atom), tl.load(inside + 3 * atom + 1), tl.load(inside + 3 * atom + 2)
    found = atom * 0
    if WRITE:
        found = tl.load(row_ptr + atom)
    for stencil in range((2 * REACH_X + 1) * (2 * REACH_Y + 1) * (2 * REACH_Z + 1)):
        bin_x = tl.load(bins + 3 * atom) + stencil // ((2 * REACH_Y + 1) * (2 * REACH_Z + 1)) - REACH_X
        bin_y = tl.load(bins + 3 * atom + 1) + stencil // (2 * REACH_Z + 1) % (2 * REACH_Y + 1) - REACH_Y
        bin_z = tl.load(bins + 3 * atom + 2) + stencil % (2 * REACH_Z + 1) - REACH_Z
        image_x = image_of(bin_x, COUNT_X, REACH_X)
        image_y = image_of(bin_y, COUNT_Y, REACH_Y)
        image_z = image_of(bin_z, COUNT_Z, REACH_Z)
        exists = (image_x == 0) | (tl.load(repeats) != 0)
        exists &= (image_y == 0) | (tl.load(repeats + 1) != 0)
        exists &= (image_z == 0) | (tl.load(repeats + 2) != 0)
        row = (structure * COUNT_X + bin_x - image_x * COUNT_X) * COUNT_Y + bin_y - image_y * COUNT_Y
        row = row * COUNT_Z + bin_z - image_z * COUNT_Z
        first = tl.load(bin_ptr + row)
        last = tl.where(exists, tl.load(bin_ptr + row + 1), first)
        at_home = (image_x == 0) & (image_y == 0) & (image_z == 0)
        d_x = x - translated(vectors, image_x, image_y, image_z, 0)
        d_y = y - translated(vectors, image_x, image_y, image_z, 1)
        d_z = z - translated(vectors, image_x, image_y, image_z, 2)
        for start in range(first, last, BLOCK):
            mask = start + lane < last
            other = tl.load(order + start + lane, mask=mask, other=0)
            o_x = d_x - tl.load(inside + 3 * other, mask=mask, other=0.0)
            o_y = d_y - tl.load(inside + 3 * other + 1, mask=mask, other=0.0)
            o_z = d_z - tl.load(inside + 3 * other + 2, mask=mask, other=0.0)
            itself = (other == atom) & (at_home.to(tl.int32) != 0)
            hit = mask & (o_x * o_x + o_y * o_y + o_z * o_z <= SQUARED_CUTOFF) & (itself == 0)
            if WRITE:
                slot = found + tl.cumsum(hit.to(tl.int32), axis=0) - 1
                fits = hit & (slot < capacity)
                tl.store(center + slot, atom, mask=fits)
                tl.store(source + slot, other, mask=fits)
                at, away = moved + 3 * atom, moved + 3 * other
                target = shift + 3 * slot
                tl.store(target, image_x + tl.load(at) - tl.load(away, mask=fits, other=0), mask=fits)
                tl.store(target + 1, image_y + tl.load(at + 1) - tl.load(away + 1, mask=fits, other=0), mask=fits)
                tl.store(target + 2, image_z + tl.load(at + 2) - tl.load(away + 2, mask=fits, other=0), mask=fits)
            found += tl.sum(hit.to(tl.int32), axis=0)
    if not WRITE:
        tl.store(counts + atom, found)
