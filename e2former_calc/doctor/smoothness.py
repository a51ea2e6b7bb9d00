"""Jumps of energy and forces where the list of neighbours changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.doctor.check import Check, energy_limit, force_limit, judged, noted, skipped
from e2former_calc.doctor.sample import FORCES, Sample, given, predict, predict_each, without_cap
from e2former_calc.potentials.neighbors import OVERLAP_DISTANCE
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

DELTA = 1e-8
"""A neighbour is moved by this much (Å) to either side of the cutoff."""

CENTERS = 12
"""Atoms whose cutoff sphere is crossed, at most."""

JUMP = (
    "the surface has steps where a neighbour enters the cutoff, so the energy of a long NVE run drifts or wanders and "
    "minimisers may stall. It is a property of the weights (softmax attention has it, +softplus and +sigmoid do not), "
    "not of the installation: use a thermostat, and judge drifts against a model without the jump"
)
CAPPED = (
    "energy and forces jump whenever two neighbours change rank: NVE cannot conserve energy here. "
    "neighbor_cap='none' keeps all neighbours and is smooth, but it is not what the model was trained with"
)


def cutoff_checks(samples: Sequence[Sample]) -> list[Check]:
    """Largest jump of energy and forces when a probe atom crosses the cutoff of an atom."""
    sample = next((s for s in samples if not s.structure.periodic), None)
    if sample is None:
        reason = "needs a structure that is not periodic"
        return [skipped("cutoff jump, energy", "eV", reason), skipped("cutoff jump, forces", "eV/Å", reason)]
    radii = _radii(sample)
    jumps = [_jump(sample, probe) for radius in radii for probe in _probes(sample.system, radius)]
    energy, force = torch.tensor(jumps, dtype=torch.float64).amax(0).tolist()
    listed = " and ".join(f"{radius:g}" for radius in radii)
    how = f"{sample.name}, an atom moved across {listed} Å from {len(jumps)} places, {DELTA:g} Å to either side"
    return [
        judged("cutoff jump, energy", energy, "eV", limit=energy_limit(sample), passed=how, failed=JUMP),
        judged("cutoff jump, forces", force, "eV/Å", limit=force_limit(sample), passed=how, failed=JUMP),
    ]


def cap_checks(samples: Sequence[Sample]) -> list[Check]:
    """Atoms that lose neighbours to the cap, and what that changes."""
    checks = []
    for sample in samples:
        name = f"neighbour cap, {sample.name}"
        if not isinstance(sample.potential, EnergyPotential):
            checks.append(skipped(name, "atoms", "this potential does not say whether it drops neighbours"))
            continue
        how = f"number of atoms (of {sample.n_atoms}) that lose pairs within {sample.potential.cutoff:g} Å"
        checks.append(judged(name, float(sample.truncated), "atoms", limit=0.0, passed=how, failed=CAPPED))
        if sample.truncated:
            complete = predict(without_cap(sample.potential), sample.system)
            energy = float((complete.energy - sample.prediction.energy).abs()[0]) / sample.n_atoms
            force = float((given(complete.forces) - sample.forces).abs().max())
            meaning = "difference to neighbor_cap='none'"
            checks.append(noted(f"{name}, energy", energy, "eV/atom", meaning))
            checks.append(noted(f"{name}, forces", force, "eV/Å", meaning))
    return checks


def _radii(sample: Sample) -> list[float]:
    """Distances at which neighbours appear; several if the model has a long-range list."""
    potential = sample.potential
    if not isinstance(potential, EnergyPotential):
        return [potential.cutoff]
    return sorted({graph.cutoff for graph in potential.graphs(sample.system.to(potential.device))})


def _probes(system: System, radius: float) -> list[list[System]]:
    """For each center, systems with a probe atom at radius - 2d, - d, + d, + 2d; overlapping ones are left out."""
    positions = system.positions
    heaviest = system.numbers.max()
    outward = positions - positions.mean(0) + torch.tensor([1e-3, 2e-3, 3e-3], dtype=torch.float64)
    outward = outward / outward.norm(dim=1, keepdim=True)
    probes = []
    for center, direction in list(zip(positions, outward, strict=True))[:CENTERS]:
        distances = [radius + k * DELTA for k in (-2, -1, 1, 2)]
        places = [center + distance * direction for distance in distances]
        if float((positions - places[0]).norm(dim=1).min()) > 50 * OVERLAP_DISTANCE:
            probes.append([_with_atom(system, place, heaviest) for place in places])
    return probes


def _with_atom(system: System, place: Float[Tensor, "3"], number: Tensor) -> System:
    return replace(
        system,
        positions=torch.cat([system.positions, place[None]]),
        numbers=torch.cat([system.numbers, number[None]]),
        batch=torch.cat([system.batch, system.batch[:1]]),
    )


def _jump(sample: Sample, systems: Sequence[System]) -> tuple[float, float]:
    """Step of energy (eV) and forces (eV/Å) at the cutoff, with the slope taken out by extrapolation.

    A change over 2 d consists of the step and of a slope times 2 d; twice the change over 2 d minus the change
    over 4 d is the step alone.
    """
    far_in, near_in, near_out, far_out = predict_each(sample.potential, systems, FORCES)
    energy = 2 * (near_out.energies - near_in.energies) - (far_out.energies - far_in.energies)
    near = given(near_out.forces) - given(near_in.forces)
    far = given(far_out.forces) - given(far_in.forces)
    return abs(float(energy.sum())), float((2 * near - far).abs().max())
