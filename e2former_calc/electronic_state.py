"""Total charge and spin multiplicity of a structure: where they come from, and whether they make sense.

Precedence: constructor argument, then `atoms.info["charge"]` and `atoms.info["spin_multiplicity"]` or
`atoms.info["spin"]`, then charge 0 and multiplicity 1. "spin" is the multiplicity 2S + 1, as in OMol25.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

CHARGE_KEYS = ("charge",)
SPIN_KEYS = ("spin_multiplicity", "spin")
MAX_CHARGE, MAX_SPIN = 10, 20

Complain = Callable[[str, str], None]
"""Called with a key (one warning per key) and a message."""


@dataclass(frozen=True)
class ElectronicState:
    """Charge (e) and multiplicity (2S + 1) of one structure, and whether anybody stated them."""

    charge: int
    spin: int
    stated: bool


def as_integer(name: str, value: Any) -> int:
    """A charge or multiplicity as int.

    Raises:
        ValueError: for anything that is not an integer (numpy integers are).
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        if isinstance(value, float | np.floating) and float(value).is_integer():
            return int(value)
        return operator.index(value)
    except TypeError:
        raise ValueError(f"`{name}` must be an integer, got {value!r}") from None


def watched_info(atoms: Atoms) -> tuple[Any, ...]:
    """The entries of `atoms.info` that the prediction depends on."""
    info = atoms.info
    return tuple(info.get(key) for key in (*CHARGE_KEYS, *SPIN_KEYS)) if info else (None, None, None)


def electronic_state(atoms: Atoms, charge: int | None, spin: int | None) -> ElectronicState:
    """Resolve charge and multiplicity; `charge` and `spin` are the constructor arguments.

    Raises:
        ValueError: for values that are not integers or out of range.
    """
    given_charge = charge if charge is not None else _first(atoms, CHARGE_KEYS)
    given_spin = spin if spin is not None else _first(atoms, SPIN_KEYS)
    resolved_charge = 0 if given_charge is None else as_integer("charge", given_charge)
    resolved_spin = 1 if given_spin is None else as_integer("spin", given_spin)
    if resolved_spin < 1:
        raise ValueError(f"`spin` is the multiplicity 2S + 1 and must be at least 1, got {resolved_spin}")
    return ElectronicState(resolved_charge, resolved_spin, stated=given_charge is not None or given_spin is not None)


def check_electronic_state(
    atoms: Atoms, state: ElectronicState, *, uses_charge: bool, uses_spin: bool, strict: bool, complain: Complain
) -> None:
    """Refuse or report states that the model cannot represent, and contradictions.

    Raises:
        ValueError: with `strict`, for a charge or spin that the model ignores, initial charges
            that contradict the charge, or values outside the range of the embeddings.
    """
    problems = []
    if state.charge != 0 and not uses_charge:
        problems.append(f"charge {state.charge} was given, but this model ignores charge: use another model")
    if state.spin != 1 and not uses_spin:
        problems.append(f"spin multiplicity {state.spin} was given, but this model ignores spin: use another model")
    if uses_charge and abs(state.charge) > MAX_CHARGE:
        problems.append(
            f"charge {state.charge} is outside -{MAX_CHARGE} ... {MAX_CHARGE}, which the model distinguishes"
        )
    if uses_spin and state.spin > MAX_SPIN:
        problems.append(f"spin multiplicity {state.spin} is above {MAX_SPIN}, the largest that the model distinguishes")
    initial = float(np.sum(atoms.get_initial_charges())) if atoms.has("initial_charges") else 0.0
    if abs(initial) > 1e-3 and abs(initial - state.charge) > 1e-3:
        problems.append(
            f"the initial charges add up to {initial:g} but the total charge is {state.charge}: "
            "set atoms.info['charge'] or the charge argument to the one you mean"
        )
    if problems and strict:
        raise ValueError("; ".join(problems))
    for problem in problems:
        complain(problem, problem)
    if uses_charge and not state.stated:
        complain(
            "default state",
            "the model depends on charge and spin and none was given: using charge 0 and multiplicity 1; "
            "set atoms.info['charge'] and atoms.info['spin'], or charge=... and spin=...",
        )
    electrons = int(atoms.numbers.sum()) - state.charge
    if uses_spin and (electrons + state.spin) % 2 == 0:
        complain(
            "parity",
            f"{electrons} electrons cannot have multiplicity {state.spin}: one of charge and spin is wrong",
        )


def _first(atoms: Atoms, keys: tuple[str, ...]) -> Any:
    return next((atoms.info[key] for key in keys if atoms.info.get(key) is not None), None)
