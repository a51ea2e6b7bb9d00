"""Weights of a network as the native kernels read them: matrices in panels, a layer as one tuple."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.potentials.e2former_v2.heads import EnergyHead
from e2former_calc.potentials.inference.attention import Coupling
from e2former_calc.potentials.inference.node_kernels import Norm
from e2former_calc.potentials.inference.products import LinearMap, linear_map
from e2former_calc.potentials.inference.weights import Contraction, GateWeights, LayerWeights, WeightReader

Array = NDArray[Any]


class PackedLayer(NamedTuple):
    """One block.

    Attributes:
        maps, value: two maps of the query and two of the key; the value map.
        first, last: query and key: invariants -> hidden, hidden -> (width, heads); `gain`, `bias` (2, hidden) of the
            norm between them.
        coupling: contraction of moments; each atom has its rows (degree, m, path, channel) one after another.
        output: path mixing and output map in one.
        opening, gates, closing: the feed-forward network.
    """

    norm_1: Norm
    maps: LinearMap
    value: LinearMap
    first: tuple[LinearMap, LinearMap]
    gain: Array
    bias: Array
    last: tuple[LinearMap, LinearMap]
    coupling: Coupling
    output: LinearMap
    norm_2: Norm
    opening: LinearMap
    gates: LinearMap
    closing: LinearMap


class PackedHead(NamedTuple):
    """Two linear layers with silu behind each, and a last one to one number (float64)."""

    first: LinearMap
    second: LinearMap
    last: Array
    bias: float


class PackedGate(NamedTuple):
    """A gate that depends on the direction.

    Attributes:
        dot: map of the center's features.
        first: map of projections to the heads; gates are what it gives, or if `gain` has numbers:
        gain, bias, last: a norm, silu, and a second map.
    """

    dot: LinearMap
    first: LinearMap
    gain: Array
    bias: Array
    last: LinearMap


def packed_layer(weights: LayerWeights, n_channels: int) -> PackedLayer:
    """One block in panels."""
    split = weights.maps[0].shape[1] - n_channels
    query, key = weights.projections
    n_entries = weights.n_axes * len(weights.norm_1.degree)
    return PackedLayer(
        norm_1=weights.norm_1,
        maps=_map([matrix[:, :split] for matrix in weights.maps], weights.maps_bias[:split]),
        value=_map([matrix[:, split:] for matrix in weights.maps], weights.maps_bias[split:]),
        first=(_map([query.first], query.first_bias), _map([key.first], key.first_bias)),
        gain=np.stack([query.gain, key.gain]),
        bias=np.stack([query.bias, key.bias]),
        last=(_map([query.last], query.last_bias), _map([key.last], key.last_bias)),
        coupling=_coupling(weights.contraction, n_entries, n_channels),
        output=_map(weights.output, weights.output_bias),
        norm_2=weights.norm_2,
        opening=_map(weights.first, weights.first_bias),
        gates=_map([weights.gates], weights.gates_bias),
        closing=_map(weights.last, weights.last_bias),
    )


def packed_gate(weights: GateWeights) -> PackedGate:
    """A gate in panels."""
    return PackedGate(
        dot=_map(weights.dot, weights.dot_bias),
        first=_map([weights.first], weights.first_bias),
        gain=weights.gain,
        bias=weights.bias,
        last=_map([weights.last], weights.last_bias),
    )


def packed_head(head: EnergyHead, reader: WeightReader) -> PackedHead:
    """The energy head in panels."""
    first, second = (
        _map([reader.matrix(layer.weight)], reader.vector(layer.bias)) for layer in (head.first, head.second)
    )
    last = head.last.weight.detach()[0].double().cpu().numpy()
    return PackedHead(first, second, np.ascontiguousarray(last), float(head.last.bias.detach().double()))


def _map(matrices: list[Tensor], bias: Tensor) -> LinearMap:
    return linear_map([matrix.numpy() for matrix in matrices], bias.numpy())


def _coupling(contraction: Contraction, n_entries: int, n_channels: int) -> Coupling:
    """The same terms sorted by row, and by moment; rows of one atom stand one after another."""
    places = contraction.start + contraction.shift
    place, row = np.unique(places, return_inverse=True)
    by_row, by_entry = np.argsort(row, kind="stable"), np.argsort(contraction.entry, kind="stable")
    return Coupling(
        place=place, row_ptr=np.searchsorted(row[by_row], np.arange(len(place) + 1)),
        entry=contraction.entry[by_row] * n_channels, factor=contraction.factor[by_row],
        column_ptr=np.searchsorted(contraction.entry[by_entry], np.arange(n_entries + 1)), target=places[by_entry],
        column_factor=contraction.factor[by_entry], width=len(place) * n_channels,
    )  # fmt: skip
