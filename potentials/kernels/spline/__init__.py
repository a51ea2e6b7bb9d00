"""Radial functions as Hermite splines: many functions of one distance, one set per ordered pair of elements.

A radial network sees only the distance and the two elements, so at inference it is a table. The
interpolant has one (cubic) or two (quintic) continuous derivatives. Its slope is that of the interpolant itself, so
that forces are the gradient of the tabulated energy. The error falls with the fourth (cubic) or sixth (quintic) power
of the spacing.

Source: F. N. Fritsch, R. E. Carlson, SIAM J. Numer. Anal. 17, 238 (1980), equation 2 (cubic); the quintic one is the
same construction with the second derivative.
"""

from e2former_calc.potentials.kernels.spline.reference import evaluate_spline
from e2former_calc.potentials.kernels.spline.table import SplineTable, TabulatedFunctions

__all__ = ["SplineTable", "TabulatedFunctions", "evaluate_spline"]
