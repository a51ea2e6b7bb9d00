"""Where the forces come from: the protocol, and a `Potential` with a neighbour list that is kept between steps.

The list is built with cutoff + skin. It holds every pair within the cutoff while twice the largest
displacement since then, in the frame of the deformed cell, leaves the skin unused; potentials ignore longer pairs
exactly, so that results equal those of a fresh list. One number is read from the device per step for
this check. (`potentials.verlet.VerletList` reads several, and cannot follow a cell that changes.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.interface import Potential, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import System


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Energy (eV), forces (eV/Å) and stress (eV/Å^3, NaN if not asked for); NaN for a replica that failed."""

    energy: Float[Tensor, " replicas"]
    forces: Float[Tensor, "atoms 3"]
    stress: Float[Tensor, "replicas 3 3"]


@runtime_checkable
class ForceProvider(Protocol):
    """Energies and forces of all replicas.

    Attributes:
        device: where results lie.
        failures: by index of a replica, why it could not be evaluated the last time.
        rebuilds: number of neighbour lists built.
    """

    failures: dict[int, str]
    rebuilds: int

    @property
    def device(self) -> torch.device:
        """Where results lie."""
        ...

    def evaluate(
        self, positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "replicas 3 3"], *, stress: bool
    ) -> Evaluation:
        """Evaluate all replicas. From the second call on a broken replica gives NaN instead of an error."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """What a restart needs to build the same neighbour lists at the same steps."""
        ...

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Continue with what `memory` returned."""
        ...


