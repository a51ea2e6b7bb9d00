"""ASE calculator and molecular-dynamics engine for the E2Former family of interatomic potentials.

Names are imported on first use: ASE imports this package for its file format whenever `ase.io` is
imported, and must not wait for torch then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2former_calc.calculator import E2FormerCalculator
    from e2former_calc.checkpoint import load_potential

__version__ = "0.1.0"

__all__ = ["E2FormerCalculator", "__version__", "load_potential"]

_HOMES = {"E2FormerCalculator": "e2former_calc.calculator", "load_potential": "e2former_calc.checkpoint"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module.

    Raises:
        AttributeError: if there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'e2former_calc' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List public names, imported or not."""
    return sorted(__all__)
