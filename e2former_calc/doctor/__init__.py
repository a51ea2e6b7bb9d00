"""Self-check of a potential: measures what must hold of any interatomic potential, and says what a failure means."""

from e2former_calc.doctor.check import Check
from e2former_calc.doctor.examine import examine, structures_for
from e2former_calc.doctor.sample import Structure, as_structure, default_structures

__all__ = ["Check", "Structure", "as_structure", "default_structures", "examine", "structures_for"]
