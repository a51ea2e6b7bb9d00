"""Radial networks as tables: quintic Hermite splines in r, one for each ordered pair of elements.

The networks of E2Former-V2 that enter the score and the input embedding depend on distance and elements alone.
Values and slopes at equally spaced knots are exact (float64); forces use the
derivative of the spline, so that they are the gradient of the tabulated energy, with a continuous slope.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import pi, sqrt
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v2.attention import Attention, DirectionGate
from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.model import Block, E2FormerV2
from e2former_calc.potentials.layers import RadialNetwork

Radial = Callable[[Float[Tensor, " distances"]], Float[Tensor, "distances width"]]
"""Values of a radial function of one pair of elements for distances in Å."""

WIDTH_UNIT = 16
"""Columns of gates are filled up to a multiple of this, so that they are whole vectors."""

_STEP = 1e-3
_CENTRAL_DIFFERENCE = ((1, 3.0 / 4.0), (2, -3.0 / 20.0), (3, 1.0 / 60.0))


@dataclass(frozen=True)
class GateLayout:
    """How the numbers of a gate stand that depends on the direction: (degree, column).

    Attributes:
        width: columns per degree.
        place, degree: of each radial function, among all columns of all degrees.
    """

    width: int
    place: list[int]
    degree: list[int]


def gate_layout(config: E2FormerV2Config) -> GateLayout | None:
    """Of the gates of a network; None if they depend on the distance alone."""
    if config.score == "QK_alpha":
        return None
    degrees = config.lmax + 1
    if config.score == "QKdot_alpha":
        used, n_functions = config.num_basis, config.num_basis * degrees
    else:
        used, n_functions = config.num_heads // degrees + 1, config.num_heads
    width = -(-used // WIDTH_UNIT) * WIDTH_UNIT
    pairs = [divmod(function, used) for function in range(n_functions)]
    return GateLayout(width, [degree * width + column for degree, column in pairs], [degree for degree, _ in pairs])


class RadialTables:
    """Tables of one network, for the pairs of elements that have been asked for.

    Args:
        model: the network; its radial networks are read when elements are added.
        dtype: what tables are rounded to.
        n_knots: knots from 0 to the cutoff.

    Attributes:
        elements: atomic numbers that the tables cover, ascending.
        embedding: (slots, 4, degrees * channels), with envelope and average degree; slot = (center * elements +
            source) * knots + knot. Values, slopes (1/Å), curvatures (1/Å^2) and chords (1/Å, `with_chords`).
        attention: for each layer (slots, 4, 2 * heads): gates, with the scale of the scores, and amplitudes; or
            (slots, 4, heads) if gates depend on the direction: amplitudes.
        gates: for each layer with such gates (slots, 4, degrees * width): the functions of the distance in them.
    """

    def __init__(self, model: E2FormerV2, *, dtype: torch.dtype, n_knots: int) -> None:
        self.cutoff, self.n_knots, self.dtype = model.config.max_radius, n_knots, dtype
        self.elements: tuple[int, ...] = ()
        self.embedding: NDArray[Any] = np.empty((0, 4, 0))
        self.attention: list[NDArray[Any]] = []
        self.gates: list[NDArray[Any]] = []
        self._model = model

    def cover(self, elements: Sequence[int]) -> bool:
        """Make tables for these atomic numbers too; returns whether any was new."""
        union = tuple(sorted({*self.elements, *elements}))
        if union == self.elements:
            return False
        functions, known = _RadialFunctions(self._model), self.elements
        old, n = [self.embedding, *self.attention, *self.gates], self.n_knots
        # Memory of torch starts on a cache line, so that no vector of a row of 16 numbers lies on two of them.
        new = [torch.empty(len(union) ** 2 * n, 4, width, dtype=self.dtype).numpy() for width in functions.widths]
        for pair, (center, source) in enumerate(product(union, union)):
            rows = slice(pair * n, (pair + 1) * n)
            if center in known and source in known:
                before = known.index(center) * len(known) + known.index(source)
                for table, source_table in zip(new, old, strict=True):
                    table[rows] = source_table[before * n : (before + 1) * n]
                continue
            for table, function in zip(new, functions.of_pair(center, source), strict=True):
                table[rows] = self._made(function)
        self.elements = union
        n_layers = len(self._model.blocks)
        self.embedding, self.attention, self.gates = new[0], new[1 : n_layers + 1], new[n_layers + 1 :]
        return True

    def _made(self, function: Radial) -> NDArray[Any]:
        table = radial_table(function, cutoff=self.cutoff, n_knots=self.n_knots).numpy()
        return with_chords(table, n_knots=self.n_knots, step=self.cutoff / (self.n_knots - 1))


class _RadialFunctions:
    """The radial networks of a model in float64."""

    def __init__(self, model: E2FormerV2) -> None:
        def exact(module: nn.Module) -> Any:
            return copy.deepcopy(module).to(device="cpu", dtype=torch.float64).eval().requires_grad_(False)

        self.basis, self.embedding = exact(model.basis), exact(model.embedding)
        self.layers: list[Attention] = [exact(cast(Block, block).attention) for block in model.blocks]
        channels, degrees, heads = model.config.channels, model.config.lmax + 1, model.config.num_heads
        self.layout = gate_layout(model.config)
        self.widths = [degrees * channels] + [2 * heads if self.layout is None else heads] * len(self.layers)
        if self.layout is not None:
            self.widths += [degrees * self.layout.width] * len(self.layers)
        self.heads, self.scale = heads, 1.0 / sqrt(model.config.head_width)
        self.envelope = model.envelope

    def of_pair(self, center: int, source: int) -> list[Radial]:
        """Embedding, attention of layers, and their gates if they have tables, as functions of the distance."""
        rows = torch.tensor([center]), torch.tensor([source])
        attention = [self._layer(layer, *rows) for layer in self.layers]
        gates = [] if self.layout is None else [self._gate(layer, self.layout, *rows) for layer in self.layers]
        return [self._embedding(*rows), *attention, *gates]

    def _embedding(self, center: Tensor, source: Tensor) -> Radial:
        module = self.embedding
        tables = module.target_embedding(center), module.source_embedding(source)

        def radial(distance: Tensor) -> Tensor:
            basis, pair = self.basis(distance), torch.zeros(distance.shape, dtype=torch.int64)
            values = torch.cat([network(basis, *tables, pair) for network in module.radial], dim=1)
            weight: Tensor = self.envelope(distance)[:, None] / module.avg_degree
            return values * weight

        return radial

    def _layer(self, layer: Attention, center: Tensor, source: Tensor) -> Radial:
        """Scaled gates and amplitudes, or amplitudes."""
        values = self._values(layer.radial, layer, center, source)
        if self.layout is not None:
            return lambda distance: values(distance)[:, : self.heads]
        scale = torch.ones(2 * self.heads, dtype=torch.float64)
        scale[: self.heads] = self.scale
        return lambda distance: values(distance) * scale

    def _gate(self, layer: Attention, layout: GateLayout, center: Tensor, source: Tensor) -> Radial:
        """Functions of the distance for each degree and column; those of solid harmonics with their power of it."""
        place, degree = torch.tensor(layout.place), torch.tensor(layout.degree)
        network = layer.gate.radial if isinstance(layer.gate, DirectionGate) else layer.radial
        values = self._values(network, layer, center, source)

        def radial(distance: Tensor) -> Tensor:
            if isinstance(layer.gate, DirectionGate):
                found = values(distance) / sqrt(4 * pi)
            else:
                found = values(distance)[:, self.heads :] * distance[:, None] ** degree
            return found.new_zeros(len(distance), self.widths[-1]).index_copy(1, place, found)

        return radial

    def _values(self, network: RadialNetwork, layer: Attention, center: Tensor, source: Tensor) -> Radial:
        """A radial network of a layer."""
        tables = layer.target_embedding(center), layer.source_embedding(source)

        def radial(distance: Tensor) -> Tensor:
            values: Tensor = network(self.basis(distance), *tables, torch.zeros(distance.shape, dtype=torch.int64))
            return values

        return radial


def with_chords(table: NDArray[Any], *, n_knots: int, step: float) -> NDArray[Any]:
    """A fourth row for each knot: the slope of the chord to the next one, (f_{k+1} - f_k) / step.

    The derivative of a spline is a weighted mean of chords, slopes and curvatures. With chords that are rounded once it
    is exact to rounding; differences of rounded values, divided by the step, would not be.
    """
    value = table[:, 0].reshape(-1, n_knots, table.shape[2])
    chord = np.zeros_like(value)
    chord[:, :-1] = (value[:, 1:] - value[:, :-1]) / step
    return np.concatenate([table, chord.reshape(len(table), 1, -1)], axis=1)


def radial_table(function: Radial, *, cutoff: float, n_knots: int) -> Float[Tensor, "knots 3 width"]:
    """Values, first and second derivatives at `n_knots` distances from 0 to `cutoff` (Å).

    The first derivative is exact, the second one its central difference of sixth order.
    """
    distance = torch.linspace(0.0, cutoff, n_knots, dtype=torch.float64)
    value, slope = _with_slope(function, distance)
    curvature = torch.zeros_like(slope)
    for shift, weight in _CENTRAL_DIFFERENCE:
        right, left = (_with_slope(function, distance + sign * shift * _STEP)[1] for sign in (1, -1))
        curvature += weight / _STEP * (right - left)
    return torch.stack([value, slope, curvature], dim=1)


def _with_slope(function: Radial, distance: Float[Tensor, " distances"]) -> tuple[Tensor, Tensor]:
    """Values and slopes of all functions: the derivative, by the weights, of the gradient of their weighted sum."""
    with torch.enable_grad():
        distance = distance.detach().requires_grad_(True)
        value = function(distance)
        weights = torch.ones_like(value).requires_grad_(True)
        (gradient,) = torch.autograd.grad(value, distance, weights, create_graph=True)
        (slope,) = torch.autograd.grad(gradient.sum(), weights)
    return value.detach(), slope
