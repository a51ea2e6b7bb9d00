"""Weights of an E2Former-V2 network in the form that inference uses.

Linear maps that follow each other are one matrix, the four maps of query and key and the value map are one
product per degree, queries and keys are ordered (width, heads), and radial networks are tables. Products of
matrices are formed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from e2former_calc.potentials.e2former_v2.attention import Attention, SolidGate
from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.model import Block, E2FormerV2
from e2former_calc.potentials.edge_softmax import DENOMINATOR_OFFSET, TIE_ROUNDING
from e2former_calc.potentials.inference.embedding import Harmonics
from e2former_calc.potentials.inference.node_kernels import Norm
from e2former_calc.potentials.inference.scores import SIGMOID, SOFTMAX, SOFTPLUS, Rule
from e2former_calc.potentials.inference.tables import gate_layout
from e2former_calc.potentials.layers import EPS, EquivariantRMSNorm, GatedFeedForward, InvariantProjection
from e2former_calc.potentials.so3 import SphericalHarmonics

RULES = {"softmax": SOFTMAX, "softplus": SOFTPLUS, "sigmoid": SIGMOID}


class Contraction(NamedTuple):
    """Sparse contraction of moments: output[start * atoms + atom * stride + shift + c] += factor * moment[entry, c].

    `entry` counts (axis, row) pairs; `output` is all degrees one after the other, each (row, atom, path, channel).
    """

    entry: np.ndarray
    factor: np.ndarray
    start: np.ndarray
    stride: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Projection:
    """Query or key: invariants -> hidden -> (width, heads); matrices are (in, out)."""

    first: Tensor
    first_bias: Tensor
    gain: np.ndarray
    bias: np.ndarray
    last: Tensor
    last_bias: Tensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One block; matrices are (in, out), lists run over degrees.

    Attributes:
        maps, maps_bias: two maps of the query, two of the key, the value map.
        output, output_bias: path mixing and output map in one; input channels are (path, channel).
        contraction, paths, n_axes: couplings of the convolution, paths per degree, axes of its moments.
    """

    norm_1: Norm
    maps: list[Tensor]
    maps_bias: Tensor
    projections: tuple[Projection, Projection]
    contraction: Contraction
    paths: list[int]
    n_axes: int
    output: list[Tensor]
    output_bias: Tensor
    norm_2: Norm
    first: list[Tensor]
    first_bias: Tensor
    gates: Tensor
    gates_bias: Tensor
    last: list[Tensor]
    last_bias: Tensor


@dataclass(frozen=True, eq=False)
class GateWeights:
    """A gate that depends on the direction; matrices are (in, out).

    Attributes:
        dot, dot_bias: map of the center's features, for each degree to the columns of `GateLayout`.
        first, first_bias: map of all columns to the heads.
        gain, bias: of a norm behind it, with silu and the map `last` behind that; no numbers if there is none.
        last, last_bias: this map. Gates have the scale of the scores.
    """

    dot: list[Tensor]
    dot_bias: Tensor
    first: Tensor
    first_bias: Tensor
    gain: np.ndarray
    bias: np.ndarray
    last: Tensor
    last_bias: Tensor


