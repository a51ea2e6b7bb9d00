"""One picosecond of Langevin dynamics at 300 K with ASE's integrator, stored as H5MD."""

import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read, write
from ase.md.langevinbaoab import LangevinBAOAB

from e2former_calc import E2FormerCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = E2FormerCalculator("ethanol-rmd17", skin=1.0)
frames = []
dynamics = LangevinBAOAB(
    atoms, timestep=0.5 * units.fs, temperature_K=300, T_tau=100 * units.fs, rng=np.random.default_rng(1)
)
dynamics.attach(lambda: frames.append(atoms.copy()), interval=20)
dynamics.run(2000)

write("ethanol.h5md", frames)
bonds = [frame.get_distance(0, 1) for frame in read("ethanol.h5md", index=":")]
print(f"{len(bonds)} frames, C-C bond {np.mean(bonds):.3f} ± {np.std(bonds):.3f} Å")
