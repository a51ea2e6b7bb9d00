"""`EnergyPotential`: turns the atomic energies of a model into energies, forces and stress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.interface import AtomOutput, Edges, EnergyModel, ForceMode, NeighborCap, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import Prediction, System

ALL_PROPERTIES: frozenset[Property] = frozenset({"energy", "forces", "stress"})


class PreparedForm(Protocol):
    """What carries out the evaluations of a potential in its place, except for those that keep a graph."""

    def __call__(
        self, potential: EnergyPotential, system: System, *, properties: frozenset[Property],
        neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        """The prediction of `potential`."""
        ...

    def describe(self) -> str:
        """One line about how evaluations are carried out."""
        ...


class EnergyPotential(nn.Module):
    """A model family as a `Potential`: reference energies, gradient forces, stress by strain derivative.

    Coordinates, edge vectors, energy sums, forces and stress are float64; the network works in the
    dtype of its parameters.

    Args:
        model: an `EnergyModel` that is also an `nn.Module`.
        head: output head to use.
        reference_energies: eV by atomic number for each head, shape (elements,), float64.
        elements: atomic numbers that may be asked for.
        force_mode: "gradient" or "head".
        neighbor_cap: "official" reproduces the official neighbour selection, "none" keeps every pair.
        uses_charge, uses_spin: whether charge and multiplicity change the prediction.
        compositions: formulas (Hill order) that the model is meant for; empty means any. Not checked here.
        strict: False evaluates elements outside `elements` too, as long as the network has a row for them.
        domain: where the model was trained; with it every prediction has distances from the training data.
        refuse_outside: whether structures far from the training data should be refused. Not done here.

    Attributes:
        prepared: a faster form of the same mathematics for inference, made by `inference.prepare` from the weights
            as they were then. Moving, casting and training end it.

    Raises:
        ValueError: if forces from a head are asked of a model without one.
    """

    reference: Tensor

    def __init__(
        self,
        model: EnergyModel,
        *,
        head: str,
        reference_energies: Mapping[str, Float[Tensor, " elements"]],
        elements: frozenset[int],
        force_mode: ForceMode,
        neighbor_cap: NeighborCap = "official",
        uses_charge: bool = True,
        uses_spin: bool = True,
        compositions: frozenset[str] = frozenset(),
        strict: bool = True,
        domain: TrainingDomain | None = None,
        refuse_outside: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch module, got {type(model).__name__}")
        if force_mode == "head" and not model.has_force_head:
            raise ValueError("forces='head' was asked for, but this model has no force head: use forces='gradient'")
        if force_mode not in ("gradient", "head") or neighbor_cap not in ("official", "none"):
            raise ValueError(
                f"force_mode must be 'gradient' or 'head' and neighbor_cap 'official' or 'none', "
                f"got {force_mode!r} and {neighbor_cap!r}"
            )
        self.model = model
        self.head = head
        self.elements, self.compositions = elements, compositions
        self.force_mode: ForceMode = force_mode
        self.neighbor_cap: NeighborCap = neighbor_cap
        self.uses_charge, self.uses_spin, self.strict = uses_charge, uses_spin, strict
        self.domain, self.refuse_outside = domain, refuse_outside
        self.prepared: PreparedForm | None = None
        self._accepted: tuple[frozenset[int], Tensor] | None = None
        self.register_buffer("reference", reference_energies[head].to(torch.float64), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EnergyPotential:
        """Move or cast the network; reference energies and the domain move, but keep their arithmetic.

        Ends the prepared form.
        """
        exact = self.reference
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reference = exact.to(self.reference.device)
        self.domain = None if self.domain is None else self.domain.to(self.reference.device)
        self.prepared = None
        return self

    def train(self, mode: bool = True) -> EnergyPotential:
        """Switch to training, which ends the prepared form, or back."""
        self.prepared = None if mode else self.prepared
        super().train(mode)
        return self

    @property
    def cutoff(self) -> float:
        """Largest distance (Å) at which two atoms interact directly."""
        return self.model.cutoff

    @property
    def conservative(self) -> bool:
        """True if forces are the gradient of the energy."""
        return self.force_mode == "gradient"

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the network."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.model.parameters()).device

    def forward(
        self,
        system: System,
        *,
        properties: frozenset[Property] = ALL_PROPERTIES,
        neighbors: NeighborList | None = None,
        create_graph: bool = False,
    ) -> Prediction:
        """Predict; see `Potential`. `create_graph` keeps the graph, for training on forces and for Hessians.

        Raises:
            ValueError: for elements outside `elements`, or stress from a force head.
        """
        self._check(system, properties)
        if self.prepared is not None and not create_graph:
            return self.prepared(self, system, properties=properties, neighbors=neighbors)
        if torch.is_inference_mode_enabled():
            # Tensors made in inference mode cannot be differentiated; copies made outside of it can.
            with torch.inference_mode(False):
                copied = None if neighbors is None else neighbors.clone()
                return self.forward(system.clone(), properties=properties, neighbors=copied, create_graph=create_graph)
        system = system.to(self.device)
        graphs = self.graphs(system, neighbors)
        gradient_forces = "forces" in properties and self.force_mode == "gradient"
        differentiate = gradient_forces or "stress" in properties
        with torch.set_grad_enabled(create_graph or differentiate):
            positions, strain = _leaves(system, differentiate, "stress" in properties)
            edges = tuple(_edge_geometry(graph, system, positions, strain) for graph in graphs)
            wants_head = "forces" in properties and not gradient_forces
            output: AtomOutput = self.model(system, edges, head=self.head, forces=wants_head)
            energies = output.energies.to(torch.float64)
            network_energy = energies.sum()
        forces = output.forces.to(torch.float64) if wants_head and output.forces is not None else None
        stress = None
        if differentiate:
            d_positions, d_strain = _derivatives(network_energy, positions, strain, create_graph)
            forces = -d_positions if gradient_forces else forces
            stress = stress_of(d_strain, system) if d_strain is not None else None
        energies = energies + self.reference[system.numbers]
        energy = energies.new_zeros(system.n_structures).index_add(0, system.batch, energies)
        prediction = Prediction(
            energy,
            energies,
            forces,
            stress,
            force_source=None if forces is None else self.force_mode,
            extrapolation=None if self.domain is None else self.domain.distance(output.descriptors, system.numbers),
        )
        return prediction if create_graph else prediction.detach()

    def graphs(self, system: System, neighbors: NeighborList | None = None) -> tuple[NeighborList, ...]:
        """The edge lists that the network works on."""
        if neighbors is None:
            neighbors = neighbor_list(system, self.cutoff)
        return self.model.graphs(system, neighbors.to(system.positions.device), self.neighbor_cap)

    def truncated_atoms(self, system: System, neighbors: NeighborList) -> int:
        """Number of atoms for which the neighbour cap drops pairs within the cutoff."""
        if self.neighbor_cap == "none":
            return 0
        return int(self.model.truncated(system, neighbors).sum())

    def descriptors(self, system: System, neighbors: NeighborList | None = None) -> Float[Tensor, "atoms channels"]:
        """Rotation-invariant features of every atom in the last layer, in the dtype of the network."""
        self._check(system, frozenset({"energy"}))
        system = system.to(self.device)
        with torch.no_grad():
            edges = tuple(_edge_geometry(g, system, system.positions, None) for g in self.graphs(system, neighbors))
            output: AtomOutput = self.model(system, edges, head=self.head, forces=False)
        return output.descriptors

    def hessian(self, system: System) -> Float[Tensor, "coordinates coordinates"]:
        """Second derivatives of the energy of one structure in eV/Å^2, shape (3 atoms, 3 atoms), symmetrised.

        Raises:
            ValueError: for several structures, or if forces come from a head.
        """
        if system.n_structures != 1 or self.force_mode != "gradient":
            raise ValueError("a Hessian needs one structure and gradient forces (forces='gradient')")
        self._check(system, frozenset({"forces"}))
        with torch.inference_mode(False), torch.enable_grad():
            system = system.clone().to(self.device)
            graphs = self.graphs(system)
            positions = system.positions.requires_grad_(True)
            edges = tuple(_edge_geometry(graph, system, positions, None) for graph in graphs)
            output: AtomOutput = self.model(system, edges, head=self.head, forces=False)
            gradient, _ = _derivatives(output.energies.to(torch.float64).sum(), positions, None, True)
            rows = [_row(component, positions) for component in gradient.flatten()]
        matrix = torch.stack(rows).flatten(1)
        return 0.5 * (matrix + matrix.T)

    def _check(self, system: System, properties: frozenset[Property]) -> None:
        unknown_property = properties - ALL_PROPERTIES
        if unknown_property:
            raise ValueError(f"unknown properties {sorted(unknown_property)}: choose from {sorted(ALL_PROPERTIES)}")
        self._check_elements(system.numbers.cpu())
        if "stress" in properties and self.force_mode == "head":
            raise ValueError("forces from a head have no consistent stress: use forces='gradient'")

    def _check_elements(self, numbers: Int[Tensor, " atoms"]) -> None:
        allowed = self.elements if self.strict else frozenset(range(1, len(self.reference)))
        if self._accepted is not None and self._accepted[0] == allowed and torch.equal(self._accepted[1], numbers):
            return
        unknown = sorted(set(numbers.unique().tolist()) - allowed)
        if unknown:
            raise ValueError(
                f"atomic numbers {unknown} are not covered by this model; it knows {sorted(self.elements)}"
            )
        self._accepted = allowed, numbers.clone()


def _leaves(system: System, differentiate: bool, with_strain: bool) -> tuple[Tensor, Tensor | None]:
    positions = system.positions.detach().requires_grad_(True) if differentiate else system.positions
    strain = system.cell.new_zeros(system.n_structures, 3, 3).requires_grad_(True) if with_strain else None
    return positions, strain


def _edge_geometry(
    graph: NeighborList, system: System, positions: Float[Tensor, "atoms 3"], strain: Tensor | None
) -> Edges:
    """Edge vectors as differentiable functions of positions and strain."""
    vector = graph.vectors(positions, system.cell, system.batch)
    if strain is not None:
        vector = vector + (vector[:, None] @ strain[system.batch[graph.center]])[:, 0]
    squared = squared_length(vector)
    # An atom paired with itself has no direction; the square root is kept away from its singular point.
    same = squared == 0.0
    distance = torch.where(same, torch.ones_like(squared), squared).sqrt() * ~same
    return Edges(neighbors=graph, vector=vector, distance=distance)


def _derivatives(
    energy: Tensor, positions: Tensor, strain: Tensor | None, create_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """dE/dpositions and dE/dstrain; zero where the energy does not depend on them (isolated atoms)."""
    leaves = [positions] if strain is None else [positions, strain]
    if energy.grad_fn is None:
        gradients: list[Tensor | None] = [None] * len(leaves)
    else:
        gradients = list(torch.autograd.grad(energy, leaves, create_graph=create_graph, allow_unused=True))
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return filled[0], filled[1] if strain is not None else None


def _row(component: Tensor, positions: Tensor) -> Tensor:
    if component.grad_fn is None:
        return torch.zeros_like(positions)
    (row,) = torch.autograd.grad(component, positions, retain_graph=True, allow_unused=True)
    return torch.zeros_like(positions) if row is None else row


def stress_of(d_strain: Float[Tensor, "structures 3 3"], system: System) -> Float[Tensor, "structures 3 3"]:
    """Stress (eV/Å^3) from dE/dstrain (eV); NaN for structures without a volume."""
    symmetric = 0.5 * (d_strain + d_strain.mT)
    volume = torch.linalg.det(system.cell).abs()
    defined = system.pbc.any(-1) & (volume > 1e-6)
    # The volume is made harmless before the division, so that no NaN enters derivatives of the stress.
    stress = symmetric / torch.where(defined, volume, 1.0)[:, None, None]
    return torch.where(defined[:, None, None], stress, torch.nan)
