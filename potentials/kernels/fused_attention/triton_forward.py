"""Forward kernel of `fused_attention`: one program per center and block of heads, one pass over its edges.

Everything separates over heads, since channel c belongs to head c mod H: seen as (rows, channels / H, H), the
features of one atom are a matrix of ROWS rows and H columns, and a program owns some of its columns.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from e2former_calc.potentials.kernels.fused_attention.triton_scores import (
    LOWEST,
    activation,
    feature_rows,
    head_features,
    radial_functions,
)


@triton.jit
def count_ties(
    features,
    edges,
    largest,
    lowest_tie,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    ABSENT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Number of scores of a center that equal the largest to rounding (at least 1), and the sum of what they lack."""
    q, key, heads, mask = features
    functions, source, envelope, first, last = edges
    ties, excess = tl.zeros_like(largest), tl.zeros_like(largest)
    for edge in range(first, last):
        gate, _, _, _ = radial_functions(functions, edge, heads, mask, HEADS, SPACING, KNOTS, DERIVATIVES)
        k = head_features(key, tl.load(source + edge), heads, HEADS, WIDTH, BLOCK_WIDTH)
        score = gate * tl.sum(q * k, axis=1)
        if ABSENT:
            score = tl.where(tl.load(envelope + edge) != 0.0, score, LOWEST)
        tied = score >= lowest_tie
        ties += tl.where(tied, 1.0, 0.0)
        excess += tl.where(tied, score - largest, 0.0)
    return tl.maximum(ties, 1.0), excess


@triton.jit
def attention_forward_kernel(
    query,
    key,
    value,
    radial,
    pair,
    distance,
    envelope,
    direction,
    source,
    row_ptr,
    moment,
    statistics,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    ORDER: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    ABSENT: tl.constexpr,
    OFFSET: tl.constexpr,
    TIE: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Moment (atoms, ORDER, ROWS, HEADS) and, for softmax, what backward needs of each row (atoms, 3, HEADS)."""
    atom = tl.program_id(0)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    mask = heads < HEADS
    offsets, row_mask = feature_rows(tl.arange(0, BLOCK_ROWS), heads, HEADS, ROWS)
    functions = (radial, pair, distance)
    first, last = tl.load(row_ptr + atom).to(tl.int64), tl.load(row_ptr + atom + 1).to(tl.int64)
    q = head_features(query, atom, heads, HEADS, WIDTH, BLOCK_WIDTH) * (WIDTH**-0.5)  # [BH, BW]

    dtype = value.dtype.element_ty
    largest = tl.full([BLOCK_HEADS], LOWEST, dtype)
    second, total = largest, tl.zeros_like(largest)
    sum_x = tl.zeros([BLOCK_ROWS, BLOCK_HEADS], dtype)
    sum_y, sum_z = sum_x, sum_x
    for edge in tl.range(first, last, num_stages=STAGES):
        neighbor = tl.load(source + edge)
        u = tl.load(envelope + edge)
        gate, amplitude, _, _ = radial_functions(functions, edge, heads, mask, HEADS, SPACING, KNOTS, DERIVATIVES)
        k = head_features(key, neighbor, heads, HEADS, WIDTH, BLOCK_WIDTH)  # [BH, BW]
        score = gate * tl.sum(q * k, axis=1)
        if NORMALIZATION == "softmax":
            if ABSENT:
                score = tl.where(u != 0.0, score, LOWEST)
            second = tl.maximum(second, tl.minimum(largest, score))
            raised = tl.maximum(largest, score)
            rescale = tl.exp(largest - raised)
            exponential = tl.exp(score - raised) * u
            largest = raised
            total = total * rescale + exponential
            weight = exponential * amplitude
            sum_x *= rescale[None, :]
            if ORDER == 3:
                sum_y *= rescale[None, :]
                sum_z *= rescale[None, :]
        else:
            strength, _ = activation(score, NORMALIZATION)
            weight = strength * u * amplitude
        v = tl.load(value + neighbor.to(tl.int64) * (ROWS * HEADS) + offsets, mask=row_mask, other=0.0)  # [BR, BH]
        message = weight[None, :] * v
        if ORDER == 3:
            sum_x += tl.load(direction + 3 * edge) * message
            sum_y += tl.load(direction + 3 * edge + 1) * message
            sum_z += tl.load(direction + 3 * edge + 2) * message
        else:
            sum_x += message

    if NORMALIZATION == "softmax":
        lowest_tie = largest - TIE * tl.maximum(tl.abs(largest), 1.0)
        ties, excess = tl.full([BLOCK_HEADS], 1.0, dtype), tl.zeros_like(largest)
        # Rare outside of symmetric structures: only then the scores are looked at again.
        if tl.max(tl.where(mask & (second >= lowest_tie), 1, 0), axis=0) > 0:
            features = (q, key, heads, mask)
            edges = (functions, source, envelope, first, last)
            ties, excess = count_ties(
                features, edges, largest, lowest_tie, HEADS, WIDTH, SPACING, KNOTS, DERIVATIVES, ABSENT, BLOCK_WIDTH
            )
        # The maximum is the mean of the tied scores: largest + excess / ties.
        offset = OFFSET * tl.exp(excess / ties)
        normalizer = 1.0 / (total + offset)
        row = statistics + atom.to(tl.int64) * (3 * HEADS) + heads
        tl.store(row, largest, mask=mask)
        tl.store(row + HEADS, normalizer, mask=mask)
        tl.store(row + 2 * HEADS, offset * normalizer / ties, mask=mask)
        sum_x *= normalizer[None, :]
        sum_y *= normalizer[None, :]
        sum_z *= normalizer[None, :]
    result = moment + atom.to(tl.int64) * (ORDER * ROWS * HEADS) + offsets
    tl.store(result, sum_x, mask=row_mask)
    if ORDER == 3:
        tl.store(result + ROWS * HEADS, sum_y, mask=row_mask)
        tl.store(result + 2 * ROWS * HEADS, sum_z, mask=row_mask)
