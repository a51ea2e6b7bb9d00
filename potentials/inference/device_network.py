"""E2Former-V2 on a device: kernels over edges, torch for everything else, derivatives by automatic differentiation.

Weights are those of the form for the host (`WeightReader`, `RadialTables`). Shapes depend on the numbers of atoms and
edges alone, and no value is looked at on the host, so that an evaluation can be recorded as a CUDA graph.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v2.model import Block, E2FormerV2
from e2former_calc.potentials.inference.device_layers import DeviceLayer, DeviceNorm, EdgeInputs, Placement
from e2former_calc.potentials.inference.network import NetworkResult
from e2former_calc.potentials.inference.tables import RadialTables
from e2former_calc.potentials.inference.weights import WeightReader
from e2former_calc.potentials.kernels.edge_embedding import edge_embedding
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import Structures, edge_vectors
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions
from e2former_calc.potentials.neighbors import squared_length
from e2former_calc.potentials.radial import polynomial_envelope

MatmulPrecision = Literal["float32", "bf16"]
"""Arithmetic of matrix products on atoms: that of the network, or factors rounded to bfloat16 and sums in float32.

TF32 is missing: torch has no switch for it but global ones.
"""
ENVELOPE_EXPONENT = 5
"""Exponent of the polynomial cutoff."""


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """Radial tables on a device; later elements do not change them.

    Attributes:
        elements: atomic numbers that they cover, ascending.
        embedding: radial functions of the input features.
        attention: gates and amplitudes of each layer.
    """

    elements: tuple[int, ...]
    embedding: SplineTable
    attention: tuple[SplineTable, ...]


@dataclass(frozen=True, eq=False)
class DeviceAtoms:
    """What stays the same while atoms move.

    Attributes:
        tables: radial tables that cover the elements.
        row: place of each atom's element among those of the tables.
        structures: which atoms belong to which structure.
        condition: added to the scalars of each atom before each attention.
    """

    tables: DeviceTables
    row: Int[Tensor, " atoms"]
    structures: Structures
    condition: Float[Tensor, "atoms channels"]


class DeviceNetwork:
    """A network ready for inference on its device.

    Args:
        model: the network; read, not kept.
        head: output head.
        n_knots: knots of the radial tables.
        kernels: how operations over edges are carried out: "triton" on a CUDA device; "reference" anywhere.
        matmul_precision: arithmetic of matrix products on atoms; the energy head is not rounded.

    Raises:
        ValueError: for an unknown precision.
    """

    def __init__(
        self, model: E2FormerV2, head: str, *, n_knots: int, kernels: KernelImplementation,
        matmul_precision: MatmulPrecision = "float32",
    ) -> None:  # fmt: skip
        if matmul_precision not in ("float32", "bf16"):
            raise ValueError(f"`matmul_precision` must be 'float32' or 'bf16', got {matmul_precision!r}")
        weight = next(model.parameters())
        matrix_dtype = torch.bfloat16 if matmul_precision == "bf16" else weight.dtype
        self.placement = Placement(weight.device, weight.dtype, matrix_dtype, kernels)
        self.config = model.config
        self.tables = RadialTables(model, dtype=weight.dtype, n_knots=n_knots)
        reader = WeightReader(model, weight.dtype)
        layers = (reader.layer(cast(Block, block)) for block in model.blocks)
        self._layers = [DeviceLayer(layer, model.config, self.placement) for layer in layers]
        self._norm_final = DeviceNorm(reader.norm(model.norm_final), self.placement)
        self._harmonics, self._head = _frozen(model.harmonics), _frozen(model.energy_heads[head])
        self._uploaded: DeviceTables | None = None

    def device_tables(self) -> DeviceTables:
        """The tables as they are now."""
        if self._uploaded is None or self._uploaded.elements != self.tables.elements:
            heads = self.config.num_heads
            gates = torch.ones(2 * heads, dtype=torch.float64)
            gates[:heads] = sqrt(self.config.head_width)  # the kernels scale scores themselves
            attention = tuple(self._spline(torch.from_numpy(table) * gates) for table in self.tables.attention)
            embedding = self._spline(torch.from_numpy(self.tables.embedding))
            self._uploaded = DeviceTables(self.tables.elements, embedding, attention)
        return self._uploaded

    def evaluate(
        self,
        atoms: DeviceAtoms,
        positions: Float[Tensor, "atoms 3"],
        image: Float[Tensor, "edges 3"],
        index: EdgeIndex,
        *,
        forces: bool,
    ) -> NetworkResult:
        """Energies and, if asked for, forces and dE/dstrain.

        Args:
            atoms: what stays the same while atoms move.
            positions: in Å, float64.
            image: lattice translation of the source of every edge in Å, float64.
            index: pairs within the cutoff, with or without unused slots at the end.
            forces: False computes energies alone.
        """
        strain = positions.new_zeros(atoms.structures.n_structures, 3, 3)
        leaves = positions.detach(), strain
        with torch.set_grad_enabled(forces):
            if forces:
                leaves = positions.detach().requires_grad_(True), strain.requires_grad_(True)
            edges = self._edges(atoms, leaves, image, index)
            features = self._features(atoms, edges)
            energies: Tensor = self._head(features[0][:, None]).to(torch.float64)
            derivatives = torch.autograd.grad(energies.sum(), leaves) if forces else None
        descriptors = features[0].detach()
        if derivatives is None:
            return NetworkResult(energies, descriptors, None, None)
        return NetworkResult(energies.detach(), descriptors, -derivatives[0], derivatives[1])

    def _edges(self, atoms: DeviceAtoms, leaves: tuple[Tensor, Tensor], image: Tensor, index: EdgeIndex) -> EdgeInputs:
        """Geometry in float64, rounded once to the arithmetic of the network."""
        dtype, cutoff = self.placement.dtype, self.config.max_radius
        vector = edge_vectors(*leaves, image, atoms.structures, index, implementation=self.placement.kernels)
        squared = squared_length(vector)
        # Unused slots may join an atom with itself; the square root is kept away from its singular point.
        distance = torch.where(squared == 0.0, cutoff**2, squared).sqrt()
        direction = (vector / distance[:, None]).to(dtype)
        return EdgeInputs(
            index=index,
            pair=atoms.row[index.center] * len(atoms.tables.elements) + atoms.row[index.source],
            distance=distance,
            direction=direction,
            harmonics=self._harmonics(direction),
            envelope=polynomial_envelope(distance, cutoff, ENVELOPE_EXPONENT).to(dtype),
        )

    def _features(self, atoms: DeviceAtoms, edges: EdgeInputs) -> Float[Tensor, "rows atoms channels"]:
        """Normalised features of the last layer."""
        radial = TabulatedFunctions(atoms.tables.embedding, edges.pair, edges.distance)
        embedded = edge_embedding(radial, edges.harmonics, edges.index, implementation=self.placement.kernels)
        x = embedded.transpose(0, 1)
        for layer, table in zip(self._layers, atoms.tables.attention, strict=True):
            x = layer(x, edges, table, atoms.condition)
        return self._norm_final(x)

    def _spline(self, table: Float[Tensor, "slots rows width"]) -> SplineTable:
        """Values, slopes, curvatures and chords as they are."""
        spacing = self.config.max_radius / (self.tables.n_knots - 1)
        rows = table.unflatten(0, (-1, self.tables.n_knots))
        return SplineTable(self.placement.values(rows).contiguous(), spacing)


def _frozen(module: nn.Module) -> Any:
    return copy.deepcopy(module).eval().requires_grad_(False)
