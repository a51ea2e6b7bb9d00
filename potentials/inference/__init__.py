"""Fast inference: a loaded network prepared once, evaluated and differentiated by hand."""

from e2former_calc.potentials.inference.prepared import (
    Prepared,
    SelfCheck,
    choose_execution,
    execution,
    obstacles,
    prepare,
    reasons_against,
)

__all__ = ["Prepared", "SelfCheck", "choose_execution", "execution", "obstacles", "prepare", "reasons_against"]
