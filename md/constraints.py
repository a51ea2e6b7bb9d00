"""Constraints that live on the device: fixed atoms and a fixed centre of mass.

Others are refused by name; ASE's own constraints work where an ASE calculator gives the forces
(host_loop.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCom
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.md.replicas import Replicas


@runtime_checkable
class Constraints(Protocol):
    """What integrators ask of constraints."""

    @property
    def removed(self) -> Int[Tensor, " replicas"]:
        """Degrees of freedom that the constraints take from each replica."""
        ...

    @property
    def fixed_atoms(self) -> Bool[Tensor, " atoms"]:
        """Atoms that never move."""
        ...

    @property
    def fixed_com(self) -> Bool[Tensor, " replicas"]:
        """Replicas whose centre of mass is fixed, which counts in `removed`."""
        ...

    @property
    def keeps_momentum(self) -> Bool[Tensor, " replicas"]:
        """Replicas whose constraints take up neither linear nor angular momentum."""
        ...

    def constrain_positions(
        self, old: Float[Tensor, "atoms 3"], new: Float[Tensor, "atoms 3"], cell: Float[Tensor, "replicas 3 3"]
    ) -> Float[Tensor, "atoms 3"]:
        """Positions (Å) that satisfy the constraints, for a move from `old` to `new`."""
        ...

    def constrain_velocities(
        self, velocities: Float[Tensor, "atoms 3"], positions: Float[Tensor, "atoms 3"], cell: Tensor
    ) -> Float[Tensor, "atoms 3"]:
        """The mass-weighted orthogonal projection of velocities on the directions left free at `positions`."""
        ...

    def describe(self) -> list[str]:
        """One line per replica that has constraints, to compare two simulations."""
        ...


class NoConstraints:
    """Every atom is free."""

    def __init__(self, replicas: Replicas) -> None:
        self.removed = torch.zeros_like(replicas.sizes)
        self.fixed_atoms = torch.zeros_like(replicas.batch, dtype=torch.bool)
        self.fixed_com = torch.zeros_like(replicas.sizes, dtype=torch.bool)
        self.keeps_momentum = ~self.fixed_com

    def constrain_positions(self, old: Tensor, new: Tensor, cell: Tensor) -> Tensor:
        """`new`."""
        del old, cell
        return new

    def constrain_velocities(self, velocities: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """`velocities`."""
        del positions, cell
        return velocities

    def describe(self) -> list[str]:
        """Nothing."""
        return []


class DeviceConstraints(NoConstraints):
    """`FixAtoms` and `FixCom` of any replica.

    Args:
        fixed: atoms that never move.
        fixed_com: replicas whose centre of mass is at rest.
        masses: amu, one column.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        fixed: Bool[Tensor, " atoms"],
        fixed_com: Bool[Tensor, " replicas"],
        masses: Float[Tensor, "atoms 1"],
    ) -> None:
        self.fixed_atoms, self.fixed_com = fixed, fixed_com
        self._replicas, self._weights = replicas, masses / replicas.spread(replicas.sum(masses))
        self._any_atoms, self._any_com = bool(fixed.any()), bool(fixed_com.any())
        per_replica = replicas.sum(fixed.to(torch.float64)).to(torch.int64)
        self.keeps_momentum = per_replica == 0
        self.removed = 3 * per_replica + 3 * fixed_com.to(torch.int64)

    def constrain_positions(self, old: Tensor, new: Tensor, cell: Tensor) -> Tensor:
        """Fixed atoms stay to the last bit, also when the cell changes; a centre of mass at rest needs no help."""
        del cell
        return torch.where(self.fixed_atoms[:, None], old, new) if self._any_atoms else new

    def constrain_velocities(self, velocities: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """Zero for fixed atoms; without the velocity of the centre of mass for the replicas that fix it."""
        del positions, cell
        if self._any_com:
            drift = self._replicas.sum(velocities * self._weights) * self.fixed_com[:, None]
            velocities = velocities - self._replicas.spread(drift)
        if self._any_atoms:
            velocities = torch.where(self.fixed_atoms[:, None], torch.zeros_like(velocities), velocities)
        return velocities

    def describe(self) -> list[str]:
        """Fixed atoms and centres of mass of each replica."""
        lines = []
        for index, atoms in enumerate(self._replicas.slices()):
            fixed = self.fixed_atoms[atoms].nonzero()[:, 0].tolist()
            if fixed or bool(self.fixed_com[index]):
                lines.append(
                    f"replica {index}: fixed atoms {fixed}, fixed centre of mass {bool(self.fixed_com[index])}"
                )
        return lines


def device_constraints(images: Sequence[Atoms], replicas: Replicas, masses: Float[Tensor, "atoms 1"]) -> Constraints:
    """The constraints of ASE structures.

    Raises:
        NotImplementedError: for anything but `FixAtoms` and `FixCom`, and for both of them together.
    """
    fixed = np.zeros(replicas.n_atoms, dtype=bool)
    fixed_com = np.zeros(replicas.n_replicas, dtype=bool)
    for index, (atoms, where) in enumerate(zip(images, replicas.slices(), strict=True)):
        for constraint in atoms.constraints:
            if type(constraint) is FixAtoms:
                fixed[where][constraint.get_indices()] = True
            elif type(constraint) is FixCom:
                fixed_com[index] = True
            else:
                raise NotImplementedError(
                    f"the constraint {type(constraint).__name__} of replica {index} is not supported on the device, "
                    "only FixAtoms and FixCom: give an ASE calculator instead of a potential, then ASE applies it"
                )
        if fixed_com[index] and fixed[where].any():
            raise NotImplementedError(
                f"replica {index} has FixAtoms and FixCom: with fixed atoms the centre of mass cannot be fixed too, "
                "remove one of the two"
            )
    if not fixed.any() and not fixed_com.any():
        return NoConstraints(replicas)
    device = replicas.batch.device
    return DeviceConstraints(
        replicas,
        fixed=torch.from_numpy(fixed).to(device),
        fixed_com=torch.from_numpy(fixed_com).to(device),
        masses=masses,
    )
