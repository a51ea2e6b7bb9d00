"""Rollout analysis: functions of arrays (frames, atoms, 3); no torch and no model is imported here.

| module | what |
|---|---|
| `trajectory`, `readers`, `thermo_log` | frames in memory or from a file in parts, with the log beside it; checks |
| `stability`, `collapse`, `survival` | how long a rollout lasts, why it ended, Kaplan-Meier over replicas |
| `distances`, `rdf`, `angles` | h(r), g(r) and coordination numbers, distribution of angles |
| `histograms`, `comparison`, `statistics` | blocks, error bars, noise floor, a rollout's curves beside its reference |
| `thermodynamics`, `ensembles` | drift, temperatures of every motion, tests of the ensemble |
| `dynamics`, `correlation` | unwrapping, diffusion, velocity autocorrelation, vibrational spectra |
| `topology`, `internal_coordinates`, `geometry` | bonds, angles, dihedrals, backbone, size and shape |
| `free_energy` | Ramachandran maps, free-energy profiles, metadynamics hills |
| `truth` | errors along a rollout against a ground-truth calculator |

Every stream-able function takes a `FrameSource`: a `Trajectory`, or a file opened with `readers.open_trajectory`.
"""