class WeightReader:
    """Reads modules of a network into the arithmetic `dtype`.

    Args:
        model: the network; read, not changed.
        dtype: float32 or float64.
    """

    def __init__(self, model: E2FormerV2, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.config: E2FormerV2Config = model.config

    @property
    def rule(self) -> Rule:
        """How scores become weights."""
        tie = TIE_ROUNDING * torch.finfo(self.dtype).eps
        return Rule(RULES[self.config.normalization], DENOMINATOR_OFFSET, tie)

    def matrix(self, weight: Float[Tensor, "n_out n_in"]) -> Float[Tensor, "n_in n_out"]:
        """Transposed, so that rows of atoms stand on the left."""
        return weight.detach().T.to(device="cpu", dtype=self.dtype).contiguous()

    def vector(self, values: Tensor) -> Tensor:
        """Biases and gains."""
        return values.detach().to(device="cpu", dtype=self.dtype).contiguous()

    def norm(self, module: nn.Module) -> Norm:
        """Constants of one norm.

        Raises:
            TypeError: if it is none.
        """
        if not isinstance(module, EquivariantRMSNorm):
            raise TypeError(f"the prepared form needs norms, got {type(module).__name__}")
        gain, bias = self.vector(module.weight).numpy(), self.vector(module.bias).numpy()
        balance = self.vector(module.balance[:, 0]).numpy()
        return Norm(gain, bias, module.degree.cpu().numpy(), balance, EPS)

    def harmonics(self) -> Harmonics:
        """The recursion of `SphericalHarmonics` as a list of terms."""
        module: SphericalHarmonics = self.model.harmonics
        terms: list[tuple[int, int, int, float]] = []
        for degree in range(module.lmax):
            raising = getattr(module, f"raise_{degree}").unflatten(0, (2 * degree + 1, 3))
            for lower, axis, upper in raising.nonzero().tolist():
                factor = float(raising[lower, axis, upper])
                if abs(factor) > 1e-12:
                    terms.append(((degree + 1) ** 2 + upper, degree**2 + lower, axis, factor))
        rows, lowers, axes, factors = (np.array(column) for column in zip(*terms, strict=True))
        degrees = np.array([degree for degree in range(module.lmax + 1) for _ in range(2 * degree + 1)])
        return Harmonics(rows, lowers, axes, factors.astype(_numpy_dtype(self.dtype)), degrees)

    def layer(self, block: Block) -> LayerWeights:
        """All matrices of one block."""
        attention, feed_forward = block.attention, block.feed_forward
        contraction, paths, output = self._convolution(attention)
        return LayerWeights(
            norm_1=self.norm(block.norm_1),
            maps=self._maps(attention),
            maps_bias=self._maps_bias(attention),
            projections=(self._projection(attention.query), self._projection(attention.key)),
            contraction=contraction,
            paths=paths,
            n_axes=1 if attention.convolution is None else 3,
            output=output,
            output_bias=self.vector(attention.output.bias),
            norm_2=self.norm(block.norm_2),
            **self._feed_forward(feed_forward),
        )

    def gate(self, attention: Attention) -> GateWeights | None:
        """The gate of one block, if it depends on the direction."""
        module, layout = attention.gate, gate_layout(self.config)
        if module is None or layout is None:
            return None
        scale, missing = self.config.head_width**-0.5, (0, layout.width - module.dot.bias.shape[0])
        columns = torch.zeros(self.config.num_heads, layout.width * (self.config.lmax + 1), dtype=torch.float64)
        inner, norm = (module.first, module.norm) if isinstance(module, SolidGate) else (module.last, None)
        inner_scale = scale if norm is None else 1.0
        columns[:, layout.place] = inner.weight.detach().double().cpu()
        empty = self.vector(torch.zeros(0)).numpy()
        return GateWeights(
            dot=[self.matrix(pad(weight, (0, 0, *missing))) for weight in module.dot.weight],
            dot_bias=self.vector(pad(module.dot.bias, missing)),
            first=self.matrix(columns * inner_scale),
            first_bias=self.vector(inner.bias.double() * inner_scale),
            gain=empty if norm is None else self.vector(norm.weight).numpy(),
            bias=empty if norm is None else self.vector(norm.bias).numpy(),
            last=self.matrix(module.last.weight.double() * scale),
            last_bias=self.vector(module.last.bias.double() * scale),
        )

    def _maps(self, attention: Attention) -> list[Tensor]:
        modules = (attention.query, attention.key)
        found = []
        for degree in range(self.config.lmax + 1):
            pairs = [weight[degree] for module in modules for weight in (module.weight, module.weight2)]
            found.append(self.matrix(torch.cat([*pairs, attention.value.weight[degree]])))
        return found

    def _maps_bias(self, attention: Attention) -> Tensor:
        parts = []
        for module in (attention.query, attention.key):
            parts += [module.bias, torch.zeros_like(module.bias)]
        return self.vector(torch.cat([*parts, attention.value.bias]))

    def _projection(self, module: InvariantProjection) -> Projection:
        heads, width = self.config.num_heads, self.config.head_width
        order = torch.arange(heads * width).unflatten(0, (heads, width)).T.flatten()
        return Projection(
            first=self.matrix(module.first.weight),
            first_bias=self.vector(module.first.bias),
            gain=self.vector(module.norm.weight).numpy(),
            bias=self.vector(module.norm.bias).numpy(),
            last=self.matrix(module.last.weight[order]),
            last_bias=self.vector(module.last.bias[order]),
        )

    def _convolution(self, attention: Attention) -> tuple[Contraction, list[int], list[Tensor]]:
        lmax, convolution = self.config.lmax, attention.convolution
        n_rows = (lmax + 1) ** 2
        if convolution is None:
            paths, rows = [1] * (lmax + 1), torch.eye(n_rows, dtype=torch.float64)
            mixed = list(attention.output.weight)
        else:
            paths, rows = list(convolution.n_paths), convolution.contraction
            mixed = [
                attention.output.weight[degree].detach().double() @ mixing.detach().double()
                for degree, mixing in enumerate(convolution.mixing)
            ]
        return self._terms(rows, paths), paths, [self.matrix(weight) for weight in mixed]

    def _terms(self, matrix: Float[Tensor, "products entries"], paths: list[int]) -> Contraction:
        """Non-zero couplings; rows of `matrix` are (degree, path, m), its columns (axis, row)."""
        channels = self.config.channels
        places: list[tuple[int, int, int]] = []
        start = 0
        for degree, n_paths in enumerate(paths):
            for path in range(n_paths):
                for m in range(2 * degree + 1):
                    places.append((start + m * n_paths * channels, n_paths * channels, path * channels))
            start += (2 * degree + 1) * n_paths * channels
        terms = [
            (entry, float(matrix[product, entry]), *places[product])
            for product, entry in matrix.nonzero().tolist()
            if abs(float(matrix[product, entry])) > 1e-12
        ]
        entry, factor, begin, stride, shift = (np.array(column) for column in zip(*terms, strict=True))
        return Contraction(entry, factor.astype(_numpy_dtype(self.dtype)), begin, stride, shift)

    def _feed_forward(self, module: GatedFeedForward) -> dict[str, Any]:
        degrees = range(self.config.lmax + 1)
        return {
            "first": [self.matrix(module.first.weight[degree]) for degree in degrees],
            "first_bias": self.vector(module.first.bias),
            "gates": self.matrix(module.gate.weight),
            "gates_bias": self.vector(module.gate.bias),
            "last": [self.matrix(module.last.weight[degree]) for degree in degrees],
            "last_bias": self.vector(module.last.bias),
        }


def _numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    return np.float64 if dtype == torch.float64 else np.float32
