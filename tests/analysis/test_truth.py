"""Errors against a ground truth that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.emt import EMT

from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError
from e2former_calc.analysis.truth import truth_errors


@pytest.fixture
def labelled(ethanol: Trajectory) -> Trajectory:
    energies, forces = [], []
    for frame in range(10):
        atoms = ethanol.to_atoms(frame)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return replace(ethanol.read(0, 10), energies=np.array(energies), forces=np.array(forces))


def test_truth_has_no_error(labelled: Trajectory) -> None:
    result = truth_errors(labelled, EMT(), n_samples=5)
    assert len(result.frames) == 5
    assert result.energy_mae_meV_per_atom < 1e-9
    assert result.force_max_meV_per_A.max() < 1e-9


def test_errors_are_found_where_they_are(labelled: Trajectory) -> None:
    forces, energies = np.asarray(labelled.forces).copy(), np.asarray(labelled.energies) + 50.0
    forces[7, 2, 1] += 0.27
    energies[7] += 0.9
    result = truth_errors(replace(labelled, forces=forces, energies=energies), EMT(), energy_offset_eV=50.0)
    assert int(np.argmax(result.force_max_meV_per_A)) == 7
    assert result.force_max_meV_per_A[7] == pytest.approx(270.0)
    assert result.force_mae_meV_per_A[7] == pytest.approx(10.0)
    assert result.energy_errors_meV_per_atom[7] == pytest.approx(100.0)


def test_zero_of_energy_does_not_matter(labelled: Trajectory) -> None:
    shifted = replace(labelled, energies=np.asarray(labelled.energies) - 1234.5)
    result = truth_errors(shifted, EMT())
    assert result.energy_offset_eV == pytest.approx(-1234.5)
    assert result.energy_mae_meV_per_atom < 1e-6


def test_labels_are_needed(ethanol: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="holds no forces"):
        truth_errors(ethanol, EMT())


def test_samples_are_counted(labelled: Trajectory) -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        truth_errors(labelled, EMT(), n_samples=0)


class Shifted(EMT):
    """EMT whose forces are all wrong by the same amount."""

    def calculate(self, *arguments: object, **values: object) -> None:
        super().calculate(*arguments, **values)
        self.results["forces"] = self.results["forces"] + 0.05
        self.results["energy"] = self.results["energy"] + 2.0


def test_a_model_is_judged_by_stored_labels(labelled: Trajectory) -> None:
    result = truth_errors(labelled, None, model=Shifted(), n_samples=4)
    assert result.force_mae_meV_per_A == pytest.approx(50.0)
    assert result.energy_offset_eV == pytest.approx(2.0)


def test_a_model_is_judged_by_a_calculator(ethanol: Trajectory) -> None:
    result = truth_errors(ethanol, EMT(), model=Shifted(), n_samples=4)
    assert result.force_mae_meV_per_A == pytest.approx(50.0)


def test_something_must_be_calculated(labelled: Trajectory) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        truth_errors(labelled, None)
