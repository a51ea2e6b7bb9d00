"""Energy and forces of one molecule."""

from ase.build import molecule

from e2former_calc import E2FormerCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = E2FormerCalculator("ethanol-rmd17")

print(f"energy  {atoms.get_potential_energy():.4f} eV")
for symbol, force in zip(atoms.symbols, atoms.get_forces(), strict=True):
    print(f"{symbol:2s} {force[0]:9.4f} {force[1]:9.4f} {force[2]:9.4f} eV/Å")
