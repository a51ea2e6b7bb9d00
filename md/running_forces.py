"""Forces of those replicas only that run: a stopped one costs nothing.

When the set of running replicas becomes smaller, a provider for the remaining ones takes over, with the neighbour
lists of the same moment. Results of the others do not change by a bit, as far as the potential treats the structures
of a batch independently of each other; matrix products of a network may round differently in another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.md.forces import Evaluation, ForceProvider
from e2former_calc.md.replicas import Replicas
from e2former_calc.potentials.system import System

RUNNING = "running"
"""Entry of the memory: which replicas are evaluated."""


class RunningForces:
    """Evaluates the replicas that are selected; all of them at first.

    Args:
        replicas: their atoms in the batch.
        build: makes a provider for some replicas, given by index in ascending order.
    """

    def __init__(self, replicas: Replicas, build: Callable[[Sequence[int]], ForceProvider]) -> None:
        self._replicas, self._build = replicas, build
        self._earlier_failures: dict[int, str] = {}
        self._selected = tuple(range(replicas.n_replicas))
        self.provider = build(self._selected)
        self._rows, self._atoms = self._indices(self._selected)

    @property
    def device(self) -> torch.device:
        """Where results lie."""
        return self.provider.device

    @property
    def running(self) -> Bool[Tensor, " replicas"]:
        """Which replicas are selected."""
        chosen = torch.zeros_like(self._replicas.sizes, dtype=torch.bool)
        chosen[list(self._selected)] = True
        return chosen

    @property
    def failures(self) -> dict[int, str]:
        """By index of a replica, why it could not be evaluated the last time."""
        return self._earlier_failures | {self._selected[i]: text for i, text in self.provider.failures.items()}

    @property
    def rebuilds(self) -> int:
        """Number of neighbour lists built; those that a smaller batch takes over are not counted."""
        return self.provider.rebuilds

    @rebuilds.setter
    def rebuilds(self, count: int) -> None:
        self.provider.rebuilds = count

    def select(self, running: Bool[Tensor, " replicas"]) -> None:
        """From now on evaluate these replicas only; without any the selection stays."""
        selected = tuple(running.nonzero()[:, 0].tolist())
        if not selected or selected == self._selected:
            return
        memory = self._memory_of(selected) if set(selected) <= set(self._selected) else {}
        self._take(selected)
        self.provider.recall(memory)

    def evaluate(
        self, positions: Float[Tensor, "atoms 3"], cell: Float[Tensor, "replicas 3 3"], *, stress: bool
    ) -> Evaluation:
        """See `ForceProvider`; NaN for replicas that are not selected."""
        if len(self._selected) == self._replicas.n_replicas:
            return self.provider.evaluate(positions, cell, stress=stress)
        found = self.provider.evaluate(positions[self._atoms], cell[self._rows], stress=stress)
        return Evaluation(
            energy=torch.full_like(cell[:, 0, 0], torch.nan).index_copy(0, self._rows, found.energy),
            forces=torch.full_like(positions, torch.nan).index_copy(0, self._atoms, found.forces),
            stress=torch.full_like(cell, torch.nan).index_copy(0, self._rows, found.stress),
        )

    def memory(self) -> dict[str, Tensor]:
        """The selection, and what its provider remembers."""
        return {RUNNING: self.running, **self.provider.memory()}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Continue with what `memory` returned."""
        rest = dict(memory)
        running = rest.pop(RUNNING, torch.ones(self._replicas.n_replicas, dtype=torch.bool))
        self._take(tuple(running.nonzero()[:, 0].tolist()))
        self.provider.recall(rest)

    def _take(self, selected: tuple[int, ...]) -> None:
        rebuilds, self._earlier_failures = self.rebuilds, self.failures
        if selected != self._selected:
            self.provider = self._build(selected)
        self._selected, self.rebuilds = selected, rebuilds
        self._rows, self._atoms = self._indices(selected)

    def _memory_of(self, selected: tuple[int, ...]) -> dict[str, Tensor]:
        """The memory of the present provider for some of its replicas."""
        sizes = self._replicas.sizes[self._rows]
        kept = torch.isin(self._rows, torch.tensor(selected, device=self._rows.device))
        atoms = torch.repeat_interleave(kept, sizes)
        return {name: values[atoms if name == "positions" else kept] for name, values in self.provider.memory().items()}

    def _indices(self, selected: tuple[int, ...]) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected_atoms"]]:
        rows = torch.tensor(selected, dtype=torch.int64, device=self._replicas.batch.device)
        return rows, torch.isin(self._replicas.batch, rows).nonzero()[:, 0]


def selected_structures(system: System, rows: Sequence[int]) -> System:
    """The structures `rows` of a system, in ascending order."""
    index = torch.tensor(list(rows), dtype=torch.int64, device=system.batch.device)
    atoms = torch.isin(system.batch, index)
    sizes = system.sizes[index]
    return System(
        positions=system.positions[atoms],
        numbers=system.numbers[atoms],
        cell=system.cell[index],
        pbc=system.pbc[index],
        batch=torch.repeat_interleave(torch.arange(len(index), device=index.device), sizes),
        charge=system.charge[index],
        spin=system.spin[index],
    )
