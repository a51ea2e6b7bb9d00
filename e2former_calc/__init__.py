"""ASE calculator and molecular-dynamics engine for the E2Former family of interatomic potentials."""

from e2former_calc.checkpoint import load_potential

__version__ = "0.1.0"

__all__ = ["__version__", "load_potential"]
