"""Backward kernels of `fused_attention`: over centers (queries, edges), then over sources (keys, features).

With P = exp(a - M) u / (sum + 1e-3), alpha = P w, g = dE/d moment and t_k = sum over rows of g_k V:
dE/d alpha = sum_k direction_k t_k, dE/da = P (w dE/d alpha - D) - D share 1e-3 / (sum + 1e-3), where
D = sum over edges of alpha dE/d alpha = sum over k and rows of g moment. The last term is the derivative through the
maximum, for the edges that hold it.
The scores are computed again; nothing is added from two programs to one address.
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
def edge_gradient(
    score, amplitude, u, d_alpha, row, NORMALIZATION: tl.constexpr, ABSENT: tl.constexpr, TIE: tl.constexpr
):
    """Weight alpha and the derivatives of the energy with respect to score, amplitude and envelope.

    `row` is (largest score, 1 / denominator, share of the maximum, D) of the center.
    """
    if NORMALIZATION == "softmax":
        largest, normalizer, share, d_row = row
        if ABSENT:
            score = tl.where(u != 0.0, score, LOWEST)
        bare = tl.exp(score - largest) * normalizer
        tied = score >= largest - TIE * tl.maximum(tl.abs(largest), 1.0)
        if ABSENT:
            bare = tl.where(u != 0.0, bare, 0.0)
        d_probability = amplitude * d_alpha - d_row
        alpha = bare * u * amplitude
        d_score = bare * u * d_probability - tl.where(tied, share * d_row, 0.0)
        d_amplitude = bare * u * d_alpha
        d_envelope = bare * d_probability
    else:
        strength, slope = activation(score, NORMALIZATION)
        if ABSENT:
            strength = tl.where(u != 0.0, strength, 0.0)
        alpha = strength * u * amplitude
        d_score = slope * u * amplitude * d_alpha
        d_amplitude = strength * u * d_alpha
        d_envelope = strength * amplitude * d_alpha
    return alpha, d_score, d_amplitude, d_envelope


@triton.jit
def softmax_row(statistics, atom, heads, mask, HEADS: tl.constexpr, NORMALIZATION: tl.constexpr):
    """Largest score, 1 / denominator and share of the maximum of one center."""
    if NORMALIZATION == "softmax":
        row = statistics + atom.to(tl.int64) * (3 * HEADS) + heads
        largest = tl.load(row, mask=mask, other=0.0)
        normalizer = tl.load(row + HEADS, mask=mask, other=0.0)
        share = tl.load(row + 2 * HEADS, mask=mask, other=0.0)
    else:
        largest = tl.zeros_like(heads).to(statistics.dtype.element_ty)
        normalizer, share = largest, largest
    return largest, normalizer, share


@triton.jit
def attention_center_kernel(
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
    d_moment,
    d_query,
    d_radial,
    d_edge,
    d_row,
    n_edges,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    ORDER: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    ABSENT: tl.constexpr,
    TIE: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Queries, edges, and D of each center.

    d_edge (blocks of heads, edges, 5) holds this block's part of the derivatives with respect to envelope,
    direction and, with a table, distance; d_radial (edges, 2 HEADS) is written without a table.
    """
    atom = tl.program_id(0)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    mask = heads < HEADS
    offsets, row_mask = feature_rows(tl.arange(0, BLOCK_ROWS), heads, HEADS, ROWS)
    functions = (radial, pair, distance)
    first, last = tl.load(row_ptr + atom).to(tl.int64), tl.load(row_ptr + atom + 1).to(tl.int64)
    scale: tl.constexpr = WIDTH**-0.5
    q = head_features(query, atom, heads, HEADS, WIDTH, BLOCK_WIDTH) * scale  # [BH, BW]
    largest, normalizer, share = softmax_row(statistics, atom, heads, mask, HEADS, NORMALIZATION)

    g_row = atom.to(tl.int64) * (ORDER * ROWS * HEADS) + offsets
    g_x = tl.load(d_moment + g_row, mask=row_mask, other=0.0)  # [BR, BH]
    product = tl.sum(g_x * tl.load(moment + g_row, mask=row_mask, other=0.0), axis=0)
    if ORDER == 3:
        g_y = tl.load(d_moment + g_row + ROWS * HEADS, mask=row_mask, other=0.0)
        g_z = tl.load(d_moment + g_row + 2 * ROWS * HEADS, mask=row_mask, other=0.0)
        product += tl.sum(g_y * tl.load(moment + g_row + ROWS * HEADS, mask=row_mask, other=0.0), axis=0)
        product += tl.sum(g_z * tl.load(moment + g_row + 2 * ROWS * HEADS, mask=row_mask, other=0.0), axis=0)
    tl.store(d_row + atom.to(tl.int64) * HEADS + heads, product, mask=mask)

    d_q = tl.zeros_like(q)
    for edge in tl.range(first, last, num_stages=STAGES):
        neighbor = tl.load(source + edge)
        u = tl.load(envelope + edge)
        gate, amplitude, gate_slope, amplitude_slope = radial_functions(
            functions, edge, heads, mask, HEADS, SPACING, KNOTS, DERIVATIVES
        )
        k = head_features(key, neighbor, heads, HEADS, WIDTH, BLOCK_WIDTH)  # [BH, BW]
        dot = tl.sum(q * k, axis=1)
        v = tl.load(value + neighbor.to(tl.int64) * (ROWS * HEADS) + offsets, mask=row_mask, other=0.0)  # [BR, BH]
        t_x = tl.sum(g_x * v, axis=0)
        if ORDER == 3:
            t_y = tl.sum(g_y * v, axis=0)
            t_z = tl.sum(g_z * v, axis=0)
            d_alpha = tl.load(direction + 3 * edge) * t_x + tl.load(direction + 3 * edge + 1) * t_y
            d_alpha += tl.load(direction + 3 * edge + 2) * t_z
        else:
            d_alpha = t_x
        row = (largest, normalizer, share, product)
        alpha, d_score, d_amplitude, d_u = edge_gradient(
            gate * dot, amplitude, u, d_alpha, row, NORMALIZATION, ABSENT, TIE
        )
        d_q += (d_score * gate)[:, None] * k
        out = d_edge + (tl.program_id(1).to(tl.int64) * n_edges + edge) * 5
        tl.store(out, tl.sum(tl.where(mask, d_u, 0.0), axis=0))
        if ORDER == 3:
            tl.store(out + 1, tl.sum(alpha * t_x, axis=0))
            tl.store(out + 2, tl.sum(alpha * t_y, axis=0))
            tl.store(out + 3, tl.sum(alpha * t_z, axis=0))
        if KNOTS == 0:
            row_out = d_radial + edge * (2 * HEADS) + heads
            tl.store(row_out, d_score * dot, mask=mask)
            tl.store(row_out + HEADS, d_amplitude, mask=mask)
        else:
            tl.store(out + 4, tl.sum(d_score * dot * gate_slope + d_amplitude * amplitude_slope, axis=0))
    columns = tl.arange(0, BLOCK_WIDTH)
    target = d_query + atom.to(tl.int64) * (HEADS * WIDTH) + heads[:, None] * WIDTH + columns[None, :]
    tl.store(target, d_q * scale, mask=mask[:, None] & (columns[None, :] < WIDTH))


