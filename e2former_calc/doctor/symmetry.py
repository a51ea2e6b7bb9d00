"""Exact symmetries of a potential: moves that must not change energy and forces, beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.doctor.check import Check, energy_limit, force_limit, judged, noted, skipped
from e2former_calc.doctor.sample import Sample, given, largest, maximum, predict
from e2former_calc.potentials.system import System

FAR = 1000.0
"""Distance (Å) of the far translation."""

BROKEN = "the model or its numerics break this symmetry: results depend on how the structure is placed"


@dataclass(frozen=True)
class Move:
    """A system that must have the same energy, and how its forces follow from the old ones.

    Attributes:
        system: after the move.
        rotation: applied to positions; forces turn with it.
        order: index of the old atom at each place.
    """

    system: System
    rotation: Float[Tensor, "3 3"]
    order: Int[Tensor, " atoms"]


@dataclass(frozen=True)
class Symmetry:
    """A kind of move.

    Attributes:
        name: of the symmetry.
        moves: systems to compare with; none if it does not apply to a structure.
        how: what is done, in words.
        distance: how far (Å) from the origin coordinates get by it.
    """

    name: str
    moves: Callable[[System, torch.Generator], list[Move]]
    how: str
    distance: float = 0.0


def symmetry_checks(samples: Sequence[Sample], seed: int) -> list[Check]:
    """Rotations, translations, permutations and lattice translations; two checks each (energy, forces)."""
    kinds = [
        Symmetry("rotation", random_rotations, "three random rotations"),
        Symmetry("bonds along the axes", axis_rotations, "the shortest bond laid along ±x, ±y and ±z"),
        Symmetry("translation", translations(3.0), "shifted by 3 Å"),
        Symmetry(f"translation by {FAR:.0f} Å", translations(FAR), "relative vectors keep this exact", FAR),
        Symmetry("permutation", permutations, "atoms in another order"),
        Symmetry("lattice translation", lattice_moves, "single atoms moved by lattice vectors, cell kept", 30.0),
    ]
    return [check for kind in kinds for check in _invariance(kind, samples, seed)]


def _invariance(kind: Symmetry, samples: Sequence[Sample], seed: int) -> list[Check]:
    errors = [error for sample in samples for error in _errors(kind, sample, seed)]
    checks = []
    for quantity, unit in (("energy", "eV"), ("forces", "eV/Å")):
        name = f"{kind.name}, {quantity}"
        candidates = [error for error in errors if error.quantity == quantity]
        if not candidates:
            checks.append(skipped(name, unit, "does not apply to these structures"))
            continue
        worst = max(candidates, key=lambda error: error.severity)
        how = f"{kind.how}; largest for {worst.structure}"
        checks.append(judged(name, worst.value, unit, limit=worst.limit, passed=how, failed=BROKEN))
    return checks


@dataclass(frozen=True)
class _Error:
    quantity: str
    value: float
    limit: float
    structure: str

    @property
    def severity(self) -> float:
        return math.inf if math.isnan(self.value) else self.value / self.limit


def _errors(kind: Symmetry, sample: Sample, seed: int) -> list[_Error]:
    """Largest errors of energy and forces over all moves of a kind."""
    moves = kind.moves(sample.system, torch.Generator().manual_seed(seed))
    if not moves:
        return []
    energies, forces = [], []
    for move in moves:
        new = predict(sample.potential, move.system)
        energies.append(largest(new.energy - sample.prediction.energy))
        forces.append(largest(given(new.forces) - sample.forces[move.order] @ move.rotation.T))
    limit = force_limit(sample, distance=kind.distance)
    of_energy = energy_limit(sample) + limit * sample.n_atoms * (kind.distance > 0)
    return [
        _Error("energy", maximum(energies), of_energy, sample.name),
        _Error("forces", maximum(forces), limit, sample.name),
    ]


def random_rotations(system: System, generator: torch.Generator, count: int = 3) -> list[Move]:
    """Rotations drawn uniformly."""
    return [_rotate(system, _random_rotation(generator)) for _ in range(count)]


def axis_rotations(system: System, generator: torch.Generator) -> list[Move]:
    """Rotations that lay the shortest vector between two atoms exactly along each axis, both ways."""
    if system.n_atoms < 2:
        return []
    distances = torch.cdist(system.positions, system.positions).fill_diagonal_(torch.inf)
    i, j = divmod(int(distances.argmin()), system.n_atoms)
    bond = system.positions[j] - system.positions[i]
    frame = _frame(bond, torch.randn(3, generator=generator, dtype=torch.float64))
    moves = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            target = torch.roll(torch.eye(3, dtype=torch.float64), axis, dims=1) * torch.tensor([[sign], [sign], [1.0]])
            moves.append(_rotate(system, target.T @ frame))
    return moves


def translations(distance: float) -> Callable[[System, torch.Generator], list[Move]]:
    """Everything shifted by `distance` (Å) in a random direction."""

    def moves(system: System, generator: torch.Generator) -> list[Move]:
        direction = torch.randn(3, generator=generator, dtype=torch.float64)
        shift = distance * direction / direction.norm()
        return [_in_place(system.with_positions(system.positions + shift))]

    return moves


def permutations(system: System, generator: torch.Generator) -> list[Move]:
    """Atoms in random order."""
    order = torch.randperm(system.n_atoms, generator=generator)
    moved = replace(system, positions=system.positions[order], numbers=system.numbers[order])
    return [replace(_in_place(moved), order=order)]


def lattice_moves(system: System, generator: torch.Generator) -> list[Move]:
    """First and last atom moved by several lattice vectors along the periodic directions."""
    del generator
    if not bool(system.pbc.any()):
        return []
    counts = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64) * system.pbc[0]
    positions = system.positions.clone()
    positions[0] += counts @ system.cell[0]
    positions[-1] -= 2 * counts @ system.cell[0]
    return [_in_place(system.with_positions(positions))]


def mirror_check(samples: Sequence[Sample]) -> Check:
    """Energy difference between a structure and its mirror image, for information."""
    sample = samples[0]
    reflection = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    mirrored = predict(sample.potential, _rotate(sample.system, reflection).system)
    difference = largest(mirrored.energy - sample.prediction.energy)
    return noted(
        "mirror image, energy", difference, "eV",
        f"{sample.name}: E2Former models know rotations but no reflections, so mirror images may differ; "
        "in nature they do not, and the difference is part of the model's error",
    )  # fmt: skip


def _rotate(system: System, rotation: Float[Tensor, "3 3"]) -> Move:
    moved = replace(system, positions=system.positions @ rotation.T, cell=system.cell @ rotation.T)
    return replace(_in_place(moved), rotation=rotation)


def _in_place(system: System) -> Move:
    """A move that neither turns forces nor reorders atoms."""
    return Move(system, torch.eye(3, dtype=torch.float64), torch.arange(system.n_atoms))


def _random_rotation(generator: torch.Generator) -> Float[Tensor, "3 3"]:
    first, second = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return _frame(first, second)


def _frame(first: Float[Tensor, "3"], second: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """Right-handed orthonormal rows; the first along `first`."""
    x = first / first.norm()
    y = second - (second @ x) * x
    y = y / y.norm()
    return torch.stack([x, y, torch.linalg.cross(x, y)])
