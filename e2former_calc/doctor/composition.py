"""What must hold of a potential besides symmetry: repeatable, batches, extensivity, momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from e2former_calc.doctor.check import Check, energy_limit, force_limit, judged, noted, skipped
from e2former_calc.doctor.sample import FORCES, Sample, given, largest, maximum, predict, predict_each
from e2former_calc.potentials.system import System


def repeat_check(samples: Sequence[Sample]) -> Check:
    """Difference between identical calls."""
    worst, limit = 0.0, force_limit(samples[0])
    for sample in samples:
        for _ in range(3):
            again = predict(sample.potential, sample.system)
            changes = largest(again.energy - sample.prediction.energy), largest(given(again.forces) - sample.forces)
            worst, limit = maximum([worst, *changes]), max(limit, force_limit(sample), energy_limit(sample))
    return judged(
        "repeated calls", worst, "eV, eV/Å", limit=limit,
        passed="four identical calls; 0 means equal to the last bit",
        failed="the potential is not a function of the structure: look for random numbers or state",
    )  # fmt: skip


def batch_check(samples: Sequence[Sample]) -> Check:
    """Difference between predictions alone and in company."""
    potential = samples[0].potential
    order = [*samples, *reversed(samples)]
    joined = predict(potential, System.stack([sample.system for sample in order]))
    worst, limit, start = 0.0, 0.0, 0
    for index, sample in enumerate(order):
        atoms = slice(start, start + sample.n_atoms)
        start += sample.n_atoms
        change = largest(joined.energy[index] - sample.prediction.energy)
        worst = maximum([worst, change, largest(given(joined.forces)[atoms] - sample.forces)])
        limit = max(limit, force_limit(sample), energy_limit(sample))
    return judged(
        "batch independence", worst, "eV, eV/Å", limit=limit,
        passed=f"{len(order)} structures in one call against single calls",
        failed="structures of one batch influence each other: evaluate them one at a time",
    )  # fmt: skip


def extensivity_checks(samples: Sequence[Sample]) -> list[Check]:
    """Two distant copies have twice the energy; a supercell has the energy of its cells; a lone atom is finite."""
    checks = [_copies(sample) for sample in samples if not sample.structure.periodic]
    periodic = [_supercell(sample) for sample in samples if sample.structure.periodic]
    if not periodic:
        periodic = [skipped("extensivity, supercell", "eV", "needs a periodic structure")]
    if not checks:
        checks = [skipped("extensivity, distant copies", "eV", "needs a structure that is not periodic")]
    return [*checks, *periodic, _lone_atoms(samples[0])]


def _copies(sample: Sample) -> Check:
    system, potential = sample.system, sample.potential
    extent = float((system.positions.amax(0) - system.positions.amin(0)).max())
    shift = torch.tensor([extent + 2 * potential.cutoff + 10.0, 0.0, 0.0], dtype=torch.float64)
    return _doubled(
        sample, "extensivity, distant copies", torch.cat([system.positions, system.positions + shift]), None
    )


def _supercell(sample: Sample) -> Check:
    system = sample.system
    axis = int(system.pbc[0].to(torch.int64).argmax())
    cell = system.cell.clone()
    cell[0, axis] *= 2
    positions = torch.cat([system.positions, system.positions + system.cell[0, axis]])
    return _doubled(sample, "extensivity, supercell", positions, cell)


def _doubled(sample: Sample, name: str, positions: Tensor, cell: Tensor | None) -> Check:
    system = sample.system
    double = replace(
        system, positions=positions, numbers=system.numbers.repeat(2), batch=system.batch.repeat(2),
        cell=system.cell if cell is None else cell,
    )  # fmt: skip
    new = predict(sample.potential, double)
    error = largest(new.energy - 2 * sample.prediction.energy)
    return judged(
        name, error, "eV", limit=2 * energy_limit(sample),
        passed=f"{sample.name} twice, the same value given for charge and spin",
        failed="energies of large systems do not add up; with a neighbour cap, ties between equally distant "
        "neighbours are a possible reason (neighbor_cap='none')",
    )  # fmt: skip


def _lone_atoms(sample: Sample) -> Check:
    """Forces on isolated atoms, which must be zero."""
    numbers = sample.system.numbers.unique().tolist()
    systems = [System.single([[0.3, 0.2, 0.1]], [z]) for z in numbers]
    results = list(predict_each(sample.potential, systems, FORCES))
    finite = all(bool(torch.isfinite(result.energy).all()) for result in results)
    force = maximum([largest(given(result.forces)) for result in results]) if finite else float("nan")
    return judged(
        "isolated atom, force", force, "eV/Å", limit=force_limit(sample),
        passed=f"atomic numbers {numbers}, each alone",
        failed="an atom without neighbours breaks the model: gas phases and dissociation cannot be simulated",
    )  # fmt: skip


def net_force_checks(samples: Sequence[Sample]) -> list[Check]:
    """Sum of the forces, and of the torques on a structure that is not periodic."""
    checks = []
    for sample in samples:
        quantities = [("net force", "eV/Å", sample.forces)]
        if not sample.structure.periodic:
            arms = sample.system.positions - sample.system.positions.mean(0)
            quantities.append(("net torque", "eV", torch.linalg.cross(arms, sample.forces)))
        for name, unit, vectors in quantities:
            value = largest(vectors.sum(0))
            label = f"{name}, {sample.name}"
            if sample.potential.conservative:
                limit = force_limit(sample) * sample.n_atoms * (10.0 if unit == "eV" else 1.0)
                failed = "momentum is not conserved: the gradient is wrong or the energy is not invariant"
                checks.append(judged(label, value, unit, limit=limit, passed="sum over all atoms", failed=failed))
            else:
                meaning = "forces from a head need not add up to zero: remove the drift of the centre of mass in MD"
                checks.append(noted(label, value, unit, meaning))
    return checks
