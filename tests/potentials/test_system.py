"""`System` and `Prediction`: building, stacking, and not touching what the user gave."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from e2former_calc.potentials.system import System

CO2 = System.single([[0.0, 0.0, 0.0], [0.0, 0.0, 1.16], [0.0, 0.0, -1.16]], [6, 8, 8])
SALT = System.single([[0.0, 0.0, 0.0], [2.8, 0.0, 0.0]], [11, 17], cell=5.6 * np.eye(3), pbc=True, charge=1, spin=2)


def test_single_structure_has_one_of_everything() -> None:
    assert (SALT.n_atoms, SALT.n_structures) == (2, 1)
    assert SALT.positions.dtype == SALT.cell.dtype == torch.float64
    assert SALT.pbc.tolist() == [[True, True, True]]
    assert (SALT.charge.tolist(), SALT.spin.tolist(), SALT.batch.tolist()) == ([1], [2], [0, 0])


def test_single_structure_without_cell_is_a_molecule() -> None:
    assert not CO2.pbc.any()
    assert not CO2.cell.any()
    assert (CO2.charge.item(), CO2.spin.item()) == (0, 1)


@pytest.mark.parametrize(("pbc", "expected"), [(True, [True] * 3), ((True, False, True), [True, False, True])])
def test_periodicity_is_one_flag_or_three(pbc: object, expected: list[bool]) -> None:
    assert System.single([[0.0, 0.0, 0.0]], [2], cell=np.eye(3), pbc=pbc).pbc.tolist() == [expected]


@pytest.mark.parametrize(
    ("positions", "numbers", "cell"),
    [
        ([[0.0, 0.0]], [1], None),
        ([0.0, 0.0, 0.0], [1], None),
        ([[0.0, 0.0, 0.0]], [1, 1], None),
        ([[0.0, 0.0, 0.0]], [1], [1.0, 1.0, 1.0]),
    ],
)
def test_wrong_shapes_are_named(positions: object, numbers: object, cell: object) -> None:
    with pytest.raises(ValueError, match=r"must have shapes \(atoms, 3\), \(atoms,\) and \(3, 3\), got \("):
        System.single(positions, numbers, cell=cell)


def test_arrays_are_copied_in_float64() -> None:
    positions = np.zeros((1, 3), dtype=np.float32)
    system = System.single(positions, [1])
    positions += 1.0
    assert system.positions.tolist() == [[0.0, 0.0, 0.0]]


def test_stack_joins_structures_in_order() -> None:
    joined = System.stack([CO2, SALT, CO2])
    assert joined.sizes.tolist() == [3, 2, 3]
    assert joined.batch.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert joined.charge.tolist() == [0, 1, 0]
    assert joined.positions[3:5].equal(SALT.positions)


def test_stack_accepts_stacks() -> None:
    nested = System.stack([System.stack([CO2, SALT]), System.stack([SALT, CO2])])
    flat = System.stack([CO2, SALT, SALT, CO2])
    for name in flat.__dataclass_fields__:
        assert getattr(nested, name).equal(getattr(flat, name)), name


def test_empty_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="`systems` is empty: give at least one structure"):
        System.stack([])


def test_new_positions_leave_the_old_system_alone() -> None:
    moved = CO2.with_positions(CO2.positions + 1.0)
    assert moved.positions.equal(CO2.positions + 1.0)
    assert CO2.positions[0].tolist() == [0.0, 0.0, 0.0]
    assert moved.numbers is CO2.numbers


def test_moving_to_a_device_keeps_every_field() -> None:
    moved = System.stack([CO2, SALT]).to("cpu")
    assert moved.sizes.tolist() == [3, 2]
    assert all(getattr(moved, name).device.type == "cpu" for name in moved.__dataclass_fields__)


def test_systems_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CO2.positions = SALT.positions  # type: ignore[misc]
