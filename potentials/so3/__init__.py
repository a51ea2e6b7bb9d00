"""Real spherical harmonics and Clebsch-Gordan coefficients; conventions in README.md."""

from e2former_calc.potentials.so3.coupling import coupling_paths, vector_coupling
from e2former_calc.potentials.so3.harmonics import SphericalHarmonics
from e2former_calc.potentials.so3.triple import triple_coupling

__all__ = ["SphericalHarmonics", "coupling_paths", "triple_coupling", "vector_coupling"]
