"""Integrators: one file each, frozen dataclasses with units in the names of their parameters."""

from e2former_calc.md.integrators.adaptive_quantum_thermal_bath import AdaptiveQuantumThermalBath
from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling
from e2former_calc.md.integrators.bussi import Bussi
from e2former_calc.md.integrators.cell_rescaling import StochasticCellRescaling
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.integrators.langevin import Langevin
from e2former_calc.md.integrators.monte_carlo_barostat import MonteCarloBarostat
from e2former_calc.md.integrators.nose_hoover_chain import NoseHooverChain
from e2former_calc.md.integrators.quantum_thermal_bath import QuantumThermalBath
from e2former_calc.md.integrators.verlet import VelocityVerlet

__all__ = [
    "AdaptiveQuantumThermalBath",
    "AnisotropicCellRescaling",
    "Bussi",
    "Integrator",
    "Langevin",
    "MonteCarloBarostat",
    "NoseHooverChain",
    "QuantumThermalBath",
    "StochasticCellRescaling",
    "VelocityVerlet",
]
