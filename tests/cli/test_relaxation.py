"""Laws of the relaxation itself, on calculators whose answers are known."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from e2former_calc import E2FormerCalculator
from e2former_calc.cli.relaxation import (
    OPTIMIZERS,
    Outcome,
    RelaxSettings,
    Step,
    StopRequest,
    force_noise,
    relax_atoms,
    stop_on_signal,
)


class Spring(Calculator):
    """Energy 1/2 k x^2 of every atom, in eV and Å; results are NaN-free until `fails_at` evaluations."""

    implemented_properties: ClassVar = ["energy", "free_energy", "forces"]

    def __init__(self, constant: float = 5.0, fails_at: int | None = None) -> None:
        super().__init__()
        self.constant, self.fails_at, self.count = constant, fails_at, 0

    def calculate(self, atoms: Atoms, properties: Any = (), system_changes: Any = all_changes) -> None:  # type: ignore[override]
        super().calculate(atoms, properties, system_changes)
        self.count += 1
        if self.count == self.fails_at:
            raise ValueError("the model returned energy that is not finite")
        energy = 0.5 * self.constant * float((atoms.positions**2).sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": -self.constant * atoms.positions}


def copper() -> Atoms:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=3)
    atoms.calc = EMT()
    return atoms


def pair(**options: Any) -> Atoms:
    return Atoms("H2", [[0.3, 0.0, 0.0], [0.0, -0.4, 0.2]], calculator=Spring(**options))


def relaxed(atoms: Atoms, **settings: Any) -> tuple[Outcome, list[Step]]:
    steps: list[Step] = []
    return relax_atoms(atoms, RelaxSettings(**settings), observe=steps.append, stop=StopRequest()), steps


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "CellAwareBFGS"])
def test_every_optimizer_finds_the_minimum(name: str) -> None:
    atoms = copper()
    outcome, steps = relaxed(atoms, optimizer=name, fmax=0.02, steps=100)
    assert outcome.converged
    assert outcome.last.energy < outcome.first.energy
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.02
    assert [step.number for step in steps] == list(range(len(steps)))


@pytest.mark.parametrize("name", ["BFGS", "FIRE", "CellAwareBFGS"])
@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_relaxed_cell_carries_the_external_pressure(name: str, pressure: float) -> None:
    atoms = copper()
    outcome, _ = relaxed(atoms, optimizer=name, cell=True, pressure_gpa=pressure, fmax=1e-4, steps=300)
    assert outcome.converged
    assert -atoms.get_stress()[:3] / units.GPa == pytest.approx([pressure] * 3, abs=0.01)
    assert outcome.last.enthalpy < outcome.first.enthalpy


def test_hydrostatic_relaxation_keeps_the_shape_of_the_cell() -> None:
    atoms = copper()
    atoms.set_cell(atoms.cell.array @ np.diag([1.0, 1.02, 0.97]), scale_atoms=True)
    shape = atoms.cell.array / atoms.cell.volume ** (1 / 3)
    relaxed(atoms, cell=True, hydrostatic=True)
    assert atoms.cell.array / atoms.cell.volume ** (1 / 3) == pytest.approx(shape, abs=1e-10)


def test_constrained_atoms_stay() -> None:
    atoms = pair()
    atoms.set_constraint(FixAtoms([0]))
    outcome, _ = relaxed(atoms)
    assert outcome.converged
    assert atoms.positions[0].tolist() == [0.3, 0.0, 0.0]


def test_no_step_is_taken_if_the_start_is_converged() -> None:
    outcome, steps = relaxed(Atoms("H", [[0.0, 0.0, 0.0]], calculator=Spring()))
    assert (outcome.status, len(steps)) == ("converged", 1)


@pytest.mark.parametrize("name", ["BFGS", "FIRE", "SciPyFminCG", "ODE12r"])
@pytest.mark.parametrize("limit", [0, 2])
def test_step_limit_is_kept_by_every_kind_of_optimizer(name: str, limit: int) -> None:
    outcome, steps = relaxed(copper(), optimizer=name, fmax=1e-12, steps=limit)
    assert (outcome.status, len(steps)) == ("not converged", limit + 1)
    assert outcome.message == f"not converged within {limit} steps"


def test_failure_of_the_model_ends_the_run_after_the_last_good_step() -> None:
    outcome, steps = relaxed(pair(fails_at=3))
    assert outcome.status == "failed"
    assert outcome.message == "step 2 failed: the model returned energy that is not finite"
    assert len(steps) == 2


def test_failure_at_the_start_is_raised() -> None:
    with pytest.raises(ValueError, match="not finite"):
        relaxed(pair(fails_at=1))


def test_energy_without_lower_bound_is_called_an_explosion() -> None:
    outcome, _ = relaxed(pair(constant=-50.0), optimizer="FIRE", steps=2000)
    assert outcome.status == "failed"
    assert "the energy exploded: it changed by -" in outcome.message


def test_stuck_line_search_is_a_failure_that_names_the_remedy() -> None:
    class Wrong(Spring):
        def calculate(self, *arguments: Any, **options: Any) -> None:
            super().calculate(*arguments, **options)
            self.results["forces"] = -self.results["forces"]

    atoms = Atoms("H2", [[0.3, 0.0, 0.0], [0.0, -0.4, 0.2]], calculator=Wrong())
    outcome, _ = relaxed(atoms, optimizer="LBFGSLineSearch")
    assert outcome.status == "failed"
    assert "try another --optimizer" in outcome.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_after_the_running_step(number: signal.Signals) -> None:
    told: list[str] = []
    before = signal.getsignal(number)
    with stop_on_signal(told.append) as stop:

        def observe(step: Step) -> None:
            if step.number == 3:
                signal.raise_signal(number)

        outcome = relax_atoms(copper(), RelaxSettings(optimizer="FIRE", fmax=1e-9), observe=observe, stop=stop)
    assert (outcome.status, outcome.signal, outcome.last.number) == ("interrupted", number, 3)
    assert len(told) == 1
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmax": 0.0}, "--fmax must be positive"),
        ({"fmax": float("nan")}, "--fmax must be positive"),
        ({"pressure_gpa": 1.0}, "need --cell"),
        ({"hydrostatic": True}, "need --cell"),
        ({"optimizer": "CellAwareBFGS"}, "need --cell"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelaxSettings(**settings)


def test_cell_of_a_molecule_is_refused() -> None:
    with pytest.raises(ValueError, match="periodic in three directions; pbc is \\[False, False, False\\]"):
        relaxed(pair(), cell=True)


def test_force_noise_is_the_rounding_of_the_precision(tiny_checkpoint: Path) -> None:
    atoms = molecule("CH3CH2OH")
    noise = {
        dtype: force_noise(atoms, E2FormerCalculator(tiny_checkpoint, dtype=dtype, charge=0, spin=1), seed=0)
        for dtype in ("float32", "float64")
    }
    assert noise["float64"] < 1e-8
    assert 1e-8 < noise["float32"] < 1e-3
