"""The prepared form of a potential on its device; see `prepared` for what it promises."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.inference.device_network import DeviceAtoms, DeviceNetwork, MatmulPrecision
from e2former_calc.potentials.inference.fixed_shape import FixedShapeForm
from e2former_calc.potentials.inference.prepared import Composition, Prepared
from e2former_calc.potentials.inference.tables import RadialTables
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.geometry import Structures
from e2former_calc.potentials.kernels.implementation import KernelImplementation
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

BF16_TOLERANCE = 0.05
"""What the self-check accepts for products of factors of 8 bits, relative to the largest force."""


class DevicePrepared(Prepared):
    """`Prepared` by kernels on the device of a potential; the work is done when it is first needed.

    Args:
        potential: what to prepare; not kept.
        kernels: how operations over edges are carried out: "triton" on a CUDA device; "reference" anywhere, which is
            slow and for tests.
        matmul_precision: of matrix products on atoms.
    """

    def __init__(
        self,
        potential: EnergyPotential,
        *,
        kernels: KernelImplementation,
        matmul_precision: MatmulPrecision = "float32",
    ) -> None:
        super().__init__(potential)
        rounded = "" if matmul_precision == "float32" else f", matrix products in {matmul_precision}"
        self.name = f"fused ({kernels} kernels{rounded})"
        self._kernels, self._matmul_precision = kernels, matmul_precision
        self._on_device: DeviceNetwork | None = None

    def __call__(
        self, potential: EnergyPotential, system: System, *, properties: frozenset[Property],
        neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        """See `Prepared`."""
        if torch.is_inference_mode_enabled():
            # Tensors made in inference mode cannot be differentiated; copies made outside of it can.
            with torch.inference_mode(False):
                copied = None if neighbors is None else neighbors.clone()
                return self(potential, system.clone(), properties=properties, neighbors=copied)
        system = system.to(potential.device)
        return super().__call__(potential, system, properties=properties, neighbors=neighbors)

    def fixed_shape(self, potential: EnergyPotential, padded: System) -> FixedShapeForm:
        """The form for a system with an atom of padding, in arrays of fixed shape.

        Raises:
            ValueError: if the self-check fails.
        """
        self.cover(potential, padded.numbers.unique().tolist())
        composition = self._compose(potential, padded)
        return FixedShapeForm(self._network_of(potential), composition.atoms)

    def _compose(self, potential: EnergyPotential, system: System) -> DeviceComposition:
        return DeviceComposition(potential, system.to(potential.device), self._network_of(potential))

    def _tables(self, potential: EnergyPotential) -> RadialTables:
        return self._network_of(potential).tables

    def _tolerance(self, potential: EnergyPotential) -> float:
        return BF16_TOLERANCE if self._matmul_precision == "bf16" else super()._tolerance(potential)

    def _network_of(self, potential: EnergyPotential) -> DeviceNetwork:
        if self._on_device is None:
            self._on_device = DeviceNetwork(
                cast(E2FormerV2, potential.model), self._head, n_knots=self.n_knots, kernels=self._kernels,
                matmul_precision=self._matmul_precision,
            )  # fmt: skip
        return self._on_device

    def _evaluate(
        self, potential: EnergyPotential, system: System, composition: Composition, *,
        properties: frozenset[Property], neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        system = system.to(potential.device)
        if neighbors is None:
            neighbors = neighbor_list(system, potential.cutoff)
        (graph,) = potential.graphs(system, neighbors)
        image = (graph.shift.to(torch.float64)[:, None] @ system.cell[system.batch[graph.center]])[:, 0]
        result = self._network_of(potential).evaluate(
            cast(DeviceComposition, composition).atoms, system.positions, image, EdgeIndex.from_neighbors(graph),
            forces=bool(properties & {"forces", "stress"}),
        )  # fmt: skip
        return composition.prediction(system, result, properties)


class DeviceComposition(Composition):
    """What depends on elements, charges and multiplicities alone, on the device."""

    def __init__(self, potential: EnergyPotential, system: System, network: DeviceNetwork) -> None:
        super().__init__(potential, system, network.tables.elements)
        row = torch.from_numpy(self.rows).to(system.positions.device)
        structures = Structures.from_batch(system.batch, system.n_structures)
        self.atoms = DeviceAtoms(network.device_tables(), row, structures, self.condition)
        self._numbers, self._training = system.numbers, potential.domain

    def extrapolation(self, descriptors: Float[Tensor, "atoms channels"]) -> Float[Tensor, " atoms"] | None:
        """Distance from the training data, if that is known."""
        return None if self._training is None else self._training.distance(descriptors, self._numbers)
