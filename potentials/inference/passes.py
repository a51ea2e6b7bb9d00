"""The work on atoms between two passes over edges, in blocks that stay in the cache; each with its derivative.

All functions are (share, first, last, ...): atoms first ... last - 1, with the scratch memory of one thread. Between
the attention of two layers an atom needs only itself, so that threads meet at the attention alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2former_calc.potentials.inference.compilation import inline, kernel
from e2former_calc.potentials.inference.node_kernels import (
    Norm,
    activate,
    activate_backward,
    gate,
    gate_backward,
    invariants,
    invariants_backward,
    normalize,
    normalize_backward,
    silu,
)
from e2former_calc.potentials.inference.packed import PackedHead, PackedLayer
from e2former_calc.potentials.inference.products import apply, apply_transposed
from e2former_calc.potentials.inference.workspace import LayerMemory, Passing, Scratch
from e2former_calc.potentials.layers import EPS, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN

Array = NDArray[Any]


@kernel
def project(
    share: int, first: int, last: int, layer: PackedLayer, memory: LayerMemory, scratch: Scratch, condition: Array
) -> None:
    """Queries, keys and values of a layer from its input features."""
    degree, none = layer.norm_1.degree, memory.x[:0]
    for begin in range(first, last, scratch.h.shape[1]):
        end = min(begin + scratch.h.shape[1], last)
        h, inner, hidden = scratch.h[share, : end - begin], scratch.invariants[share], scratch.hidden[share]
        maps = memory.maps[begin:end] if memory.maps.shape[0] > 0 else scratch.maps[share, : end - begin]
        normalize(memory.x[begin:end], layer.norm_1, condition[begin:end], memory.scale_1[begin:end], h)
        apply(layer.maps, h, none, maps)
        apply(layer.value, h, none, memory.value[begin:end])
        invariants(maps, degree, inner)
        for which in range(2):
            before, own = memory.hidden[which, begin:end], hidden[which, : end - begin]
            apply(layer.first[which], inner[which, : end - begin], none, before)
            activate(before, layer.gain[which], layer.bias[which], EPS, own)
            apply(layer.last[which], own, none, memory.query_key[which, begin:end])


@kernel
def project_backward(
    share: int, first: int, last: int, layer: PackedLayer, memory: LayerMemory, scratch: Scratch, condition: Array,
    passing: Passing,
) -> None:  # fmt: skip
    """Add to d_x the derivative by the input features, through queries, keys and values."""
    none = memory.x[:0]
    for begin in range(first, last, scratch.h.shape[1]):
        end = min(begin + scratch.h.shape[1], last)
        h, inner, hidden = scratch.h[share, : end - begin], scratch.invariants[share], scratch.hidden[share]
        x, scale = memory.x[begin:end], memory.scale_1[begin:end]
        for which in range(2):
            own = hidden[which, : end - begin]
            apply_transposed(layer.last[which], passing.d_query_key[which, begin:end], none, own)
            activate_backward(memory.hidden[which, begin:end], layer.gain[which], layer.bias[which], EPS, own)
            apply_transposed(layer.first[which], own, none, inner[which, : end - begin])
        if memory.maps.shape[0] > 0:
            maps = memory.maps[begin:end]
        else:
            maps = scratch.maps[share, : end - begin]
            normalize(x, layer.norm_1, condition[begin:end], scale, h)
            apply(layer.maps, h, none, maps)
        invariants_backward(maps, layer.norm_1.degree, inner)
        apply_transposed(layer.maps, maps, none, h)
        apply_transposed(layer.value, passing.d_value[begin:end], h, h)
        normalize_backward(x, layer.norm_1, scale, h, passing.d_x[begin:end])


@kernel
def feed_forward(
    share: int, first: int, last: int, layer: PackedLayer, memory: LayerMemory, scratch: Scratch, convolved: Array,
    output: Array,
) -> None:  # fmt: skip
    """Output map of the convolution and feed-forward network: the features behind a layer."""
    degree, none = layer.norm_2.degree, memory.x[:0]
    for begin in range(first, last, scratch.h.shape[1]):
        end = min(begin + scratch.h.shape[1], last)
        h, x_middle, f = scratch.h[share, : end - begin], memory.x_middle[begin:end], memory.f[begin:end]
        gates = memory.gates[begin:end]
        apply(layer.output, convolved[begin:end], memory.x[begin:end], x_middle)
        normalize(x_middle, layer.norm_2, none, memory.scale_2[begin:end], h)
        apply(layer.opening, h, none, f)
        apply(layer.gates, f, none, gates)
        gate(f, gates, degree, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN, h)
        apply(layer.closing, h, x_middle, output[begin:end])


@kernel
def feed_forward_backward(
    share: int, first: int, last: int, layer: PackedLayer, memory: LayerMemory, scratch: Scratch, passing: Passing
) -> None:
    """From the derivative by the output features to d_x, by what the layer added to, and that by `convolved`."""
    degree, none = layer.norm_2.degree, memory.x[:0]
    for begin in range(first, last, scratch.h.shape[1]):
        end = min(begin + scratch.h.shape[1], last)
        h, d_h = scratch.h[share, : end - begin], scratch.d_h[share, : end - begin]
        d_gates = scratch.gates[share, : end - begin]
        d_x, f, gates = passing.d_x[begin:end], memory.f[begin:end], memory.gates[begin:end]
        apply_transposed(layer.closing, d_x, none, h)
        gate_backward(f, gates, degree, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN, h, d_gates)
        apply_transposed(layer.gates, d_gates, none, h)
        apply_transposed(layer.opening, h, none, d_h)
        normalize_backward(memory.x_middle[begin:end], layer.norm_2, memory.scale_2[begin:end], d_h, d_x)
        apply_transposed(layer.output, d_x, none, passing.convolved[begin:end])


@kernel
def read_out(
    share: int, first: int, last: int, head: PackedHead, norm: Norm, x: Array, scale: Array, scratch: Scratch,
    energies: Array, descriptors: Array, d_x: Array,
) -> None:  # fmt: skip
    """Energies (eV, float64) and normalised scalars of the last features; d_x, if it has atoms, becomes dE/dx."""
    none, channels = x[:0], descriptors.shape[1]
    for begin in range(first, last, scratch.h.shape[1]):
        end = min(begin + scratch.h.shape[1], last)
        h, hidden, slope = scratch.h[share, : end - begin], scratch.hidden[share], scratch.slope[share]
        one, two = hidden[0, : end - begin], hidden[1, : end - begin]
        normalize(x[begin:end], norm, none, scale[begin:end], h)
        descriptors[begin:end] = h[:, :channels]
        apply(head.first, h, none, one)
        silu(one, slope[0])
        apply(head.second, one, none, two)
        silu(two, slope[1])
        for i in range(begin, end):
            energy = head.bias
            for c in range(channels):
                energy += head.last[c] * np.float64(two[i - begin, c])
            energies[i] = energy
        if d_x.shape[0] > 0:
            _head_backward(head, one, two, slope, h)
            d_x[begin:end] = 0.0
            normalize_backward(x[begin:end], norm, scale[begin:end], h, d_x[begin:end])


@kernel
def final_features(
    _: int, first: int, last: int, norm: Norm, x: Array, scale: Array, features: Array
) -> None:  # fmt: skip
    """Normalised features of the last layer."""
    normalize(x[first:last], norm, x[:0], scale[first:last], features[first:last])


@kernel
def final_features_backward(
    _: int, first: int, last: int, norm: Norm, x: Array, scale: Array, d_features: Array, d_x: Array
) -> None:
    """Set d_x to the derivative by the features before their norm."""
    d_x[first:last] = 0.0
    normalize_backward(x[first:last], norm, scale[first:last], d_features[first:last], d_x[first:last])


@inline
def _head_backward(head: PackedHead, one: Array, two: Array, slope: Array, d_h: Array) -> None:
    none = d_h[:0]
    for i in range(d_h.shape[0]):
        for c in range(slope.shape[2]):
            two[i, c] = head.last[c] * slope[1, i, c]
    apply_transposed(head.second, two, none, one)
    for i in range(d_h.shape[0]):
        for c in range(slope.shape[2]):
            one[i, c] *= slope[0, i, c]
    d_h[:] = 0.0
    apply_transposed(head.first, one, none, d_h)
