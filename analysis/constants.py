"""Physical constants and unit conversions; quantities of the package are in eV, Å, fs, amu and K."""

from __future__ import annotations

from typing import Final

from ase import units

BOLTZMANN_EV_PER_K: Final[float] = float(units.kB)

AMU_A2_PER_FS2_EV: Final[float] = float(1.0 / units.fs**2)
"""One amu Å^2/fs^2 in eV (about 103.64)."""

LIGHT_CM_PER_FS: Final[float] = 2.99792458e-5
"""Speed of light: a wavenumber in 1/cm times this is a frequency in 1/fs."""

KCAL_PER_MOL_EV: Final[float] = float(units.kcal / units.mol)
KJ_PER_MOL_EV: Final[float] = float(units.kJ / units.mol)

FS_PER_PS: Final[float] = 1000.0

A2_PER_PS_IN_1E9_M2_PER_S: Final[float] = 10.0
"""One Å^2/ps is 10 x 10^-9 m^2/s."""
