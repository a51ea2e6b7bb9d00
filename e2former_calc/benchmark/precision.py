"""Errors of the fused form: against the float64 reference, and the part of them that its tables are to blame for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from e2former_calc.benchmark.case import Case
from e2former_calc.benchmark.implementations import build_potential, system_of


@dataclass(frozen=True)
class PrecisionResult:
    """Largest errors.

    Attributes:
        name, model: of structure and network.
        atoms: number of atoms.
        force: of a force component, fused float32 against reference float64, eV/Å.
        energy: of the total energy per atom, the same, eV.
        table_force, table_energy: the same for the fused form in float64, which differs by its tables only.
        largest_force: of the reference, eV/Å.
    """

    name: str
    model: str
    atoms: int
    force: float
    energy: float
    table_force: float
    table_energy: float
    largest_force: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_precision(case: Case) -> PrecisionResult:
    """Evaluate one structure in three ways.

    Raises:
        ValueError: if the model has no fused form.
    """
    exact_energy, exact_forces = _predict(case, "float64", "reference")
    energy, forces = _predict(case, "float32", "fused")
    table_energy, table_forces = _predict(case, "float64", "fused")
    atoms = len(exact_forces)
    return PrecisionResult(
        name=case.name,
        model=case.model.label,
        atoms=atoms,
        force=float((forces - exact_forces).abs().max()),
        energy=abs(energy - exact_energy) / atoms,
        table_force=float((table_forces - exact_forces).abs().max()),
        table_energy=abs(table_energy - exact_energy) / atoms,
        largest_force=float(exact_forces.abs().max()),
    )


def _predict(case: Case, dtype: str, implementation: str) -> tuple[float, Float[Tensor, "atoms 3"]]:
    """Energy (eV) and forces (eV/Å)."""
    model = replace(case.model, options={**case.model.options, "dtype": dtype})
    found = build_potential(model, implementation)(
        system_of(case.to_atoms(), model), properties=frozenset({"energy", "forces"})
    )
    return float(found.energy.sum()), found.forces.cpu()
