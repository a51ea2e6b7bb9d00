"""A trajectory as plain data: what is the same in all frames (`Topology`) and what changes (`Frame`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses
from jaxtyping import Bool, Float, Int

INFO_KEYS = ("charge", "spin", "spin_multiplicity")
MASS_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Topology:
    """What is the same in all frames.

    Attributes:
        numbers: atomic numbers.
        masses: amu.
        pbc: periodicity along each lattice vector.
        info: total charge (e) and multiplicity, by their keys in `atoms.info`, where known.
    """

    numbers: Int[np.ndarray, " atoms"]
    masses: Float[np.ndarray, " atoms"]
    pbc: Bool[np.ndarray, "3"]
    info: Mapping[str, int | float]

    @staticmethod
    def from_atoms(atoms: Atoms) -> Topology:
        """Topology of an `Atoms` object.

        Raises:
            ValueError: if a charge or spin in `atoms.info` is not a number.
        """
        info = {key: info_number(atoms, key) for key in INFO_KEYS if atoms.info.get(key) is not None}
        return Topology(atoms.numbers.copy(), atoms.get_masses(), atoms.pbc.copy(), info)

    def difference(self, other: Topology) -> str | None:
        """In words what distinguishes `other` from this one; None if they are the same."""
        if len(self.numbers) != len(other.numbers):
            return f"{len(other.numbers)} atoms instead of {len(self.numbers)}"
        changed = np.flatnonzero(self.numbers != other.numbers)
        if changed.size:
            i = int(changed[0])
            return f"different atoms (atom {i} has atomic number {other.numbers[i]} instead of {self.numbers[i]})"
        if not np.array_equal(self.pbc, other.pbc):
            return f"pbc {other.pbc.tolist()} instead of {self.pbc.tolist()}"
        if not np.allclose(self.masses, other.masses, rtol=MASS_TOLERANCE, atol=0.0):
            return "different masses"
        if dict(self.info) != dict(other.info):
            return f"atoms.info {dict(other.info)} instead of {dict(self.info)}"
        return None


@dataclass(frozen=True, eq=False)
class Frame:
    """What changes from frame to frame; None for what is not known.

    Attributes:
        step: number of the integration step.
        positions: Å, unwrapped.
        time_fs: simulation time in fs.
        cell: lattice vectors as rows, Å.
        velocities: Å/fs.
        forces: eV/Å.
        energy: potential energy in eV.
        kinetic_energy: eV.
        conserved_energy: the quantity that the integrator conserves, eV.
        temperature_K: K.
    """

    step: int
    positions: Float[np.ndarray, "atoms 3"]
    time_fs: float | None = None
    cell: Float[np.ndarray, "3 3"] | None = None
    velocities: Float[np.ndarray, "atoms 3"] | None = None
    forces: Float[np.ndarray, "atoms 3"] | None = None
    energy: float | None = None
    kinetic_energy: float | None = None
    conserved_energy: float | None = None
    temperature_K: float | None = None  # noqa: N815

    @property
    def fields(self) -> frozenset[str]:
        """Names of the attributes that are known."""
        return frozenset(name for name in self.__dataclass_fields__ if getattr(self, name) is not None)

    @staticmethod
    def from_atoms(atoms: Atoms, *, step: int, time_fs: float | None) -> Frame:
        """Copy one frame; energy and forces only if the calculator has them for just these positions."""
        energy, forces = _result(atoms, "energy"), _result(atoms, "forces")
        return Frame(
            step=step,
            time_fs=time_fs,
            positions=atoms.positions.copy(),
            cell=atoms.cell.array.copy() if atoms.pbc.any() or atoms.cell.array.any() else None,
            velocities=atoms.get_velocities() * units.fs if atoms.has("momenta") else None,
            forces=None if forces is None else np.array(forces, dtype=np.float64),
            energy=None if energy is None else float(energy),
        )

    def to_atoms(self, topology: Topology) -> Atoms:
        """`Atoms` with momenta, `info` and a `SinglePointCalculator`, as far as known."""
        atoms = Atoms(numbers=topology.numbers, positions=self.positions, cell=self.cell, pbc=topology.pbc)
        if not np.allclose(topology.masses, atomic_masses[topology.numbers], rtol=MASS_TOLERANCE, atol=0.0):
            atoms.set_masses(topology.masses)
        if self.velocities is not None:
            atoms.set_velocities(self.velocities / units.fs)
        atoms.info.update(topology.info, step=self.step)
        numbers = {name: getattr(self, name) for name in ("time_fs", "conserved_energy", "temperature_K")}
        atoms.info.update({name: number for name, number in numbers.items() if number is not None})
        known = {name: getattr(self, name) for name in ("energy", "forces") if name in self.fields}
        if known:
            atoms.calc = SinglePointCalculator(atoms, **known)
        return atoms


def info_number(atoms: Atoms, key: str) -> int | float:
    """A number from `atoms.info` as a Python int or float.

    Raises:
        ValueError: if it is not one number.
    """
    value = np.asarray(atoms.info[key])
    if value.ndim or value.dtype.kind not in "iuf":
        raise ValueError(f"atoms.info[{key!r}] must be a number to be stored, got {atoms.info[key]!r}")
    number: int | float = value.item()
    return number


def _result(atoms: Atoms, name: str) -> Any:
    if atoms.calc is None:
        return None
    try:
        return atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None
