from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.units import _amu

from e2former_calc.analysis.readers import read_trajectory
from e2former_calc.checkpoint import load_model
from e2former_calc.structures import MOLECULES, molecule, reference_file, water_box


@pytest.mark.parametrize(("name", "formula"), list(zip(MOLECULES, ("C2H6O", "C9H8O4", "C12H22N4O4"), strict=True)))
def test_molecules_have_the_right_formula(name: str, formula: str) -> None:
    assert molecule(name).get_chemical_formula() == formula


def test_unknown_molecule_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"no molecule 'caffeine'.*ethanol"):
        molecule("caffeine")


def test_the_reference_trajectory_is_of_the_molecule_of_its_model() -> None:
    trajectory = read_trajectory(reference_file("ala3-gfn2"))
    formula = Atoms(trajectory.numbers).get_chemical_formula("hill")
    assert load_model("ala3-gfn2").card.compositions == (formula,)
    assert trajectory.spacing_fs() * (len(trajectory.positions) - 1) >= 100_000.0


def test_unknown_references_are_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"for 'caffeine'; there are \['ala3-gfn2'\]"):
        reference_file("caffeine")


def test_water_box_has_the_density_of_the_liquid() -> None:
    box = water_box(3)
    grams_per_cm3 = box.get_masses().sum() * _amu * 1e3 / (box.get_volume() * 1e-24)
    assert grams_per_cm3 == pytest.approx(1.0, abs=1e-3)


def test_water_molecules_are_intact_and_apart() -> None:
    box = water_box(3)
    distances = box.get_all_distances(mic=True)
    same = np.arange(len(box)) // 3
    between = distances[same[:, None] != same[None]]
    assert box.get_distances([0], [1, 2], mic=True)[0] == pytest.approx(0.9572)
    assert box.get_angle(1, 0, 2) == pytest.approx(104.52)
    assert between.min() > 1.2


def test_water_box_is_the_same_every_time_and_differs_by_seed() -> None:
    assert np.array_equal(water_box(2).positions, water_box(2).positions)
    assert not np.allclose(water_box(2).positions, water_box(2, seed=1).positions)


def test_water_box_needs_a_molecule() -> None:
    with pytest.raises(ValueError, match="at least 1 molecule, got 0"):
        water_box(0)
