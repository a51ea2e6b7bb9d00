"""Hundreds of structures in a few network calls, without a loop over `atoms.calc`."""

from ase.build import molecule

from e2former_calc import E2FormerCalculator

images = []
for seed in range(200):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=seed)
    images.append(atoms)

results = E2FormerCalculator("ethanol-rmd17").evaluate(images, ["energy", "forces"])
energies = [result["energy"] for result in results]
print(f"{len(results)} structures, energies from {min(energies):.3f} to {max(energies):.3f} eV")
