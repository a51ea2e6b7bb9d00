"""Times and memory of energies and forces, and of training steps; each case in a process of its own."""

from e2former_calc.benchmark.case import Case, ModelSpec, Quantiles, Result
from e2former_calc.benchmark.comparison import ComparisonCase, ComparisonResult
from e2former_calc.benchmark.machine import machine_info
from e2former_calc.benchmark.runner import (
    BUILTIN_STRUCTURES,
    TRAINING_STRUCTURES,
    BenchmarkError,
    builtin_structure,
    is_builtin,
    run_comparison_in_subprocess,
    run_in_subprocess,
    run_training_in_subprocess,
)
from e2former_calc.benchmark.shapes import NetworkShape, shape_potential
from e2former_calc.benchmark.training import TrainingCase, TrainingResult

__all__ = [
    "BUILTIN_STRUCTURES",
    "TRAINING_STRUCTURES",
    "BenchmarkError",
    "Case",
    "ComparisonCase",
    "ComparisonResult",
    "ModelSpec",
    "NetworkShape",
    "Quantiles",
    "Result",
    "TrainingCase",
    "TrainingResult",
    "builtin_structure",
    "is_builtin",
    "machine_info",
    "run_comparison_in_subprocess",
    "run_in_subprocess",
    "run_training_in_subprocess",
    "shape_potential",
]
