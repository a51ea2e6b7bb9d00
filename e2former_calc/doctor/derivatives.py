"""Forces and stress against finite differences of the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.doctor.check import Check, judged, noted, skipped
from e2former_calc.doctor.sample import ENERGY, Sample, given, largest, predict, predict_each, without_cap
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

STEP = 1e-5
"""Displacement in Å, and strain, of the central differences.

Small, because the largest score of an attention layer changes hands at many places, and the forces have kinks there.
"""

TRUNCATION = 1e-6
"""Allowed error of the differences relative to the largest force, beyond rounding."""

ALL_COORDINATES = 12
"""Structures with up to this many coordinates are tested completely, larger ones in random directions."""

RANDOM_COORDINATES = 9
STRESS_UNIT = "eV/Å^3"
NOT_A_GRADIENT = (
    "forces come from a network head and are not the gradient of the energy: this is how the model was made, not a "
    "fault of the installation; NVE does not conserve energy and stress is unavailable (forces='gradient' has both)"
)


def force_checks(samples: Sequence[Sample], seed: int) -> list[Check]:
    """Forces of every sample against differences of the energy."""
    return [_force_check(sample, seed) for sample in samples]


def stress_check(samples: Sequence[Sample]) -> Check:
    """Stress of the first periodic sample against differences of the energy under strain."""
    name = "stress against differences"
    periodic = [s for s in samples if s.structure.periodic and float(torch.linalg.det(s.system.cell[0]).abs()) > 1e-6]
    if not periodic:
        return skipped(name, STRESS_UNIT, "needs a periodic structure with a volume")
    if not periodic[0].potential.conservative:
        return skipped(name, STRESS_UNIT, "forces from a head have no consistent stress; use forces='gradient'")
    if not _precise(periodic[0]):
        return skipped(name, STRESS_UNIT, _needs_float64(periodic[0]))
    sample, remark = _smooth(periodic[0])
    volume = float(torch.linalg.det(sample.system.cell[0]).abs())
    stress = given(predict(sample.potential, sample.system, frozenset({"energy", "stress"})).stress)[0]
    strains = torch.stack([_strain(i, j) for i in range(3) for j in range(i, 3)])
    systems = [_strained(sample.system, k * STEP * strain) for strain in strains for k in (1, -1)]
    differences = _differences(sample, systems) / volume
    error = largest(differences - (strains * stress).sum((1, 2)))
    return judged(
        name, error, STRESS_UNIT, limit=_limit(sample) * sample.n_atoms / volume,
        passed=f"{sample.name}, six strains of {STEP:g}{remark}",
        failed="pressure and cell relaxation are wrong: do not use this model for variable cells",
    )  # fmt: skip


def _force_check(sample: Sample, seed: int) -> Check:
    name = f"forces against differences, {sample.name}"
    if not _precise(sample):
        return skipped(name, "eV/Å", _needs_float64(sample))
    sample, remark = _smooth(sample)
    directions = _directions(sample.n_atoms, seed)
    positions = sample.system.positions
    systems = [sample.system.with_positions(positions + k * STEP * d) for d in directions for k in (1, -1)]
    expected = -(directions * sample.forces).sum((1, 2))
    error = largest(_differences(sample, systems) - expected)
    how = f"{len(directions)} directions, step {STEP:g} Å{remark}"
    if not sample.potential.conservative:
        return noted(name, error, "eV/Å", f"{how}; {NOT_A_GRADIENT}")
    failed = "the forces are not the gradient of the energy (or the energy jumps here): energy is not conserved in NVE"
    return judged(name, error, "eV/Å", limit=_limit(sample), passed=how, failed=failed)


def _differences(sample: Sample, systems: Sequence[System]) -> Float[Tensor, " directions"]:
    """Derivatives along each direction; atomic energies are subtracted before they are summed."""
    base = sample.prediction.energies
    changes = [float((p.energies - base).sum()) for p in predict_each(sample.potential, systems, ENERGY)]
    forward, backward = torch.tensor(changes, dtype=torch.float64).reshape(-1, 2).T
    derivative: Tensor = (forward - backward) / (2 * STEP)
    return derivative


def _limit(sample: Sample) -> float:
    """Rounding of the energies divided by the step, and the error of the differences."""
    rounding = (
        10 * torch.finfo(torch.float64).eps * max(sample.energy_scale, sample.n_atoms * sample.force_scale) / STEP
    )
    return rounding + TRUNCATION * sample.force_scale


def _smooth(sample: Sample) -> tuple[Sample, str]:
    """The sample without neighbour cap, if the cap is at work: its jumps would hide errors of the gradient."""
    if sample.truncated and isinstance(sample.potential, EnergyPotential):
        return replace(sample, potential=without_cap(sample.potential)), ", with neighbor_cap='none'"
    return sample, ""


def _directions(n_atoms: int, seed: int) -> Float[Tensor, "directions atoms 3"]:
    """Single coordinates; for larger structures a random choice of them and three collective displacements."""
    coordinates = torch.eye(3 * n_atoms, dtype=torch.float64)
    if len(coordinates) > ALL_COORDINATES:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(coordinates), generator=generator)[:RANDOM_COORDINATES]
        collective = torch.randn(3, 3 * n_atoms, generator=generator, dtype=torch.float64)
        collective = collective / collective.norm(dim=1, keepdim=True)
        coordinates = torch.cat([coordinates[chosen], collective])
    return coordinates.reshape(-1, n_atoms, 3)


def _strain(i: int, j: int) -> Float[Tensor, "3 3"]:
    strain = torch.zeros(3, 3, dtype=torch.float64)
    strain[i, j] += 0.5
    strain[j, i] += 0.5
    return strain


def _strained(system: System, strain: Float[Tensor, "3 3"]) -> System:
    deformation = torch.eye(3, dtype=torch.float64) + strain
    return replace(system, positions=system.positions @ deformation, cell=system.cell @ deformation)


def _precise(sample: Sample) -> bool:
    return sample.potential.dtype == torch.float64


def _needs_float64(sample: Sample) -> str:
    return f"differences need float64 arithmetic, this potential uses {sample.potential.dtype}".replace("torch.", "")
