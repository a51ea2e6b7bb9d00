"""The moves of `Dynamics` by native kernels, for the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from e2former_calc.md import native_kernels
from e2former_calc.md.noise import Counters
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.state import State


class NativeMoves:
    """Elementary moves as functions of tensors; equal to those of `Dynamics` to the last bit.

    Args:
        replicas: which atom belongs where.
        mobility: 1 / m in the units of velocities, forces and times, one column.
        half_masses: m / 2 in the units of energies and velocities.
    """

    def __init__(
        self, replicas: Replicas, *, mobility: Float[Tensor, "atoms 1"], half_masses: Float[Tensor, " atoms"]
    ) -> None:
        self._mobility, self._half_masses = _array(mobility[:, 0]), _array(half_masses)
        self._bounds = np.append(_array(replicas.first_atom), replicas.n_atoms)
        self._replicas = replicas.n_replicas

    def kick(
        self, velocities: Float[Tensor, "atoms 3"], forces: Float[Tensor, "atoms 3"], duration_fs: float
    ) -> Float[Tensor, "atoms 3"]:
        """V + duration F / m."""
        result = np.empty(velocities.shape)
        native_kernels.kick(_array(velocities), _array(forces), self._mobility, duration_fs, result)
        return torch.from_numpy(result)

    def drift(
        self, positions: Float[Tensor, "atoms 3"], velocities: Float[Tensor, "atoms 3"], duration_fs: float
    ) -> Float[Tensor, "atoms 3"]:
        """X + duration v."""
        result = np.empty(positions.shape)
        native_kernels.drift(_array(positions), _array(velocities), duration_fs, result)
        return torch.from_numpy(result)

    def kick_and_drift(
        self,
        positions: Float[Tensor, "atoms 3"],
        velocities: Float[Tensor, "atoms 3"],
        forces: Float[Tensor, "atoms 3"],
        *,
        kick_fs: float,
        drift_fs: float,
    ) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "atoms 3"]]:
        """New positions and velocities."""
        moved, pushed = np.empty(positions.shape), np.empty(positions.shape)
        arrays = _array(positions), _array(velocities), _array(forces), self._mobility
        native_kernels.kick_and_drift(*arrays, kick_fs, drift_fs, moved, pushed)
        return torch.from_numpy(moved), torch.from_numpy(pushed)

    def kinetic_energy(self, velocities: Float[Tensor, "atoms 3"]) -> Float[Tensor, " replicas"]:
        """In eV."""
        result = np.empty(self._replicas)
        native_kernels.kinetic_energies(_array(velocities), self._half_masses, self._bounds, result)
        return torch.from_numpy(result)

    def renew(
        self,
        velocities: Float[Tensor, "atoms 3"],
        noise: Float[Tensor, "atoms 3"],
        speed: Float[Tensor, "atoms 1"],
        *,
        keep: float,
        renew: float,
    ) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, " replicas"], Float[Tensor, " replicas"]]:
        """Keep v + renew speed noise; the kinetic energy (eV) after that, and its gain."""
        result, kinetic, gain = np.empty(velocities.shape), np.empty(self._replicas), np.empty(self._replicas)
        arrays = _array(velocities), _array(noise), _array(speed)
        native_kernels.renew_velocities(*arrays, keep, renew, self._half_masses, self._bounds, result, kinetic, gain)
        return torch.from_numpy(result), torch.from_numpy(kinetic), torch.from_numpy(gain)

    def langevin(
        self,
        state: State,
        half_fs: float,
        counters: Counters,
        speed: Float[Tensor, "atoms 1"],
        *,
        keep: float,
        renew: float,
    ) -> tuple[State, Float[Tensor, " replicas"], Float[Tensor, " replicas"]]:
        """Kick, drift, `renew` with noise made from counters, and drift."""
        moved, pushed = np.empty(state.positions.shape), np.empty(state.positions.shape)
        kinetic, gain = np.empty(self._replicas), np.empty(self._replicas)
        arrays = _array(state.positions), _array(state.velocities), _array(state.forces)
        masses = self._mobility, self._half_masses, self._bounds
        native_kernels.langevin_moves(
            arrays, masses, half_fs, counters, _array(speed), keep, renew, moved, pushed, kinetic, gain
        )
        state = state.changed(positions=torch.from_numpy(moved), velocities=torch.from_numpy(pushed))
        return state, torch.from_numpy(kinetic), torch.from_numpy(gain)

    def sum_of_squares(
        self, values: Float[Tensor, "atoms 3"], counts: Float[Tensor, " replicas"]
    ) -> Float[Tensor, " replicas"]:
        """Of the first values of each replica."""
        result = np.empty(self._replicas)
        native_kernels.sums_of_squares(_array(values), self._bounds, _array(counts), result)
        return torch.from_numpy(result)

    def scale(
        self, velocities: Float[Tensor, "atoms 3"], factors: Float[Tensor, " replicas"]
    ) -> Float[Tensor, "atoms 3"]:
        """Velocities times the factor of their replica."""
        result = np.empty(velocities.shape)
        native_kernels.scale_velocities(_array(velocities), _array(factors), self._bounds, result)
        return torch.from_numpy(result)


def _array(tensor: Tensor) -> NDArray[Any]:
    """In the layout that kernels are compiled for."""
    return tensor.contiguous().numpy()
