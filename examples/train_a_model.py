"""Train on your own data: labelled structures, a short configuration, one command.

Thirty steps on EMT energies show the way, not a useful model. Replace the frames by yours (any file that
ASE reads with energies and forces) and take some ten thousand steps.
"""

import subprocess
from pathlib import Path

from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write

from e2former_calc import E2FormerCalculator

frames = []
for seed in range(60):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    atoms.calc = EMT()
    atoms.get_forces()
    frames.append(atoms)
write("frames.extxyz", frames)

Path("mine.yaml").write_text("""
data:
  training: frames.extxyz
  validation: 10
training:
  steps: 30
  validate_every: 10
card:
  level_of_theory: EMT
""")
subprocess.run(["e2former", "train", "mine.yaml", "--overwrite"], check=True)

atoms = molecule("CH3CH2OH")
atoms.calc = E2FormerCalculator("mine.safetensors")
print(f"{atoms.get_potential_energy():.3f} eV, EMT says {EMT().get_potential_energy(atoms):.3f} eV")
