"""Where the forces come from: the protocol, and a `Potential` with a neighbour list that is kept between steps.

The list is built with cutoff + skin. It holds every pair within the cutoff while twice the largest
displacement since then, in the frame of the deformed cell, leaves the skin unused; potentials ignore longer pairs
exactly, so that results equal those of a fresh list. One number is read from the device per step for
this check. (`potentials.verlet.VerletList` reads several, and cannot follow a cell that changes.)
`static_forces` has a provider whose arrays keep their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.interface import Potential, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import System

_WITHOUT_STRESS: frozenset[Property] = frozenset({"energy", "forces"})
_WITH_STRESS: frozenset[Property] = frozenset({"energy", "forces", "stress"})


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


class SkinList:
    """Neighbour list of all replicas that is kept while the skin lasts.

    Args:
        system: all replicas stacked; positions and cell are only the first ones.
        cutoff: of the potential, in Å.
        skin: in Å; with 0 a list is never kept.

    Attributes:
        skin: as given.
        neighbors: the list with cutoff + skin; None before the first one.
        built: positions and cell that it was built for.

    Raises:
        ValueError: for a negative skin.
    """

    def __init__(self, system: System, cutoff: float, *, skin: float) -> None:
        if not 0.0 <= skin < float("inf"):
            raise ValueError(f"`skin` must be 0 Å or more, got {skin}")
        self.skin = skin
        self.neighbors: NeighborList | None = None
        self.built: tuple[Tensor, Tensor] | None = None
        self._system, self._cutoff = system, cutoff
        self._same_cell: Tensor | None = None
        self._is_near = _native_is_near() if system.positions.device.type == "cpu" else _is_near

    def holds(self, positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "replicas 3 3"]) -> bool:
        """Whether the list has all pairs within the cutoff; False for coordinates that are not finite."""
        if self.built is None or self.skin == 0.0:
            return False
        built_positions, built_cell = self.built
        if cell is self._same_cell or torch.equal(cell, built_cell):
            self._same_cell = cell
            return self._is_near(positions, built_positions, (0.5 * self.skin) ** 2)
        return bool(self._strained_list_holds(positions, cell, built_positions, built_cell))

    def build(self, system: System) -> tuple[System, dict[int, str]]:
        """A new list for all replicas at these positions.

        Returns:
            The system the list belongs to, and by replica why it has no sensible geometry: such a replica gets the
            positions of the list before.

        Raises:
            ValueError: if there is no list before.
        """
        reach = self._cutoff + self.skin
        failures: dict[int, str] = {}
        try:
            self.neighbors = neighbor_list(system, reach)
        except ValueError:
            if self.built is None:
                raise
            system, failures = _without_broken(system, self.built, reach)
            self.neighbors = neighbor_list(system, reach)
        self.built = (system.positions, system.cell)
        self._same_cell = system.cell
        return system, failures

    def memory(self) -> dict[str, Tensor]:
        """Positions and cell for which the list was built."""
        return {} if self.built is None else {"positions": self.built[0], "cell": self.built[1]}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Build the list for the remembered positions."""
        if memory:
            self.build(replace(self._system, positions=memory["positions"], cell=memory["cell"]))

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
        holds: Tensor = (self._cutoff + 2.0 * reach <= (1.0 - strain[batch]) * (self._cutoff + self.skin)).all()
        return holds


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
        self.potential = potential
        self.failures: dict[int, str] = {}
        self.rebuilds = 0
        self._system = system.to(potential.device)
        self._list = SkinList(self._system, potential.cutoff, skin=skin)
        self._no_stress = torch.full_like(self._system.cell, torch.nan)

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
        system = _moved(self._system, positions, cell)
        broken: dict[int, str] = {}
        if self.potential.cutoff > 0 and not self._list.holds(positions, cell):
            system, broken = self._list.build(system)
            self.failures |= broken
            self.rebuilds += 1
        properties = _WITH_STRESS if stress else _WITHOUT_STRESS
        prediction = self.potential(system, properties=properties, neighbors=self._list.neighbors)
        if prediction.forces is None or (stress and prediction.stress is None):
            missing = "forces" if prediction.forces is None else "stress"
            raise TypeError(f"{type(self.potential).__name__} returned no {missing}, which molecular dynamics needs")
        result = Evaluation(
            energy=prediction.energy.detach(),
            forces=prediction.forces.detach(),
            stress=prediction.stress.detach() if prediction.stress is not None else self._no_stress,
        )
        return without_rows(result, broken, self._system) if broken else result

    def memory(self) -> dict[str, Tensor]:
        """Positions and cell for which the list was built."""
        return self._list.memory()

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Build the list for the remembered positions."""
        self._list.recall(memory)


def _moved(system: System, positions: Tensor, cell: Tensor) -> System:
    """The system elsewhere; `dataclasses.replace` takes several times as long."""
    return System(
        positions=positions, numbers=system.numbers, cell=cell, pbc=system.pbc, batch=system.batch,
        charge=system.charge, spin=system.spin,
    )  # fmt: skip


def _is_near(positions: Tensor, earlier: Tensor, squared_distance: float) -> bool:
    """Whether no atom is farther away. NaN compares as False: broken coordinates reach the checks of a rebuild."""
    return bool((squared_length(positions - earlier) <= squared_distance).all())


def _native_is_near() -> Callable[[Tensor, Tensor, float], bool]:
    from e2former_calc.md.native_kernels import is_near  # numba loads slowly

    return lambda now, then, limit: is_near(now.contiguous().numpy(), then.contiguous().numpy(), limit)


def _without_broken(system: System, built: tuple[Tensor, Tensor], reach: float) -> tuple[System, dict[int, str]]:
    """The system with the built positions in replicas without a sensible geometry, and what is wrong with these."""
    positions, cell = system.positions.clone(), system.cell.clone()
    failures, start = {}, 0
    for index, size in enumerate(system.sizes.tolist()):
        atoms = slice(start, start + size)
        start += size
        try:
            neighbor_list(one_structure(system, index, atoms), reach)
        except ValueError as error:
            failures[index] = str(error)
            positions[atoms], cell[index] = built[0][atoms], built[1][index]
    return replace(system, positions=positions, cell=cell), failures


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


def without_rows(result: Evaluation, broken: Iterable[int], system: System) -> Evaluation:
    """The evaluation with NaN for the replicas `broken` of a system."""
    rows = torch.zeros(system.n_structures, dtype=torch.bool, device=system.batch.device)
    rows[list(broken)] = True
    return Evaluation(
        energy=torch.where(rows, torch.nan, result.energy),
        forces=torch.where(rows[system.batch][:, None], torch.nan, result.forces),
        stress=torch.where(rows[:, None, None], torch.nan, result.stress),
    )
