"""Everything that changes during a simulation, as one frozen dataclass of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """State of all replicas after a whole number of steps; its tensors are never changed in place.

    Attributes:
        step: number of steps made.
        positions: Å, float64, unwrapped.
        velocities: Å/fs, float64.
        forces: eV/Å at `positions`, before constraints.
        energy: potential energy at `positions` in eV.
        cell: lattice vectors as rows in Å.
        stress: eV/Å^3, positive under tension; NaN unless it is evaluated.
        extended: variables of thermostats and barostats, one row per replica.
        monitors: running sums of the stopping rules, one row per replica.
        stop_code: 0 while a replica runs, else one of `stopping.StopReason`.
        stop_step: step at which the rule was broken, -1 while the replica runs. All other rows of a
            stopped replica are those of its last good step.
    """

    step: int
    positions: Float[Tensor, "atoms 3"]
    velocities: Float[Tensor, "atoms 3"]
    forces: Float[Tensor, "atoms 3"]
    energy: Float[Tensor, " replicas"]
    cell: Float[Tensor, "replicas 3 3"]
    stress: Float[Tensor, "replicas 3 3"]
    extended: Mapping[str, Tensor]
    monitors: Mapping[str, Tensor]
    stop_code: Int[Tensor, " replicas"]
    stop_step: Int[Tensor, " replicas"]

    @property
    def running(self) -> Bool[Tensor, " replicas"]:
        """True for replicas that have not been stopped."""
        return self.stop_code == 0

    def changed(self, **values: Any) -> State:
        """The state with other values of these attributes: `dataclasses.replace` without its cost, which is that of
        several operations on a small molecule.
        """
        state = object.__new__(State)
        state.__dict__.update(self.__dict__, **values)
        return state

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; those of mappings as `extended.name`."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value
            elif isinstance(value, Mapping):
                found.update({f"{field.name}.{key}": tensor for key, tensor in value.items()})
        return found

    @staticmethod
    def from_tensors(step: int, tensors: Mapping[str, Tensor]) -> State:
        """The inverse of `tensors`.

        Raises:
            TypeError: if one is missing.
        """
        plain = {name: tensor for name, tensor in tensors.items() if "." not in name}
        groups: dict[str, dict[str, Tensor]] = {"extended": {}, "monitors": {}}
        for name, tensor in tensors.items():
            if "." in name:
                group, key = name.split(".", 1)
                groups[group][key] = tensor
        return State(step=step, extended=groups["extended"], monitors=groups["monitors"], **plain)

    def keep(self, rows: Bool[Tensor, " replicas"], atoms: Bool[Tensor, " atoms"], earlier: State) -> State:
        """The state, but with the replicas `rows` (and their `atoms`) as they were in `earlier`; stop marks stay."""

        def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
            return torch.where(mask.reshape(-1, *(1,) * (new.dim() - 1)), old, new)

        return replace(
            self,
            positions=choose(atoms, self.positions, earlier.positions),
            velocities=choose(atoms, self.velocities, earlier.velocities),
            forces=choose(atoms, self.forces, earlier.forces),
            energy=choose(rows, self.energy, earlier.energy),
            cell=choose(rows, self.cell, earlier.cell),
            stress=choose(rows, self.stress, earlier.stress),
            extended={name: choose(rows, value, earlier.extended[name]) for name, value in self.extended.items()},
        )
