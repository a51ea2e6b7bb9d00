"""Charge and spin: precedence, validation, warnings."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from e2former_calc.electronic_state import as_integer, check_electronic_state, electronic_state


def check(atoms: Atoms, *, charge=None, spin=None, uses=True, strict=True) -> list[str]:
    """Messages of one check."""
    messages: list[str] = []
    state = electronic_state(atoms, charge, spin)
    check_electronic_state(
        atoms, state, uses_charge=uses, uses_spin=uses, strict=strict, complain=lambda _, text: messages.append(text)
    )
    return messages


def with_info(**info) -> Atoms:
    atoms = molecule("H2O")
    atoms.info.update(info)
    return atoms


def test_constructor_wins_over_info():
    state = electronic_state(with_info(charge=1, spin=2), -1, 4)
    assert (state.charge, state.spin) == (-1, 4)


def test_spin_multiplicity_wins_over_spin():
    assert electronic_state(with_info(spin_multiplicity=3, spin=5), None, None).spin == 3


def test_default_is_neutral_singlet():
    state = electronic_state(molecule("H2O"), None, None)
    assert (state.charge, state.spin, state.stated) == (0, 1, False)


@pytest.mark.parametrize("value", [2, np.int64(2), np.int8(2), 2.0, np.float64(2.0)])
def test_integers_of_all_kinds_are_accepted(value):
    assert as_integer("charge", value) == 2


@pytest.mark.parametrize("value", [0.5, "1", True, np.bool_(True), [1]])
def test_everything_else_is_refused(value):
    with pytest.raises(ValueError, match="`charge` must be an integer"):
        as_integer("charge", value)


def test_spin_zero_is_refused_with_the_convention():
    with pytest.raises(ValueError, match=r"multiplicity 2S \+ 1"):
        electronic_state(with_info(spin=0), None, None)


def test_silence_when_everything_is_stated():
    assert check(with_info(charge=0, spin=1)) == []


def test_the_default_is_announced():
    assert any("none was given" in message for message in check(molecule("H2O")))


def test_impossible_multiplicity_is_reported():
    assert any("10 electrons cannot have multiplicity 2" in m for m in check(with_info(charge=0, spin=2)))


@pytest.mark.parametrize(("info", "message"), [({"charge": 1}, "ignores charge"), ({"spin": 3}, "ignores spin")])
def test_a_model_that_ignores_it_refuses(info, message):
    with pytest.raises(ValueError, match=message):
        check(with_info(**info), uses=False)


def test_not_strict_reports_instead():
    assert any("ignores charge" in m for m in check(with_info(charge=1), uses=False, strict=False))


@pytest.mark.parametrize(("info", "message"), [({"charge": 11}, "outside -10"), ({"spin": 21}, "above 20")])
def test_values_beyond_the_embeddings_are_refused(info, message):
    with pytest.raises(ValueError, match=message):
        check(with_info(**info))


def test_contradicting_initial_charges_are_refused():
    atoms = with_info(charge=0)
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="initial charges add up to 1"):
        check(atoms)


def test_agreeing_initial_charges_are_fine():
    atoms = with_info(charge=1, spin=2)
    atoms.set_initial_charges([0.5, 0.25, 0.25])
    assert check(atoms) == []
