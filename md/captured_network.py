"""Energies, forces and stress of a network as a function of tensors of fixed shape, for `captured_replay`.

The system has one structure of padding with one atom more. Edges of padding join this atom with itself, so that
energies and derivatives of all other atoms are those of the unpadded system, up to the rounding of matrix products
of another size. A potential that has been prepared for its device is evaluated by kernels (`inference.fixed_shape`),
for which free slots do not exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from e2former_calc.potentials.interface import AtomOutput, Edges
from e2former_calc.potentials.neighbors import NeighborList, squared_length
from e2former_calc.potentials.padding import Capacity, PaddedGraph, pad_system
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

if TYPE_CHECKING:
    from e2former_calc.potentials.inference.fixed_shape import FixedShapeForm

_SMALLEST_VOLUME = 1e-6
"""Cells with less (Å^3) have no stress."""


def why_not_fixed(potential: Any) -> str | None:
    """Why a potential cannot be evaluated in arrays of fixed shape; None if it can."""
    if not isinstance(potential, EnergyPotential):
        return f"{type(potential).__name__} is no EnergyPotential, so that its network cannot be given padded edges"
    accepted = inspect.signature(type(potential.model).forward).parameters
    if "elements" not in accepted:
        return f"{type(potential.model).__name__} has no keyword `elements`, so that its shapes depend on values"
    if any(module.training for module in potential.model.modules()):
        return "the network is in training mode: call .eval() first"
    return None


class FixedShapeNetwork:
    """A potential without anything that depends on the values of tensors.

    Args:
        potential: one for which `why_not_fixed` gives None.
        system: all replicas stacked, on the device of the potential.

    Attributes:
        padded: the system with its atom of padding.
    """

    def __init__(self, potential: EnergyPotential, system: System) -> None:
        self._potential = potential
        self.padded = pad_system(system, Capacity(system.n_structures + 1, system.n_atoms + 1, ()))
        self._elements = torch.unique(system.numbers)
        self._fused = _fused_form(potential, self.padded)
        self._reference = potential.reference[system.numbers]
        self._batch, self._periodic = system.batch, system.pbc.any(-1)

    def __call__(
        self,
        graphs: Sequence[PaddedGraph],
        positions: Float[Tensor, "padded_atoms 3"],
        cell: Float[Tensor, "padded_structures 3 3"],
        *,
        stress: bool,
    ) -> tuple[Float[Tensor, " replicas"], Float[Tensor, "atoms 3"], Float[Tensor, "replicas 3 3"]]:
        """Energy (eV), forces (eV/Å) and stress (eV/Å^3, NaN unless asked for) of the true atoms."""
        atoms, replicas = len(self._batch), len(self._periodic)
        derivative: Tensor | None
        if self._fused is not None:
            energies, forces, derivative = self._fused(graphs[0], positions.detach())
        else:
            energies, forces, derivative = self._derivatives(graphs, positions, cell, stress=stress)
        per_atom = energies[:atoms] + self._reference
        energy = per_atom.new_zeros(replicas).index_add(0, self._batch, per_atom)
        tension = torch.full_like(cell, torch.nan)[:replicas]
        if stress and derivative is not None:
            tension = self._stress(derivative[:replicas], cell[:replicas])
        return energy, forces[:atoms], tension

    def _derivatives(
        self, graphs: Sequence[PaddedGraph], positions: Tensor, cell: Tensor, *, stress: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Atomic energies, forces and dE/dstrain of the padded system by the plain module, float64, without graph."""
        potential = self._potential
        gradient = potential.force_mode == "gradient"
        system = replace(self.padded, positions=positions, cell=cell)
        with torch.set_grad_enabled(gradient), _plain_operations(potential):
            leaf = positions.detach().requires_grad_(gradient)
            strain = torch.zeros_like(cell).requires_grad_(True) if stress else None
            edges = tuple(_edges(graph, leaf, system.batch, strain) for graph in graphs)
            output: AtomOutput = potential.model(
                system, edges, head=potential.head, forces=not gradient, elements=self._elements
            )
            energies = output.energies.to(torch.float64)
            leaves = [leaf] if strain is None else [leaf, strain]
            derivatives = torch.autograd.grad(energies.sum(), leaves) if gradient else ()
        forces = output.forces if not gradient else -derivatives[0]
        if forces is None:
            raise TypeError(f"{type(potential.model).__name__} returned no forces, which molecular dynamics needs")
        return energies.detach(), forces.detach().to(torch.float64), derivatives[1] if len(derivatives) > 1 else None

    def _stress(self, derivative: Tensor, cell: Tensor) -> Float[Tensor, "replicas 3 3"]:
        a, b, c = cell.unbind(1)
        volume = (a * torch.linalg.cross(b, c, dim=-1)).sum(-1).abs()
        defined = self._periodic & (volume > _SMALLEST_VOLUME)
        tension = 0.5 * (derivative + derivative.mT) / torch.where(defined, volume, 1.0)[:, None, None]
        return torch.where(defined[:, None, None], tension, torch.nan)


def _fused_form(potential: EnergyPotential, padded: System) -> FixedShapeForm | None:
    """The form of a potential that has been prepared for its device."""
    if potential.prepared is None:
        return None
    from e2former_calc.potentials.inference.device_prepared import DevicePrepared  # imports a compiler: takes a second

    prepared = potential.prepared
    return prepared.fixed_shape(potential, padded) if isinstance(prepared, DevicePrepared) else None


def pad_coordinates(
    positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "replicas 3 3"]
) -> tuple[Float[Tensor, "padded_atoms 3"], Float[Tensor, "padded_structures 3 3"]]:
    """With one atom at the origin and one structure without a cell more."""
    return pad(positions, (0, 0, 0, 1)), pad(cell, (0, 0, 0, 0, 0, 1))


def _edges(graph: PaddedGraph, positions: Tensor, batch: Tensor, strain: Tensor | None) -> Edges:
    """Geometry as a differentiable function of positions and strain."""
    vector = positions[graph.center] - positions[graph.source] - graph.image
    if strain is not None:
        vector = vector + (vector[:, None] @ strain[batch[graph.center]])[:, 0]
    squared = squared_length(vector)
    # An atom paired with itself has no direction; the square root is kept away from its singular point.
    same = squared == 0.0
    distance = torch.where(same, torch.ones_like(squared), squared).sqrt() * ~same
    shift = torch.zeros_like(vector, dtype=torch.int64)
    neighbors = NeighborList(graph.center, graph.source, shift, graph.row_ptr, float("inf"))
    return Edges(neighbors=neighbors, vector=vector, distance=distance)


@contextmanager
def _plain_operations(potential: EnergyPotential) -> Iterator[None]:
    """Edge operations whose shapes depend on nothing but shapes."""
    before = potential.model.implementation
    potential.model.implementation = "reference"
    try:
        yield
    finally:
        potential.model.implementation = before
