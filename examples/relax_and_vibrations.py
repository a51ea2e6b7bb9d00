"""Relax a molecule, then its harmonic frequencies from the analytic Hessian (float64)."""

from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import VibrationsData

from e2former_calc import E2FormerCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = E2FormerCalculator("ethanol-rmd17", dtype="float64")
BFGS(atoms, logfile=None).run(fmax=1e-4, steps=300)

vibrations = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms))
for number, frequency in enumerate(vibrations.get_frequencies()):
    kind = f"{frequency.real:8.1f}" if abs(frequency.imag) < 1 else f"{frequency.imag:8.1f}i"
    print(f"mode {number:2d} {kind} cm^-1")
