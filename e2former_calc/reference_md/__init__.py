"""Molecular dynamics with any ASE calculator, to make reference trajectories and training data.

A trajectory is cut into pieces of `restart_every` steps. At each cut the calculator is replaced by a fresh one
(iterative methods start from their last solution, neighbour lists from their last order, and both change the last
bits), and positions, momenta and random numbers are remembered. A run that was stopped or killed goes on from the
last cut that was saved and gives, bit for bit, the frames of a run that was never interrupted.
"""

from e2former_calc.reference_md.calculators import CalculatorRecipe, parse_options
from e2former_calc.reference_md.file import Summary, summarize
from e2former_calc.reference_md.processes import run_replicas
from e2former_calc.reference_md.run import Outcome, Replica, check_replica, run_replica
from e2former_calc.reference_md.settings import ENSEMBLES, ReferenceSettings

__all__ = [
    "ENSEMBLES",
    "CalculatorRecipe",
    "Outcome",
    "ReferenceSettings",
    "Replica",
    "Summary",
    "check_replica",
    "parse_options",
    "run_replica",
    "run_replicas",
    "summarize",
]