class PotentialForces:
    """A `Potential` evaluated on all replicas in one call.

    Args:
        potential: its cutoff may be 0 for atoms that do not interact; then it gets no neighbour list.
        system: all replicas stacked; positions and cell are only the first ones.
        skin: in Å; 0 builds a list for every evaluation.

    Raises:
        ValueError: for a negative skin.
    """

    def __init__(self, potential: Potential, system: System, *, skin: float) -> None:
        if not 0.0 <= skin < float("inf"):
            raise ValueError(f"`skin` must be 0 Å or more, got {skin}")
        self.potential, self.skin = potential, skin
        self.failures: dict[int, str] = {}
        self.rebuilds = 0
        self._system = system.to(potential.device)
        self._list: NeighborList | None = None
        self._built: tuple[Tensor, Tensor] | None = None
        self._same_cell: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the potential."""
        return self.potential.device

    def evaluate(self, positions: Tensor, cell: Tensor, *, stress: bool) -> Evaluation:
        """See `ForceProvider`.

        Raises:
            ValueError: on the first call, if the structure is unusable; later calls put NaN instead.
            TypeError: if the potential returns no forces or stress.
        """
        system = replace(self._system, positions=positions, cell=cell)
        broken: list[int] = []
        if self.potential.cutoff > 0 and not self._usable(positions, cell):
            system, broken = self._rebuild(system)
        properties: frozenset[Property] = frozenset({"energy", "forces", "stress"} if stress else {"energy", "forces"})
        prediction = self.potential(system, properties=properties, neighbors=self._list)
        if prediction.forces is None or (stress and prediction.stress is None):
            missing = "forces" if prediction.forces is None else "stress"
            raise TypeError(f"{type(self.potential).__name__} returned no {missing}, which molecular dynamics needs")
        result = Evaluation(
            energy=prediction.energy.detach(),
            forces=prediction.forces.detach(),
            stress=prediction.stress.detach() if prediction.stress is not None else torch.full_like(cell, torch.nan),
        )
        return _spoil(result, broken, self._system) if broken else result

    def memory(self) -> dict[str, Tensor]:
        """Positions and cell for which the list was built."""
        return {} if self._built is None else {"positions": self._built[0], "cell": self._built[1]}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Build the list for the remembered positions."""
        if memory:
            rebuilds = self.rebuilds
            self._rebuild(replace(self._system, positions=memory["positions"], cell=memory["cell"]))
            self.rebuilds = rebuilds

    def _usable(self, positions: Tensor, cell: Tensor) -> bool:
        if self._list is None or self._built is None or self.skin == 0.0:
            return False
        built_positions, built_cell = self._built
        if cell is self._same_cell or torch.equal(cell, built_cell):
            self._same_cell = cell
            # NaN compares as False, so that broken coordinates reach the checks of a rebuild.
            return bool((squared_length(positions - built_positions) <= (0.5 * self.skin) ** 2).all())
        return bool(self._strained_list_holds(positions, cell, built_positions, built_cell))

    def _strained_list_holds(self, positions: Tensor, cell: Tensor, old_positions: Tensor, old_cell: Tensor) -> Tensor:
        """Whether pairs within the cutoff now were within cutoff + skin before the cell changed too.

        A pair vector is d = D F + u_i - u_j with the old vector D, the deformation gradient F and displacements u
        relative to the deformation; |D F| >= |D| (1 - |F - 1|).
        """
        periodic = self._system.pbc.all(-1)
        unit = torch.eye(3, dtype=cell.dtype, device=cell.device).expand_as(cell)
        safe_old, safe_new = (torch.where(periodic[:, None, None], x, unit) for x in (old_cell, cell))
        gradient = torch.linalg.solve(safe_old, safe_new)
        strain = torch.linalg.matrix_norm(gradient - unit)
        batch = self._system.batch
        moved = positions - (old_positions[:, None, :] @ gradient[batch])[:, 0]
        common = torch.segment_reduce(moved, "mean", lengths=self._system.sizes, unsafe=True)
        reach = squared_length(moved - common[batch]).sqrt()
        cutoff = self.potential.cutoff
        holds: Tensor = (cutoff + 2.0 * reach <= (1.0 - strain[batch]) * (cutoff + self.skin)).all()
        return holds

    def _rebuild(self, system: System) -> tuple[System, list[int]]:
        """New list; replicas that have no sensible geometry get the positions of the list before."""
        reach = self.potential.cutoff + self.skin
        broken: list[int] = []
        try:
            self._list = neighbor_list(system, reach)
        except ValueError:
            if self._built is None:
                raise
            system, broken = self._without_broken(system, self._built, reach)
            self._list = neighbor_list(system, reach)
        self._built = (system.positions, system.cell)
        self._same_cell = system.cell
        self.rebuilds += 1
        return system, broken

    def _without_broken(self, system: System, built: tuple[Tensor, Tensor], reach: float) -> tuple[System, list[int]]:
        positions, cell = system.positions.clone(), system.cell.clone()
        broken, start = [], 0
        for index, size in enumerate(system.sizes.tolist()):
            atoms = slice(start, start + size)
            start += size
            alone = one_structure(system, index, atoms)
            try:
                neighbor_list(alone, reach)
            except ValueError as error:
                self.failures[index] = str(error)
                broken.append(index)
                positions[atoms], cell[index] = built[0][atoms], built[1][index]
        return replace(system, positions=positions, cell=cell), broken


def one_structure(system: System, index: int, atoms: slice) -> System:
    """The structure `index` of a system, whose atoms are `atoms`."""
    rows = slice(index, index + 1)
    return System(
        positions=system.positions[atoms],
        numbers=system.numbers[atoms],
        cell=system.cell[rows],
        pbc=system.pbc[rows],
        batch=torch.zeros_like(system.batch[atoms]),
        charge=system.charge[rows],
        spin=system.spin[rows],
    )


def _spoil(result: Evaluation, broken: list[int], system: System) -> Evaluation:
    rows = torch.zeros(system.n_structures, dtype=torch.bool, device=system.batch.device)
    rows[broken] = True
    return Evaluation(
        energy=torch.where(rows, torch.nan, result.energy),
        forces=torch.where(rows[system.batch][:, None], torch.nan, result.forces),
        stress=torch.where(rows[:, None, None], torch.nan, result.stress),
    )
