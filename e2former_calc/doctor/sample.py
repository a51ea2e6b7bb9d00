"""Structures that a potential is examined on, with its predictions for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.build import molecule as g2_molecule
from ase.data import chemical_symbols, covalent_radii
from jaxtyping import Float
from torch import Tensor

from e2former_calc.electronic_state import electronic_state
from e2former_calc.potentials.interface import Potential, Property
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System
from e2former_calc.structures import molecule, water_box

ENERGY: frozenset[Property] = frozenset({"energy"})
FORCES: frozenset[Property] = frozenset({"energy", "forces"})
ATOMS_PER_BATCH = 1000
G2_MOLECULES = ("CH3OH", "CH4", "H2O", "NH3", "N2", "O2")


@dataclass(frozen=True)
class Structure:
    """A named system of one structure."""

    name: str
    system: System

    @property
    def periodic(self) -> bool:
        """True if any direction is periodic."""
        return bool(self.system.pbc.any())


@dataclass(frozen=True)
class Sample:
    """A structure and the prediction of the potential under examination."""

    potential: Potential
    structure: Structure

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.structure.name

    @property
    def system(self) -> System:
        """The structure."""
        return self.structure.system

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.system.n_atoms

    @cached_property
    def prediction(self) -> Prediction:
        """Energy (eV) and forces (eV/Å) of the structure as it is."""
        return predict(self.potential, self.system)

    @property
    def forces(self) -> Float[Tensor, "atoms 3"]:
        """Forces in eV/Å."""
        return given(self.prediction.forces)

    @property
    def energy_scale(self) -> float:
        """Sum of the magnitudes of the atomic energies in eV."""
        return float(self.prediction.energies.abs().sum())

    @property
    def force_scale(self) -> float:
        """Largest force component in eV/Å, at least 1."""
        return max(1.0, float(self.forces.abs().max()))

    @cached_property
    def truncated(self) -> int:
        """Number of atoms that lose neighbours within the cutoff."""
        return truncated_atoms(self.potential, self.system)


def given(value: Tensor | None) -> Tensor:
    """A predicted quantity that was asked for.

    Raises:
        ValueError: if the potential left it out.
    """
    if value is None:
        raise ValueError("the potential returned None for a quantity that was asked of it")
    return value


def predict(potential: Potential, system: System, properties: frozenset[Property] = FORCES) -> Prediction:
    """Prediction on the host."""
    result = potential(system, properties=properties)
    return Prediction(
        energy=_on_host(result.energy),
        energies=_on_host(result.energies),
        forces=None if result.forces is None else _on_host(result.forces),
        stress=None if result.stress is None else _on_host(result.stress),
        force_source=result.force_source,
    )


def largest(values: Tensor) -> float:
    """Largest magnitude; NaN wins."""
    return float(values.abs().max())


def maximum(values: Sequence[float]) -> float:
    """Largest of several numbers; NaN wins."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def predict_each(
    potential: Potential, systems: Sequence[System], properties: frozenset[Property]
) -> Iterator[Prediction]:
    """Predictions of many systems of equal size, evaluated in batches."""
    size = systems[0].n_atoms
    step = max(1, ATOMS_PER_BATCH // size)
    for start in range(0, len(systems), step):
        batch = systems[start : start + step]
        joined = predict(potential, System.stack(batch), properties)
        for index in range(len(batch)):
            atoms = slice(index * size, (index + 1) * size)
            forces = None if joined.forces is None else joined.forces[atoms]
            yield Prediction(joined.energy[index : index + 1], joined.energies[atoms], forces)


def truncated_atoms(potential: Potential, system: System) -> int:
    """Number of atoms whose neighbour selection drops pairs within the cutoff; 0 for foreign potentials."""
    if not isinstance(potential, EnergyPotential):
        return 0
    moved = system.to(potential.device)
    return potential.truncated_atoms(moved, neighbor_list(moved, potential.cutoff))


def without_cap(potential: EnergyPotential) -> EnergyPotential:
    """The same potential with every pair within the cutoff; weights are shared."""
    uncapped = copy.copy(potential)
    uncapped.neighbor_cap = "none"
    return uncapped


def as_structure(name: str, atoms: Atoms, *, charge: int | None = None, spin: int | None = None) -> Structure:
    """A structure from ASE; `atoms` is not changed.

    Raises:
        ValueError: if it has no atoms, or charge or spin are not integers.
    """
    if len(atoms) == 0:
        raise ValueError(f"the structure {name} has no atoms")
    state = electronic_state(atoms, charge, spin)
    system = System.single(
        atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc, charge=state.charge, spin=state.spin
    )
    return Structure(name, system)


def default_structures(elements: frozenset[int]) -> tuple[Structure, Structure]:
    """A small molecule and a small periodic structure of elements that the potential knows.

    Raises:
        ValueError: if `elements` is empty.
    """
    if not elements - {0}:
        raise ValueError("the potential knows no elements: its `elements` is empty")
    return _default_molecule(elements - {0}), _default_crystal(elements - {0})


def _default_molecule(elements: frozenset[int]) -> Structure:
    candidates = [("ethanol", molecule("ethanol")), *((name, g2_molecule(name)) for name in G2_MOLECULES)]
    for name, atoms in candidates:
        if set(atoms.numbers.tolist()) <= elements:
            return as_structure(f"{name}, rattled", _rattled(atoms, 0.05))
    symbols = [chemical_symbols[z] for z in sorted(elements)[:3]]
    return as_structure(f"cluster of {' '.join(symbols)}", _cluster(symbols))


def _default_crystal(elements: frozenset[int]) -> Structure:
    if {1, 8} <= elements:
        return as_structure("periodic water", water_box(2))
    symbol = chemical_symbols[min(elements)]
    edge = np.sqrt(2) * _bond_length(symbol)
    atoms = bulk(symbol, "fcc", a=edge, cubic=True).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.02, 0.03], [0.0, 1.0, 0.04], [0.0, 0.0, 1.0]]), True)
    return as_structure(f"{symbol} crystal, rattled", _rattled(atoms, 0.03 * edge))


def _rattled(atoms: Atoms, width: float) -> Atoms:
    """Without symmetry: equal distances would hide differences, or make kinks of them."""
    moved: Atoms = atoms.copy()
    moved.positions += np.random.default_rng(0).normal(scale=width, size=(len(atoms), 3))
    return moved


def _cluster(symbols: list[str]) -> Atoms:
    """Five atoms without symmetry."""
    length = max(_bond_length(symbol) for symbol in symbols)
    shape = np.array([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.4, 1.1, 0.1], [0.6, 0.4, 0.9], [-0.7, 0.5, -0.8]])
    return Atoms((symbols * 5)[:5], positions=length * shape)


def _bond_length(symbol: str) -> float:
    return 2.4 * max(float(covalent_radii[chemical_symbols.index(symbol)]), 0.5)
