"""Two replicas of ethanol at 300 K as one batch, with trajectory, log and restart file; then the run is continued."""

from pathlib import Path

import ase.io
from ase.build import molecule

from e2former_calc.checkpoint import load_potential
from e2former_calc.md.integrators import Langevin
from e2former_calc.md.recording import Recording, RecordingFiles
from e2former_calc.md.simulation import Simulation
from e2former_calc.md.velocities import InitialVelocities

ethanol = molecule("CH3CH2OH")
ethanol.info.update(charge=0, spin=1)
potential = load_potential("ethanol-rmd17")
integrator = Langevin(timestep_fs=0.5, temperature_K=300.0, friction_per_ps=5.0)
files = RecordingFiles(Path("ethanol-md.h5md"), log=Path("ethanol-md.csv"), restart=Path("ethanol-md.restart"))


def new_simulation() -> Simulation:
    return Simulation([ethanol] * 2, potential, integrator, seed=1, velocities=InitialVelocities(300.0, exact=True))


simulation = new_simulation()
with Recording(simulation, files, every=5, log_every=10) as recording:
    simulation.run(50, observers=recording.observers)
    recording.checkpoint()

continued = new_simulation()
with Recording(continued, files, every=5, log_every=10, resume=True) as recording:
    continued.run(50, observers=recording.observers)
    recording.checkpoint()

for path in files.trajectories(continued.n_replicas):
    frames = ase.io.read(path, index=":")
    print(f"{path}: {len(frames)} frames, {frames[-1].info['time_fs']:g} fs, {frames[-1].info['temperature_K']:.0f} K")
