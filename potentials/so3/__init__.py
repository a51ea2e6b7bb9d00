"""Real spherical harmonics and Clebsch-Gordan coefficients; conventions in README.md."""

from e2former_calc.potentials.so3.coupling import coupling_paths, vector_coupling
from e2former_calc.potentials.so3.harmonics import SphericalHarmonics

__all__ = ["SphericalHarmonics", "coupling_paths", "vector_coupling"]
