"""Reference energies: exact where they can be, smallest where they are not unique."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset, DatasetError
from e2former_calc.potentials.training.reference import (
    isolated_atom_reference,
    least_squares_reference,
    reference_from_mapping,
)

EPS = torch.finfo(torch.float64).eps


def with_energies(numbers: Sequence[Sequence[int]], energy: Sequence[float]) -> Dataset:
    """Structures of given composition and energy."""
    systems = tuple(System.single(np.arange(3.0 * len(z)).reshape(-1, 3), z) for z in numbers)
    forces = tuple(torch.zeros(len(z), 3, dtype=torch.float64) for z in numbers)
    return Dataset(systems, torch.tensor(energy, dtype=torch.float64), forces, (None,) * len(systems), "fit.xyz")


def test_energies_that_are_sums_of_atoms_are_recovered() -> None:
    atoms = {1: -13.6, 6: -1029.0, 8: -2042.0}
    numbers = [[1, 1], [6, 8], [8, 1, 1], [6, 1, 1, 1, 1]]
    table = least_squares_reference(with_energies(numbers, [sum(atoms[z] for z in frame) for frame in numbers]))
    assert {z: float(table[z]) for z in atoms} == pytest.approx(atoms, rel=1e3 * EPS)


@pytest.mark.parametrize("numbers", [[[8, 1, 1]] * 4, [[1], [1, 1], [1, 1, 1], [6, 1]], [[6, 1], [6, 1, 6, 1]] * 2])
def test_mean_energy_is_reproduced(numbers: list[list[int]]) -> None:
    dataset = with_energies(numbers, [-2080.1, -2079.6, -2081.7, -2080.9])
    table = least_squares_reference(dataset)
    predicted = torch.stack([table[system.numbers].sum() for system in dataset.systems])
    assert float(predicted.mean()) == pytest.approx(float(dataset.energy.mean()), rel=100 * EPS)


def test_single_molecule_gets_the_solution_of_smallest_norm() -> None:
    table = least_squares_reference(with_energies([[8, 1, 1]] * 2, [-10.0, -20.0]))
    assert table[[1, 8]].tolist() == pytest.approx([-6.0, -3.0], rel=100 * EPS)


def test_inseparable_elements_share_by_their_counts() -> None:
    table = least_squares_reference(with_energies([[6, 8], [1], [1, 1]], [-6.0, -1.0, -2.0]))
    assert table[[1, 6, 8]].tolist() == pytest.approx([-1.0, -3.0, -3.0], rel=1e3 * EPS)


def test_no_other_energies_with_the_same_mean_fit_better(generator: torch.Generator) -> None:
    numbers = [[1] * int(h) + [6] * int(c) for h, c in torch.randint(1, 6, (40, 2), generator=generator)]
    dataset = with_energies(numbers, torch.randn(40, generator=generator).tolist())
    _, counts = dataset.compositions
    fitted = least_squares_reference(dataset)[[1, 6]]
    mean = counts.double().mean(0)
    step = 1e-3 * torch.stack([mean[1], -mean[0]])
    error = [float((counts.double() @ (fitted + s * step) - dataset.energy).square().sum()) for s in (-1, 0, 1)]
    assert error[1] == min(error)


def test_absent_elements_are_zero() -> None:
    table = least_squares_reference(with_energies([[8, 1, 1]], [-10.0]))
    assert table.shape == (119,)
    assert table.dtype == torch.float64
    assert table.nonzero()[:, 0].tolist() == [1, 8]


def test_energies_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"energy of frame 1 of fit.xyz is nan: remove the frame"):
        least_squares_reference(with_energies([[1], [1]], [0.0, float("nan")]))


def test_a_set_without_structures_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"fit.xyz has no atoms"):
        least_squares_reference(with_energies([], []))


def test_mapping_fills_the_named_elements() -> None:
    table = reference_from_mapping({"H": -13.6, "Og": 2.0})
    assert table.nonzero()[:, 0].tolist() == [1, 118]
    assert table[1] == -13.6


@pytest.mark.parametrize("symbol", ["h", "Xx", "X", "1", ""])
def test_names_that_are_no_elements_are_refused(symbol: str) -> None:
    with pytest.raises(DatasetError, match=f"'{symbol}' is not the symbol of an element"):
        reference_from_mapping({symbol: -1.0})


@pytest.mark.parametrize("energy", [float("nan"), float("inf"), -float("inf")])
def test_energies_that_are_no_numbers_are_refused(energy: float) -> None:
    with pytest.raises(DatasetError, match="reference energy of H must be a finite number in eV"):
        reference_from_mapping({"H": energy})


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize("energy", ["-13.6", True])
def test_energies_of_another_type_are_refused(energy: Any) -> None:
    with pytest.raises(DatasetError, match="reference energy of H must be a finite number in eV"):
        reference_from_mapping({"H": energy})


def test_single_atoms_are_the_reference() -> None:
    table = isolated_atom_reference(with_energies([[1], [8], [8, 1, 1]], [-13.6, -2042.0, -2080.0]))
    assert table[[1, 8]].tolist() == [-13.6, -2042.0]


@pytest.mark.parametrize(
    ("numbers", "energy", "message"),
    [([[1], [8, 1]], [-13.6, -2050.0], "no single atom of O"), ([[1], [1]], [-13.6, -13.5], r"several energies \(H: ")],
)
def test_missing_and_ambiguous_single_atoms_are_named(numbers, energy, message) -> None:
    with pytest.raises(DatasetError, match=message):
        isolated_atom_reference(with_energies(numbers, energy))