@triton.jit
def attention_source_kernel(
    query,
    key,
    value,
    radial,
    pair,
    distance,
    envelope,
    direction,
    center,
    by_source,
    source_ptr,
    statistics,
    d_moment,
    d_row,
    d_key,
    d_value,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    ORDER: tl.constexpr,
    SPACING: tl.constexpr,
    KNOTS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    ABSENT: tl.constexpr,
    TIE: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Keys and features of each source, summed over the edges that it sends."""
    atom = tl.program_id(0)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    mask = heads < HEADS
    offsets, row_mask = feature_rows(tl.arange(0, BLOCK_ROWS), heads, HEADS, ROWS)
    functions = (radial, pair, distance)
    k = head_features(key, atom, heads, HEADS, WIDTH, BLOCK_WIDTH)  # [BH, BW]
    v = tl.load(value + atom.to(tl.int64) * (ROWS * HEADS) + offsets, mask=row_mask, other=0.0)  # [BR, BH]
    d_k, d_v = tl.zeros_like(k), tl.zeros_like(v)
    first, last = tl.load(source_ptr + atom), tl.load(source_ptr + atom + 1)
    for slot in tl.range(first, last, num_stages=STAGES):
        edge = tl.load(by_source + slot).to(tl.int64)
        target = tl.load(center + edge)
        u = tl.load(envelope + edge)
        gate, amplitude, _, _ = radial_functions(functions, edge, heads, mask, HEADS, SPACING, KNOTS, DERIVATIVES)
        # The factors in the order of the other kernels, so that the score is the same to the last bit.
        q = head_features(query, target, heads, HEADS, WIDTH, BLOCK_WIDTH) * (WIDTH**-0.5)  # [BH, BW]
        g_row = target.to(tl.int64) * (ORDER * ROWS * HEADS) + offsets
        g = tl.load(d_moment + g_row, mask=row_mask, other=0.0)  # [BR, BH]
        if ORDER == 3:
            g *= tl.load(direction + 3 * edge)
            g += tl.load(direction + 3 * edge + 1) * tl.load(d_moment + g_row + ROWS * HEADS, mask=row_mask, other=0.0)
            g += tl.load(direction + 3 * edge + 2) * tl.load(
                d_moment + g_row + 2 * ROWS * HEADS, mask=row_mask, other=0.0
            )
        product = tl.load(d_row + target.to(tl.int64) * HEADS + heads, mask=mask, other=0.0)
        largest, normalizer, share = softmax_row(statistics, target, heads, mask, HEADS, NORMALIZATION)
        row = (largest, normalizer, share, product)
        alpha, d_score, _, _ = edge_gradient(
            gate * tl.sum(q * k, axis=1), amplitude, u, tl.sum(g * v, axis=0), row, NORMALIZATION, ABSENT, TIE
        )
        d_k += (d_score * gate)[:, None] * q
        d_v += alpha[None, :] * g
    columns = tl.arange(0, BLOCK_WIDTH)
    key_out = d_key + atom.to(tl.int64) * (HEADS * WIDTH) + heads[:, None] * WIDTH + columns[None, :]
    tl.store(key_out, d_k, mask=mask[:, None] & (columns[None, :] < WIDTH))
    tl.store(d_value + atom.to(tl.int64) * (ROWS * HEADS) + offsets, d_v, mask=row_mask)
