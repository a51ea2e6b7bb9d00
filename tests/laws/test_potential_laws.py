"""Laws that every potential obeys, over all model variants with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.system import Prediction, System

ROUNDING = 1e5
"""Rounding errors grow by this factor on their way through the layers."""
EPS, EPS_SINGLE = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
Law = Callable[..., None]


def for_those(condition: Callable[[Any], bool]) -> Callable[[Law], Law]:
    """Restrict a law to the potentials it holds for."""

    def restrict(law: Law) -> Law:
        law.holds_for = condition  # type: ignore[attr-defined]
        return law

    return restrict


def assert_same(found: Tensor | None, expected: Tensor | None, rounding: float = ROUNDING, eps: float = EPS) -> None:
    """Equal up to `rounding` rounding errors of the largest entry."""
    assert found is not None
    assert expected is not None
    scale = max(1.0, expected.nan_to_num().abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding * eps * scale, equal_nan=True)


def rotation_matrix(seed: int = 0) -> Tensor:
    return torch.from_numpy(Rotation.random(rng=np.random.default_rng(seed)).as_matrix())


def transformed(system: System, matrix: Tensor) -> System:
    """Every vector r becomes matrix r."""
    return replace(system, positions=system.positions @ matrix.T, cell=system.cell @ matrix.T)


def directional_derivative(energy: Callable[[float], Tensor], step: float = 1e-5) -> Tensor:
    """Derivative at 0 from four points, close enough to stay between two kinks of the softmax maximum."""
    return (energy(-2 * step) - 8 * energy(-step) + 8 * energy(step) - energy(2 * step)) / (12 * step)


@for_those(lambda subject: subject.rotation_invariant)
def test_rotation_rotates_forces_and_stress(subject: Any, zoo: list[System]) -> None:
    system, matrix = System.stack(zoo), rotation_matrix()
    before, after = subject(system), subject(transformed(system, matrix))
    assert_same(after.energies, before.energies)
    assert_same(after.forces, before.forces @ matrix.T)
    if subject.conservative:
        assert_same(after.stress, matrix @ before.stress @ matrix.T)


@for_those(lambda subject: not subject.rotation_invariant)
def test_sphere_samples_break_rotation_invariance(subject: Any, ethanol: System) -> None:
    energies = [subject.energy(s) for s in (ethanol, transformed(ethanol, rotation_matrix()))]
    assert (energies[0] - energies[1]).abs().item() > 1e-6


@for_those(lambda subject: not subject.chiral)
def test_mirror_image_has_the_same_energy_without_vector_products(subject: Any, zoo: list[System]) -> None:
    system, mirror = System.stack(zoo), torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    before, after = subject(system), subject(transformed(system, mirror))
    assert_same(after.energies, before.energies)
    assert_same(after.forces, before.forces @ mirror)


@for_those(lambda subject: subject.chiral)
def test_mirror_image_of_a_chiral_molecule_has_another_energy(subject: Any, ethanol: System) -> None:
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    energies = [subject.energy(system) for system in (ethanol, transformed(ethanol, mirror))]
    assert (energies[0] - energies[1]).abs().item() > 1e-7


def test_translation_changes_nothing(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    moved = system.with_positions(system.positions + torch.tensor([3.1, -7.7, 12.3], dtype=torch.float64))
    before, after = subject(system), subject(moved)
    assert_same(after.energies, before.energies)
    assert_same(after.forces, before.forces)


def test_translation_by_a_thousand_angstrom_is_exact_in_single_precision(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    far = system.with_positions(system.positions + torch.tensor([700.0, -300.0, 640.0], dtype=torch.float64))
    before, after = (subject.single(s, properties=subject.properties) for s in (system, far))
    assert_same(after.energies, before.energies, 100, EPS_SINGLE)
    assert_same(after.forces, before.forces, 100, EPS_SINGLE)


def test_permutation_permutes_energies_and_forces(subject: Any, zoo: list[System]) -> None:
    order = torch.from_numpy(np.random.default_rng(1).permutation(zoo[6].n_atoms))
    for system in (zoo[0], zoo[6]):
        index = order[: system.n_atoms]
        shuffled = replace(system, positions=system.positions[index], numbers=system.numbers[index])
        before, after = subject(system), subject(shuffled)
        assert_same(after.energies, before.energies[index])
        assert_same(after.forces, before.forces[index])


def test_atoms_moved_by_lattice_vectors_change_nothing(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    moves = torch.from_numpy(np.random.default_rng(2).integers(-5, 6, (system.n_atoms, 3)))
    moves = (moves * system.pbc[system.batch]).double()
    jumps = (moves[:, None] @ system.cell[system.batch])[:, 0]
    before, after = subject(system), subject(system.with_positions(system.positions + jumps))
    assert_same(after.energies, before.energies)
    assert_same(after.forces, before.forces)


def test_structures_of_a_batch_do_not_see_each_other(subject: Any, zoo: list[System]) -> None:
    together, alone = subject(System.stack(zoo)), [subject(system) for system in zoo]
    names = ("energy", "energies", "forces", "stress") if subject.conservative else ("energy", "energies", "forces")
    for name in names:
        assert_same(getattr(together, name), torch.cat([getattr(prediction, name) for prediction in alone]))


def _joined(first: System, second: System, distance: float) -> System:
    offset = torch.tensor([0.6, 0.64, 0.48], dtype=torch.float64) * distance
    return System.single(
        torch.cat([first.positions, second.positions + offset]).numpy(),
        torch.cat([first.numbers, second.numbers]).numpy(),
    )


# In the legacy variant the padding of one atom depends on how crowded the others are.
@for_those(lambda subject: not subject.legacy)
def test_distant_molecules_add_up(subject: Any, ethanol: System, water: System) -> None:
    pair, parts = subject(_joined(ethanol, water, 60.0)), [subject(s) for s in (ethanol, water)]
    assert_same(pair.energy, parts[0].energy + parts[1].energy)
    assert_same(pair.energies, torch.cat([part.energies for part in parts]))
    assert_same(pair.forces, torch.cat([part.forces for part in parts]))


def test_distant_copies_add_up(subject: Any, ethanol: System) -> None:
    pair, one = subject(_joined(ethanol, ethanol, 60.0)), subject(ethanol)
    assert_same(pair.energy, 2 * one.energy)
    assert_same(pair.forces, torch.cat([one.forces, one.forces]))


def _repeated(system: System, times: tuple[int, int, int]) -> System:
    shifts = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in times])
    positions = (system.positions[None] + (shifts @ system.cell[0])[:, None]).flatten(0, 1)
    cell = system.cell[0] * torch.tensor(times)[:, None]
    numbers = system.numbers.repeat(len(shifts))
    return System.single(positions.numpy(), numbers.numpy(), cell=cell.numpy(), pbc=system.pbc[0].numpy())


# Truncation chooses differently among equally distant neighbours when they get other indices.
@for_those(lambda subject: not subject.truncated)
@pytest.mark.parametrize("times", [(2, 1, 1), (1, 2, 3)])
def test_supercell_is_a_multiple_of_the_cell(subject: Any, salt: System, times: tuple[int, int, int]) -> None:
    one, many = subject(salt), subject(_repeated(salt, times))
    count = int(np.prod(times))
    assert_same(many.energy, count * one.energy)
    assert_same(many.forces, one.forces.repeat(count, 1))
    if subject.conservative:
        assert_same(many.stress, one.stress)


@for_those(lambda subject: subject.conservative)
@pytest.mark.parametrize("seed", [0, 1])
def test_forces_are_the_negative_gradient_of_the_energy(subject: Any, zoo: list[System], seed: int) -> None:
    system = System.stack(zoo)
    direction = torch.randn(system.positions.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def energy(step: float) -> Tensor:
        return subject.energy(system.with_positions(system.positions + step * direction))

    work = (subject(system).forces * direction).sum(1)
    expected = torch.zeros_like(subject.energy(system)).index_add(0, system.batch, -work)
    torch.testing.assert_close(directional_derivative(energy), expected, rtol=0, atol=1e-8)


@for_those(lambda subject: subject.conservative)
@pytest.mark.parametrize("seed", [0, 1])
def test_stress_is_the_strain_derivative_over_the_volume(
    subject: Any, salt: System, ice: System, slab: System, seed: int
) -> None:
    system = System.stack([salt, ice, slab])
    strain = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    strain = 0.5 * (strain + strain.T)

    def energy(step: float) -> Tensor:
        return subject.energy(transformed(system, torch.eye(3, dtype=torch.float64) + step * strain))

    volume = torch.linalg.det(system.cell).abs()
    expected = (subject(system).stress * strain).sum((1, 2))
    torch.testing.assert_close(directional_derivative(energy) / volume, expected, rtol=0, atol=1e-8)


@for_those(lambda subject: subject.conservative)
def test_stress_is_symmetric(subject: Any, ice: System) -> None:
    stress = subject(ice).stress
    assert stress.equal(stress.mT)


@for_those(lambda subject: subject.conservative)
def test_forces_add_up_to_zero(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    forces = subject(system).forces
    total = torch.zeros(len(zoo), 3, dtype=torch.float64).index_add(0, system.batch, forces)
    assert_same(total, torch.zeros_like(total), ROUNDING * forces.abs().max().item())


@for_those(lambda subject: subject.conservative and subject.rotation_invariant)
def test_torque_on_a_molecule_is_zero(subject: Any, ethanol: System) -> None:
    forces = subject(ethanol).forces
    torque = torch.linalg.cross(ethanol.positions, forces).sum(0)
    assert forces.abs().max() > 1e-3
    assert_same(torque, torch.zeros_like(torque), ROUNDING * forces.abs().max().item())


def _chain(length: float) -> System:
    """Three atoms in a row; only the distance of the last one from the middle one is near `length`."""
    return System.single([[-1.3, 0.2, 0.0], [0.0, 0.0, 0.0], [length, 0.0, 0.0]], [6, 8, 7])


def _jump(subject: Any, cutoff: float, step: float = 1e-9) -> tuple[float, float]:
    """Change of energy and forces across a distance, beyond the work of the force."""
    inside, outside = subject(_chain(cutoff - step)), subject(_chain(cutoff + step))
    work = 2 * step * inside.forces[2, 0]
    energy = (outside.energy + work - inside.energy).abs().item()
    return energy, (outside.forces - inside.forces).abs().max().item()


@for_those(lambda subject: subject.smooth)
def test_energy_and_forces_are_continuous_at_the_cutoff(subject: Any) -> None:
    for cutoff in subject.cutoffs:
        energy, forces = _jump(subject, cutoff)
        assert energy < 1e-11
        assert forces < 1e-6


@for_those(lambda subject: not subject.smooth and not subject.legacy and subject.conservative)
def test_softmax_jumps_at_the_cutoff_but_not_elsewhere(subject: Any) -> None:
    for cutoff in subject.cutoffs:
        assert 1e-8 < _jump(subject, cutoff)[0] < subject.largest_jump
        assert _jump(subject, cutoff - 0.1)[0] < 1e-11


def test_both_precisions_agree(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    double, single = subject(system), subject.single(system, properties=subject.properties)
    assert single.energy.dtype == single.forces.dtype == torch.float64
    assert_same(single.energies, double.energies, 300, EPS_SINGLE)
    assert_same(single.forces, double.forces, 1000, EPS_SINGLE)
    if subject.conservative:
        assert_same(single.stress, double.stress, 1000, EPS_SINGLE)


def _identical(first: Prediction, second: Prediction) -> bool:
    pairs = ((getattr(first, name), getattr(second, name)) for name in ("energy", "energies", "forces", "stress"))
    return all(a is b is None or torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@pytest.mark.parametrize("precision", ["double", "single"])
def test_energy_alone_is_the_energy_with_forces(subject: Any, zoo: list[System], precision: str) -> None:
    potential, system = getattr(subject, precision), System.stack(zoo)
    alone = potential(system, properties=frozenset({"energy"}))
    assert alone.energies.equal(potential(system, properties=subject.properties).energies)
    assert alone.energy.equal(potential(system, properties=frozenset({"energy", "forces"})).energy)


@pytest.mark.parametrize("precision", ["double", "single"])
def test_repeated_calls_give_the_same_bits(subject: Any, zoo: list[System], precision: str) -> None:
    potential, system = getattr(subject, precision), System.stack(zoo)
    assert _identical(*(potential(system, properties=subject.properties) for _ in range(2)))


def test_a_list_with_a_skin_gives_the_same_bits(subject: Any, zoo: list[System]) -> None:
    system = System.stack(zoo)
    wide = neighbor_list(system, subject.double.cutoff + 0.8)
    reused = subject.double(system, properties=subject.properties, neighbors=wide)
    assert _identical(reused, subject(system))


def test_atomic_energies_add_up_to_the_energy(subject: Any, zoo: list[System]) -> None:
    prediction = subject(System.stack(zoo))
    sums = [part.sum() for part in prediction.energies.split([system.n_atoms for system in zoo])]
    assert_same(prediction.energy, torch.stack(sums), 100)


@for_those(lambda subject: subject.uses_state)
def test_charge_and_spin_matter(subject: Any, ethanol: System) -> None:
    ions = [ethanol, replace(ethanol, charge=torch.tensor([1])), replace(ethanol, spin=torch.tensor([3]))]
    energies = subject.energy(System.stack(ions))
    assert (energies[1:] - energies[0]).abs().min().item() > 1e-6


def test_every_quantity_is_finite_and_not_trivial(subject: Any, zoo: list[System]) -> None:
    prediction = subject(System.stack(zoo))
    assert prediction.energy.isfinite().all()
    assert prediction.forces.isfinite().all()
    assert prediction.forces.abs().max().item() > 1e-3
    assert prediction.energies.std().item() > 1e-3
