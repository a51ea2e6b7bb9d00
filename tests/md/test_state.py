"""States are never changed in place."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms

from e2former_calc.md.integrators import Langevin
from e2former_calc.md.simulation import Simulation


def test_a_changed_state_shares_all_but_what_is_new(potentials: Any, cluster: Atoms) -> None:
    state = Simulation(cluster, potentials.LennardJones(), Langevin(1.0, 50.0, 1.0), seed=1).state
    before = state.tensors()
    energy = torch.full_like(state.energy, 3.0)
    changed = state.changed(step=7, energy=energy)
    assert (changed.step, state.step) == (7, 0)
    assert changed.energy is energy
    assert all(tensor is before[name] for name, tensor in changed.tensors().items() if name != "energy")
    assert all(tensor is before[name] for name, tensor in state.tensors().items())
