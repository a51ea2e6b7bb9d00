"""Conversion between the units of the engine: eV, Å, amu, fs, K; pressure in bar at the surface."""

from __future__ import annotations

from ase import units

ACCELERATION = units.fs**2
"""Acceleration in Å/fs^2 that a force of 1 eV/Å gives to 1 amu; amu (Å/fs)^2 divided by it is eV."""

BOLTZMANN = units.kB
"""Boltzmann constant in eV/K."""

BAR = 1e5 * units.Pascal
"""1 bar in eV/Å^3."""

HBAR = units._hbar * units.J * 1e15
"""Planck constant over 2 pi in eV fs."""
