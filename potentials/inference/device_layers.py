"""Layers of E2Former-V2 on a device: matrix products per degree and elementwise parts in torch, attention by a kernel.

Features are (rows, atoms, channels), so that all rows of one degree are one matrix; the kernels take atoms first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.inference.node_kernels import Norm
from e2former_calc.potentials.inference.weights import Contraction, LayerWeights, Projection
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention import AttentionEdges, fused_attention
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions
from e2former_calc.potentials.layers import EPS, GATE_SCALAR_GAIN, GATE_VECTOR_GAIN


@dataclass(frozen=True)
class Placement:
    """Where the weights of a network are, and in which arithmetic.

    Attributes:
        device: of all tensors.
        dtype: of everything but matrices.
        matrix_dtype: of matrices; factors of another dtype are rounded to it, and the product back.
        kernels: how operations over edges are carried out.
    """

    device: torch.device
    dtype: torch.dtype
    matrix_dtype: torch.dtype
    kernels: KernelImplementation

    def values(self, numbers: Tensor | NDArray[Any]) -> Tensor:
        """Biases, gains and other factors."""
        return torch.as_tensor(numbers).to(device=self.device, dtype=self.dtype)

    def matrix(self, numbers: Tensor) -> Tensor:
        """One factor of a matrix product."""
        return numbers.to(device=self.device, dtype=self.matrix_dtype).contiguous()


@dataclass(frozen=True, eq=False)
class EdgeInputs:
    """Geometry of the edges, the same for all layers.

    Attributes:
        index: centers and sources, sorted both ways.
        pair: row of the radial tables, center-major.
        distance: in Å, float64.
        direction: unit vectors from source to center.
        harmonics: Y_lm of the directions.
        envelope: smooth cutoff u(r).
    """

    index: EdgeIndex
    pair: Int[Tensor, " edges"]
    distance: Float[Tensor, " edges"]
    direction: Float[Tensor, "edges 3"]
    harmonics: Float[Tensor, "edges rows"]
    envelope: Float[Tensor, " edges"]


def multiply(x: Float[Tensor, "*rows n_in"], matrix: Float[Tensor, "n_in n_out"]) -> Float[Tensor, "*rows n_out"]:
    """Product x W in the arithmetic of W, rounded to that of x; all rows are one matrix."""
    product = x.flatten(0, -2).to(matrix.dtype) @ matrix
    result: Tensor = product.to(x.dtype).unflatten(0, x.shape[:-1])
    return result


def multiply_degrees(
    parts: Sequence[Tensor], matrices: Sequence[Tensor], bias: Float[Tensor, " n_out"]
) -> list[Tensor]:
    """Products x W for each degree, (rows of the degree, atoms, n_out); the bias goes to l = 0."""
    first, *rest = (multiply(part, matrix) for part, matrix in zip(parts, matrices, strict=True))
    return [first + bias, *rest]


class DeviceNorm:
    """Separable RMS norm: centred scalars, one scale per atom, gains, and a bias on l = 0."""

    def __init__(self, norm: Norm, placement: Placement) -> None:
        self._gain = placement.values(norm.gain[norm.degree])[:, None]
        self._bias = placement.values(norm.bias)
        self._balance = placement.values(norm.balance)[:, None, None]
        self._epsilon = norm.epsilon

    def __call__(
        self, x: Float[Tensor, "rows atoms channels"], shift: Float[Tensor, "atoms channels"] | None = None
    ) -> Float[Tensor, "rows atoms channels"]:
        """Normalise; `shift` is added to l = 0."""
        centred = torch.cat([x[:1] - x[:1].mean(dim=2, keepdim=True), x[1:]])
        mean_square = (centred.square() * self._balance).sum(dim=0).mean(dim=1, keepdim=True)
        y = centred * (mean_square + self._epsilon).rsqrt() * self._gain
        offset = self._bias if shift is None else self._bias + shift
        return torch.cat([y[:1] + offset, y[1:]])


class _DeviceProjection:
    """Invariants of every atom -> queries or keys, (atoms, heads, width)."""

    def __init__(self, projection: Projection, heads: int, placement: Placement) -> None:
        self._first, self._first_bias = placement.matrix(projection.first), placement.values(projection.first_bias)
        self._gain, self._bias = placement.values(projection.gain), placement.values(projection.bias)
        self._last = placement.matrix(_heads_first(projection.last, heads))
        self._last_bias = placement.values(_heads_first(projection.last_bias, heads))
        self._heads = heads

    def __call__(self, invariants: Float[Tensor, "atoms n_in"]) -> Float[Tensor, "atoms heads width"]:
        hidden = multiply(invariants, self._first) + self._first_bias
        hidden = silu(layer_norm(hidden, hidden.shape[1:], self._gain, self._bias, EPS))
        result: Tensor = (multiply(hidden, self._last) + self._last_bias).unflatten(1, (self._heads, -1))
        return result


class DeviceLayer:
    """One transformer block.

    Args:
        weights: its matrices.
        config: the network.
        placement: where they go.
    """

    def __init__(self, weights: LayerWeights, config: E2FormerV2Config, placement: Placement) -> None:
        self._config, self._kernels = config, placement.kernels
        self._norms = DeviceNorm(weights.norm_1, placement), DeviceNorm(weights.norm_2, placement)
        self._projections = [_DeviceProjection(p, config.num_heads, placement) for p in weights.projections]
        self._maps, self._output, self._first, self._last = (
            [placement.matrix(matrix) for matrix in matrices]
            for matrices in (weights.maps, weights.output, weights.first, weights.last)
        )
        self._maps_bias, self._output_bias, self._first_bias, self._last_bias, self._gates_bias = (
            placement.values(bias)
            for bias in (
                weights.maps_bias, weights.output_bias, weights.first_bias, weights.last_bias, weights.gates_bias,
            )
        )  # fmt: skip
        self._gates = placement.matrix(weights.gates)
        self._first_order = weights.n_axes == 3
        self._degrees = [2 * degree + 1 for degree in range(config.lmax + 1)]
        self._products = [rows * paths for rows, paths in zip(self._degrees, weights.paths, strict=True)]
        n_entries = weights.n_axes * sum(self._degrees)
        dense = _dense(weights.contraction, sum(self._products), n_entries, config.channels)
        self._contraction = placement.values(dense)

    def __call__(
        self,
        x: Float[Tensor, "rows atoms channels"],
        edges: EdgeInputs,
        table: SplineTable,
        condition: Float[Tensor, "atoms channels"],
    ) -> Float[Tensor, "rows atoms channels"]:
        """Attention on normalised features shifted by `condition`, then feed-forward, both with residuals."""
        x = x + self._attention(self._norms[0](x, condition), edges, table)
        return x + self._feed_forward(self._norms[1](x))

    def _attention(self, h: Tensor, edges: EdgeInputs, table: SplineTable) -> Tensor:
        mapped = multiply_degrees(h.split(self._degrees), self._maps, self._maps_bias)
        n_maps = (self._maps_bias.shape[0] - self._config.channels) // 4
        parts = [part.split([n_maps] * 4 + [self._config.channels], dim=2) for part in mapped]
        query, key = (
            projection(torch.cat([(part[first] * part[first + 1]).sum(dim=0) for part in parts], dim=1))
            for first, projection in zip((0, 2), self._projections, strict=True)
        )
        value = torch.cat([part[4].transpose(0, 1) for part in parts], dim=1)
        moment = fused_attention(
            query, key, value,
            AttentionEdges(
                TabulatedFunctions(table, edges.pair, edges.distance), edges.envelope,
                edges.direction if self._first_order else None,
            ),
            edges.index, normalization=self._config.normalization, implementation=self._kernels,
        )  # fmt: skip
        return torch.cat(multiply_degrees(self._convolved(moment), self._output, self._output_bias))

    def _convolved(self, moment: Float[Tensor, "atoms order rows channels"]) -> list[Tensor]:
        """Moments contracted with Clebsch-Gordan coefficients: for each degree (rows, atoms, paths * channels)."""
        entries = moment.flatten(1, 2)
        products = self._contraction @ entries if self._first_order else entries
        parts = products.split(self._products, dim=1)
        return [
            part.unflatten(1, (rows, -1)).flatten(2).transpose(0, 1)
            for part, rows in zip(parts, self._degrees, strict=True)
        ]

    def _feed_forward(self, h: Tensor) -> Tensor:
        scalars, *higher = multiply_degrees(h.split(self._degrees), self._first, self._first_bias)
        gates = (multiply(scalars[0], self._gates) + self._gates_bias).split(self._config.channels, dim=1)
        gated = [GATE_SCALAR_GAIN * silu(gates[0])[None]]
        gated += [GATE_VECTOR_GAIN * torch.sigmoid(gate) * part for gate, part in zip(gates[1:], higher, strict=True)]
        return torch.cat(multiply_degrees(gated, self._last, self._last_bias))


def _heads_first(values: Tensor, heads: int) -> Tensor:
    """Columns (width, heads) in the order (heads, width)."""
    ordered: Tensor = values.unflatten(-1, (-1, heads)).transpose(-1, -2).flatten(-2)
    return ordered


def _dense(contraction: Contraction, n_products: int, n_entries: int, channels: int) -> Tensor:
    """The couplings as a matrix; its rows are (degree, m, path)."""
    matrix = torch.zeros(n_products, n_entries, dtype=torch.float64)
    rows = (contraction.start + contraction.shift) // channels
    matrix[torch.as_tensor(rows), torch.as_tensor(contraction.entry)] = torch.as_tensor(contraction.factor).double()
    return matrix
