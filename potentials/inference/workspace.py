"""Memory of one evaluation, kept from call to call while the number of atoms stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.inference.geometry import Edges

KEPT_BYTES = 128 * 2**20
"""Linear maps of queries and keys are kept for the derivative up to this size, and computed again beyond it."""


class Rows:
    """Features (rows, atoms, width): the tensor, the same as array, and one matrix per degree."""

    def __init__(self, lmax: int, n_atoms: int, width: int, dtype: torch.dtype) -> None:
        n_rows = (lmax + 1) ** 2
        self.tensor: Float[Tensor, "rows atoms width"] = torch.empty(n_rows, n_atoms, width, dtype=dtype)
        self.array = self.tensor.numpy()
        bounds = [degree**2 for degree in range(lmax + 2)]
        self.degrees = [self.tensor[a:b].flatten(0, 1) for a, b in pairwise(bounds)]


@dataclass(frozen=True, eq=False)
class LayerMemory:
    """What a layer keeps for its derivative: inputs of everything that is not linear."""

    x: Rows
    scale_1: np.ndarray
    maps: Rows
    hidden: Tensor
    query_key: Tensor
    value: np.ndarray
    x_middle: Rows
    scale_2: np.ndarray
    f: Rows
    gates: Tensor


@dataclass(frozen=True, eq=False)
class Scratch:
    """What is used by one layer after the other and not kept."""

    h: Rows
    d_h: Rows
    d_x: Rows
    invariants: Tensor
    activated: Tensor
    d_query_key: Tensor
    d_value: np.ndarray
    convolved: Tensor
    moment: np.ndarray
    zeros: np.ndarray


class Workspace:
    """All arrays for `n_atoms` atoms.

    Args:
        config: sizes of the network.
        n_atoms: number of atoms in all structures.
        dtype: arithmetic of the network.
        n_products: rows of the convolution times its channels, per atom.
        differentiable: keep what derivatives need; otherwise layers use two memories in turn.

    Attributes:
        keeps_maps: whether each layer has its own `maps`, or all share one memory.

    Raises:
        MemoryError: if the memory cannot be had, with an estimate.
    """

    def __init__(
        self, config: E2FormerV2Config, n_atoms: int, dtype: torch.dtype, *, n_products: int, differentiable: bool
    ) -> None:
        self.n_atoms, self.dtype, self.config, self.differentiable = n_atoms, dtype, config, differentiable
        try:
            self._allocate(config, n_atoms, dtype, n_products)
        except RuntimeError as error:
            needed = self._numbers_per_atom(config, n_products) * n_atoms * dtype.itemsize / 2**30
            raise MemoryError(
                f"{n_atoms} atoms need about {needed:.1f} GiB for this model, which this machine does not give: "
                "evaluate fewer atoms or replicas at once, or use a machine with more memory"
            ) from error

    def _numbers_per_atom(self, config: E2FormerV2Config, n_products: int) -> int:
        n_rows, n_scalars, channels = (config.lmax + 1) ** 2, config.num_heads * config.head_width, config.channels
        layer = 4 * n_rows * channels + 3 * n_scalars + (config.lmax + 1) * channels
        maps = n_rows * (2 * n_scalars + channels)
        layers = len(config.orders) if self.differentiable else min(2, len(config.orders))
        return layers * layer + maps + n_products + 8 * n_rows * channels + (config.lmax + 5) * n_scalars

    def _allocate(self, config: E2FormerV2Config, n_atoms: int, dtype: torch.dtype, n_products: int) -> None:
        lmax, channels = config.lmax, config.channels
        n_rows, n_scalars = (lmax + 1) ** 2, config.num_heads * config.head_width
        half = n_scalars // 2

        def rows(width: int) -> Rows:
            return Rows(lmax, n_atoms, width, dtype)

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype)

        n_maps = 4 * half + channels
        shared_maps = rows(n_maps)
        kept = len(config.orders) * shared_maps.tensor.nbytes <= KEPT_BYTES
        self.keeps_maps = kept and self.differentiable

        def layer() -> LayerMemory:
            return LayerMemory(
                x=rows(channels), scale_1=empty(n_atoms).numpy(),
                maps=rows(n_maps) if self.keeps_maps else shared_maps, hidden=empty(2, n_atoms, half),
                query_key=empty(2, n_atoms, n_scalars), value=empty(n_atoms, n_rows, channels).numpy(),
                x_middle=rows(channels), scale_2=empty(n_atoms).numpy(), f=rows(channels),
                gates=empty(n_atoms, (lmax + 1) * channels),
            )  # fmt: skip

        n_layers = len(config.orders)
        memories = [layer() for _ in range(n_layers if self.differentiable else min(2, n_layers))]
        self.layers = [memories[k % len(memories)] for k in range(n_layers)]
        self.scratch = Scratch(
            h=rows(channels), d_h=rows(channels), d_x=rows(channels),
            invariants=empty(2, n_atoms, (lmax + 1) * half), activated=empty(2, n_atoms, half),
            d_query_key=empty(2, n_atoms, n_scalars), d_value=empty(n_atoms, n_rows, channels).numpy(),
            convolved=empty(n_atoms * n_products), moment=empty(n_atoms * 3 * n_rows * channels).numpy(),
            zeros=torch.zeros(n_atoms, channels, dtype=dtype).numpy(),
        )  # fmt: skip
        self.x_last, self.scale_last = rows(channels), empty(n_atoms).numpy()
        self.edges: Edges | None = None

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
