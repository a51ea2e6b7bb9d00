"""The two protocols of the package.

`Potential` is what the calculator, the MD engine and user code see. `EnergyModel` is what a model
family implements; `EnergyPotential` (potential.py) turns any `EnergyModel` into a `Potential`.
A new model family is one new folder with an `EnergyModel` in it, and one reader in `checkpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.system import Prediction, System

Property = Literal["energy", "forces", "stress"]
ForceMode = Literal["gradient", "head"]
NeighborCap = Literal["official", "none"]
Implementation = Literal["reference", "blocked"]
"""How edge operations are carried out: "reference" is plain torch, "blocked" recomputes edge rows in backward."""


@runtime_checkable
class Potential(Protocol):
    """Anything that predicts energies, forces and stress of a `System`.

    Attributes:
        cutoff: largest distance in Å at which two atoms interact directly.
        elements: atomic numbers that may be asked for.
        conservative: True if the forces are the gradient of the energy.
        uses_charge, uses_spin: whether total charge and multiplicity change the prediction.
        dtype, device: of the network arithmetic; coordinates and results are float64.
    """

    @property
    def cutoff(self) -> float: ...

    @property
    def elements(self) -> frozenset[int]: ...

    @property
    def conservative(self) -> bool: ...

    @property
    def uses_charge(self) -> bool: ...

    @property
    def uses_spin(self) -> bool: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self,
        system: System,
        *,
        properties: frozenset[Property],
        neighbors: NeighborList | None = None,
    ) -> Prediction:
        """Predict `properties` (eV, eV/Å, eV/Å^3).

        `neighbors` may be any list that contains all pairs within `cutoff`, for instance one with
        a skin; longer pairs are ignored exactly. Without it a list is built.
        """
        ...


@dataclass(frozen=True)
class Edges:
    """Directed edges with their geometry; edge e goes from `source` to `center`.

    Attributes:
        neighbors: which atoms, which periodic images, in CSR order.
        vector: r_center - r_source(image) in Å, float64; carries the gradient.
        distance: its length in Å, float64.
    """

    neighbors: NeighborList
    vector: Float[Tensor, "edges 3"]
    distance: Float[Tensor, " edges"]


@dataclass(frozen=True)
class AtomOutput:
    """What a model computes for every atom.

    Attributes:
        energies: network output in eV, without reference energies, in the model's dtype.
        forces: output of the direct-force head in eV/Å, or None.
        descriptors: rotation-invariant features of the last layer.
    """

    energies: Float[Tensor, " atoms"]
    forces: Float[Tensor, "atoms 3"] | None
    descriptors: Float[Tensor, "atoms channels"]


@runtime_checkable
class EnergyModel(Protocol):
    """A network that gives every atom an energy from the edges around it.

    Attributes:
        implementation: how edge operations are carried out; may be changed at any time.
    """

    implementation: Implementation

    @property
    def cutoff(self) -> float:
        """Largest edge length in Å."""
        ...

    @property
    def has_force_head(self) -> bool:
        """True if the network can predict forces directly."""
        ...

    def graphs(self, system: System, neighbors: NeighborList, cap: NeighborCap) -> tuple[NeighborList, ...]:
        """Choose from all pairs within `cutoff` the edge lists that the network works on."""
        ...

    def truncated(self, system: System, neighbors: NeighborList) -> Bool[Tensor, " atoms"]:
        """Atoms for which the official selection drops pairs within the cutoff."""
        ...

    def __call__(
        self,
        system: System,
        edges: tuple[Edges, ...],
        *,
        head: str,
        forces: bool,
        elements: Int[Tensor, " elements"] | None = None,
    ) -> AtomOutput:
        """Evaluate the network; `forces` asks for the direct-force head.

        `elements` are the atomic numbers that may occur, ascending; without it those that do occur are
        looked up. Given, no size depends on the values of tensors, as a compiled graph needs it.
        """
        ...
