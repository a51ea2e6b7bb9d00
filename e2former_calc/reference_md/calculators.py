"""Calculators for reference data by name: xTB, any that ASE knows, any class, or a model of this package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import ase
from ase import Atoms
from ase.calculators.calculator import FileIOCalculator, get_calculator_class
from ase.calculators.genericfileio import GenericFileIOCalculator

import e2former_calc
from e2former_calc.electronic_state import ElectronicState, electronic_state

XTB_METHODS = {"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB"}
MODEL_PREFIX = "model:"


@dataclass(frozen=True)
class CalculatorRecipe:
    """What to calculate with.

    Attributes:
        name: "gfn2", "gfn1", a name of ASE ("emt"), "package.module:Class", or "model:PATH_OR_NAME".
        options: keyword arguments of the calculator.
        charge: total charge in e, or None for `atoms.info`.
        multiplicity: 2S + 1, or None for `atoms.info`.
    """

    name: str = "gfn2"
    options: Mapping[str, Any] = field(default_factory=dict)
    charge: int | None = None
    multiplicity: int | None = None

    def electronic_state(self, atoms: Atoms) -> ElectronicState:
        """Charge and multiplicity that a structure is calculated with.

        Raises:
            ValueError: for values that are not integers or out of range.
        """
        return electronic_state(atoms, self.charge, self.multiplicity)


@dataclass(frozen=True)
class Method:
    """A calculator ready for one structure.

    Attributes:
        name: of the method, "GFN2-xTB".
        code: program and version, "tblite 0.8.0".
        fresh: makes a calculator that remembers nothing of earlier calculations.
    """

    name: str
    code: str
    fresh: Callable[[], Any]

    @property
    def level(self) -> str:
        """Level of theory with the program, as data sets state it."""
        return f"{self.name} ({self.code})"


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from texts, each a JSON object or `key=value` (the value JSON, or else text).

    Raises:
        ValueError: for anything else, quoting it.
    """
    options: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                options |= json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"calculator options {text!r} are not valid JSON: {error}") from None
            continue
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"calculator options must be key=value or a JSON object, got {text!r}")
        try:
            options[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[key.strip()] = value
    return options


def prepare(recipe: CalculatorRecipe, atoms: Atoms, *, folder: Path) -> Method:
    """Make a method from a recipe; a calculator is built once, so that wrong names and options show here.

    Args:
        recipe: which calculator.
        atoms: the structure; its charge and spin are passed on.
        folder: working directory of calculators that run programs; created by them.

    Raises:
        ValueError: if there is no such calculator, a package is missing, or options or charge do not suit it.
    """
    if recipe.name in XTB_METHODS:
        return _xtb(recipe, atoms)
    if recipe.name.startswith(MODEL_PREFIX):
        return _model(recipe)
    return _any(recipe, folder)


def _xtb(recipe: CalculatorRecipe, atoms: Atoms) -> Method:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ValueError(
            f'{XTB_METHODS[recipe.name]} needs the package tblite ({error}): pip install "e2former_calc[xtb]"'
        ) from None
    state = recipe.electronic_state(atoms)
    _check_electrons(atoms, state)
    arguments: dict[str, Any] = {"method": XTB_METHODS[recipe.name], "verbosity": 0}
    arguments |= {"charge": state.charge, "multiplicity": state.spin} | dict(recipe.options)

    def fresh() -> Any:
        return TBLite(**arguments)

    _tried(recipe, fresh)
    return Method(str(arguments["method"]), f"tblite {version('tblite')}", fresh)


def _check_electrons(atoms: Atoms, state: ElectronicState) -> None:
    """Raise ValueError for a multiplicity that the number of electrons forbids, or contradicting charges."""
    electrons = int(atoms.numbers.sum()) - state.charge
    if (electrons + state.spin) % 2 == 0:
        raise ValueError(
            f"{electrons} electrons cannot have multiplicity {state.spin}: give --charge and --multiplicity, or set "
            "charge and spin in the structure file"
        )
    initial = float(atoms.get_initial_charges().sum()) if atoms.has("initial_charges") else 0.0
    if abs(initial) > 1e-3 and abs(initial - state.charge) > 1e-3:
        raise ValueError(
            f"the initial charges add up to {initial:g} but the total charge is {state.charge}: give the one you "
            "mean with --charge"
        )


def _model(recipe: CalculatorRecipe) -> Method:
    from e2former_calc.calculator import E2FormerCalculator

    name = recipe.name.removeprefix(MODEL_PREFIX)
    made: list[Any] = []

    def build() -> Any:
        return E2FormerCalculator(name, charge=recipe.charge, spin=recipe.multiplicity, **recipe.options)

    def fresh() -> Any:
        if not made:
            made.append(build())
        made[0].reset()
        return made[0]

    _tried(recipe, fresh)
    return Method(name, f"e2former_calc {e2former_calc.__version__}", fresh)


def _any(recipe: CalculatorRecipe, folder: Path) -> Method:
    if recipe.charge is not None or recipe.multiplicity is not None:
        raise ValueError(
            f"--charge and --multiplicity are for gfn1, gfn2 and models: the calculator {recipe.name!r} has options "
            "of its own, give them with --calculator-options"
        )
    kind = _calculator_class(recipe.name)
    runs_a_program = isinstance(kind, type) and issubclass(kind, FileIOCalculator | GenericFileIOCalculator)

    def fresh() -> Any:
        calculator = kind(**recipe.options)
        if runs_a_program and "directory" not in recipe.options:
            calculator.directory = str(folder)
        return calculator

    _tried(recipe, fresh)
    return Method(getattr(kind, "__name__", recipe.name), _code(kind), fresh)


def _calculator_class(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    try:
        if colon:
            return getattr(import_module(module), attribute)
        return get_calculator_class(name)
    except (ImportError, AttributeError, ValueError, NameError) as error:
        raise ValueError(
            f"there is no calculator {name!r} ({error}): give gfn2, gfn1, a name that ASE knows such as emt, "
            "package.module:Class, or model:PATH_OR_NAME"
        ) from None


def _tried(recipe: CalculatorRecipe, fresh: Callable[[], Any]) -> None:
    """Raise ValueError if the calculator cannot be made."""
    try:
        calculator = fresh()
    except OSError:
        raise
    except Exception as error:  # constructors of calculators raise errors of any kind
        given = f" with the options {dict(recipe.options)}" if recipe.options else ""
        raise ValueError(
            f"the calculator {recipe.name!r} cannot be made{given}: {str(error) or type(error).__name__}"
        ) from error
    if not hasattr(calculator, "get_property"):
        raise ValueError(f"{recipe.name!r} does not make an ASE calculator but {type(calculator).__name__}")


def _code(kind: Any) -> str:
    """Distribution that a class comes from, with its version."""
    package = str(kind.__module__).partition(".")[0]
    if package == "ase":
        return f"ASE {ase.__version__}"
    for name in packages_distributions().get(package, ()):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return str(kind.__module__)
