"""Attention over edges in one pass: scores, weights, and the weighted sum of neighbour features.

score[e, h] = gate[e, h] q[i, h] . k[j, h] / sqrt(d), i and j center and source of edge e
softmax: alpha[e, h] = amplitude[e, h] exp(score - M) u / (sum over edges of i of exp(score - M) u + 1e-3)
softplus, sigmoid: alpha[e, h] = amplitude[e, h] f(score) u
moment[i, k, lm, c] = sum over edges e of i of alpha[e, c mod H] direction[e, k] V[j, lm, c]

u is the envelope. M is the largest score of the center; scores that equal it to rounding share its
gradient evenly. Without directions (zero-order attention) k has one value and the factor is 1.

Source: E2Former-V2, arXiv:2601.16622; the one-pass softmax is that of T. Dao et al., FlashAttention,
arXiv:2205.14135, algorithm 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention import reference
from e2former_calc.potentials.kernels.fused_attention.inputs import AttentionEdges, Normalization
from e2former_calc.potentials.kernels.implementation import KernelImplementation, uses_triton
from e2former_calc.potentials.kernels.spline import TabulatedFunctions


def fused_attention(
    query: Float[Tensor, "atoms heads width"],
    key: Float[Tensor, "atoms heads width"],
    value: Float[Tensor, "atoms rows channels"],
    edges: AttentionEdges,
    index: EdgeIndex,
    *,
    normalization: Normalization,
    implementation: KernelImplementation,
) -> Float[Tensor, "atoms order rows channels"]:
    """Moments of neighbour features; zero for isolated atoms.

    Args:
        query, key, value: features of all atoms. Channel c of `value` belongs to head c mod heads.
        edges: what is known of every edge.
        index: centers and sources, sorted both ways.
        normalization: how scores become weights.
        implementation: "reference" (plain torch, any device, differentiable any number of times) or "triton"
            (one pass per center, differentiable once, bitwise repeatable; CUDA, float32 and float64).

    Raises:
        ValueError: for shapes or dtypes that do not go together, an unknown implementation, or a device without it.
        ModuleNotFoundError: if "triton" is asked for and not installed.
    """
    _check(query, key, value, edges, index)
    if not uses_triton(implementation, query.device):
        return reference.fused_attention(query, key, value, edges, index, normalization)
    from e2former_calc.potentials.kernels.fused_attention import launch

    return launch.fused_attention(query, key, value, edges, index, normalization)


def _check(query: Tensor, key: Tensor, value: Tensor, edges: AttentionEdges, index: EdgeIndex) -> None:
    heads, channels = query.shape[1], value.shape[2]
    if query.shape != key.shape or len(query) != index.n_atoms or len(value) != index.n_atoms:
        raise ValueError(
            f"`query` {tuple(query.shape)}, `key` {tuple(key.shape)} and `value` {tuple(value.shape)} must hold one "
            f"row for each of {index.n_atoms} atoms, query and key of the same shape"
        )
    if channels % heads:
        raise ValueError(
            f"channels ({channels}) must be a multiple of heads ({heads}): channel c belongs to head c mod H"
        )
    radial = edges.radial.table.values if isinstance(edges.radial, TabulatedFunctions) else edges.radial
    if radial.shape[-1] != 2 * heads:
        raise ValueError(f"`radial` must hold {heads} gates and {heads} amplitudes, got width {radial.shape[-1]}")
    if len(edges.envelope) != index.n_edges:
        raise ValueError(f"`envelope` has {len(edges.envelope)} entries for {index.n_edges} edges")
    dtypes = {x.dtype for x in (query, key, value, edges.envelope, radial)}
    if edges.direction is not None:
        dtypes.add(edges.direction.dtype)
    if len(dtypes) > 1 or query.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"all inputs must be of one dtype, float32 or float64, got {sorted(map(str, dtypes))}")


__all__ = ["AttentionEdges", "fused_attention"]
