"""Tells ASE about the calculator; found through the entry point group `ase.plugins`.

`ase info --plugins` lists it. The plug-in interface of ASE is experimental and lives in a private
package, so versions of ASE without it, or with another one, find no plug-in here and work as before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

CITATION = "E2Former-V2, arXiv:2601.16622"


def __getattr__(name: str) -> frozenset[Any]:
    """`__ase_plugins__`, made when ASE asks: importing ASE's plug-ins here would make them import this module.

    Raises:
        AttributeError: for any other name.
    """
    if name != "__ase_plugins__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _plugins()


@cache
def _plugins() -> frozenset[Any]:
    try:
        from ase._4.plugins.plugin import CalculatorPlugin

        plugin = CalculatorPlugin(
            "e2former", citation=CITATION, implementation="e2former_calc.calculator.E2FormerCalculator"
        )
    except (ImportError, TypeError):
        return frozenset()
    return frozenset({plugin})
