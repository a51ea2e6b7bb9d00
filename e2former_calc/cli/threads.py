"""How many threads a command uses on the host."""

from __future__ import annotations

import os

ATOMS_PER_THREAD = 64
"""With fewer atoms for each, threads wait for each other longer than they compute."""


def choose_threads(requested: int | None, n_atoms: int) -> int:
    """Set the threads of torch for this process: as requested, else as many as the atoms of all replicas keep busy.

    `OMP_NUM_THREADS` wins over the number of atoms.
    """
    import torch

    if requested is None and "OMP_NUM_THREADS" not in os.environ:
        requested = min(torch.get_num_threads(), max(1, n_atoms // ATOMS_PER_THREAD))
    if requested is not None:
        torch.set_num_threads(requested)
    return torch.get_num_threads()
