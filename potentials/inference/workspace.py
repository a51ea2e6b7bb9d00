"""Memory of one evaluation, kept from call to call while the number of atoms stays the same."""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.inference.geometry import Edges

Array = NDArray[Any]

KEPT_BYTES = 128 * 2**20
"""Linear maps of queries and keys are kept for the derivative up to this size, and computed again beyond it."""
KEPT_SHARE = 0.5
"""Layers keep what their derivatives need up to this part of the machine's memory, and are computed again beyond it."""
BLOCK = 48
"""Atoms that pass together: many for each reading of the matrices, and few enough for the cache of a processor."""


class LayerMemory(NamedTuple):
    """What a layer keeps for its derivative: inputs of everything that is not linear.

    All are (atoms, numbers), but `hidden` and `query_key` (2, atoms, numbers), for query and key. `maps` has no atoms
    if they are computed again.
    """

    x: Array
    scale_1: Array
    maps: Array
    hidden: Array
    query_key: Array
    value: Array
    x_middle: Array
    scale_2: Array
    f: Array
    gates: Array


class Scratch(NamedTuple):
    """What a block of atoms needs for a while; one (block, width) for each thread."""

    h: Array
    d_h: Array
    maps: Array
    invariants: Array
    hidden: Array
    slope: Array
    gates: Array


class Passing(NamedTuple):
    """Between the passes over all atoms: rows of the convolution, moments, and derivatives."""

    convolved: Array
    moment: Array
    d_x: Array
    d_query_key: Array
    d_value: Array


class Workspace:
    """All arrays for `n_atoms` atoms.

    Args:
        config: sizes of the network.
        n_atoms: number of atoms in all structures.
        dtype: arithmetic of the network.
        n_products: rows of the convolution times its channels, per atom.
        differentiable: make room for derivatives.
        threads: blocks at the same time.

    Attributes:
        keeps_layers: whether each layer has a memory of its own; otherwise they share all but their input features.
        keeps_maps: whether the linear maps are kept.
        layers: memory of each layer.
        x_last, scale_last: features behind the last layer and the scale of their norm.

    Raises:
        MemoryError: if the memory cannot be had, with an estimate.
    """

    def __init__(
        self, config: E2FormerV2Config, n_atoms: int, dtype: torch.dtype, *, n_products: int, differentiable: bool,
        threads: int,
    ) -> None:  # fmt: skip
        self.n_atoms, self.dtype, self.config, self.differentiable = n_atoms, dtype, config, differentiable
        self.threads = threads
        self.edges: Edges | None = None
        n_layers, n_maps = len(config.orders), 2 * (config.lmax + 1) ** 2 * config.num_heads * config.head_width
        self.keeps_layers = differentiable and self._needed(n_products, n_layers) <= KEPT_SHARE * _machine_memory()
        n_memories = n_layers if self.keeps_layers else 1
        self.keeps_maps = differentiable and n_memories * n_atoms * n_maps * dtype.itemsize <= KEPT_BYTES
        try:
            self._allocate(n_products, n_maps)
        except RuntimeError as error:
            needed = self._needed(n_products, n_memories) / 2**30
            raise MemoryError(
                f"{n_atoms} atoms need about {needed:.1f} GiB for this model, which this machine does not give: "
                "evaluate fewer atoms or replicas at once, or use a machine with more memory"
            ) from error

    def _empty(self, *shape: int) -> Array:
        return torch.empty(*shape, dtype=self.dtype).numpy()

    def _needed(self, n_products: int, n_memories: int) -> int:
        """Bytes for all atoms, without edges and linear maps."""
        config = self.config
        n_scalars, channels, width = self._sizes
        own = 3 * width + 5 * n_scalars // 2 + (config.lmax + 1) * channels
        shared = n_products + (5 * width + 2 * n_scalars if self.differentiable else 0)
        inputs = (len(config.orders) if self.differentiable else 2) + 1
        return (n_memories * own + inputs * width + shared) * self.n_atoms * self.dtype.itemsize

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Numbers in queries, channels, numbers in features of an atom."""
        config = self.config
        return config.num_heads * config.head_width, config.channels, (config.lmax + 1) ** 2 * config.channels

    def _allocate(self, n_products: int, n_maps: int) -> None:
        n_atoms, threads, degrees, n_layers = self.n_atoms, self.threads, self.config.lmax + 1, len(self.config.orders)
        n_scalars, channels, width = self._sizes
        own = [self._layer(n_maps) for _ in range(n_layers if self.keeps_layers else 1)]
        inputs = [self._empty(n_atoms, width) for _ in range(n_layers if self.differentiable else 2)]
        self.layers = [own[k % len(own)]._replace(x=inputs[k % len(inputs)]) for k in range(n_layers)]
        self.x_last, self.scale_last = self._empty(n_atoms, width), self._empty(n_atoms)
        block = max(1, min(n_atoms, BLOCK))
        self.scratch = Scratch(
            h=self._empty(threads, block, width), d_h=self._empty(threads, block, width),
            maps=self._empty(threads, block, n_maps), slope=self._empty(threads, 2, block, channels),
            invariants=self._empty(threads, 2, block, degrees * n_scalars // 2),
            hidden=self._empty(threads, 2, block, max(n_scalars // 2, channels)),
            gates=self._empty(threads, block, degrees * channels),
        )  # fmt: skip
        n_flows = n_atoms if self.differentiable else 0
        self.passing = Passing(
            convolved=self._empty(n_atoms, n_products), moment=self._empty(n_flows, 3 * width),
            d_x=self._empty(n_flows, width), d_query_key=self._empty(2, n_flows, n_scalars),
            d_value=self._empty(n_flows, width),
        )  # fmt: skip

    def _layer(self, n_maps: int) -> LayerMemory:
        """All but the input features."""
        n_atoms, degrees = self.n_atoms, self.config.lmax + 1
        n_scalars, channels, width = self._sizes
        return LayerMemory(
            x=self._empty(0, width), scale_1=self._empty(n_atoms),
            maps=self._empty(n_atoms if self.keeps_maps else 0, n_maps), hidden=self._empty(2, n_atoms, n_scalars // 2),
            query_key=self._empty(2, n_atoms, n_scalars), value=self._empty(n_atoms, width),
            x_middle=self._empty(n_atoms, width), scale_2=self._empty(n_atoms), f=self._empty(n_atoms, width),
            gates=self._empty(n_atoms, degrees * channels),
        )  # fmt: skip

    def edge_memory(self, n_pairs: int) -> Edges:
        """Arrays for up to `n_pairs` edges; they grow and are not given back."""
        if self.edges is not None and len(self.edges.center) >= n_pairs:
            return self.edges
        size, n_atoms = n_pairs + n_pairs // 8 + 16, self.n_atoms
        real = np.float64 if self.dtype == torch.float64 else np.float32
        self.edges = Edges(
            row_ptr=np.zeros(n_atoms + 1, np.int64), center=np.empty(size, np.int64), source=np.empty(size, np.int64),
            column_ptr=np.zeros(n_atoms + 1, np.int64), by_source=np.empty(size, np.int64),
            vector=np.empty((size, 3)), distance=np.empty(size), unit=np.empty((size, 3), real),
            slot=np.empty(size, np.int64), spline=np.empty((size, 11), real), envelope=np.empty((size, 2), real),
        )  # fmt: skip
        return self.edges


def _machine_memory() -> int:
    """Bytes of memory of this machine; without bound where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize
