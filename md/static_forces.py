"""Forces from arrays of fixed shape, as recorded and compiled evaluations need them.

**Shapes.** Edges lie in arrays with head-room; free slots hold edges of an atom of padding (`captured_edges`). A list
that does not fit makes larger arrays, and the evaluation is recorded again. Capacities never shrink and are part of
a restart, because matrix products of another size round differently: a continued run has the bits of one that was
never interrupted.

**Is the list still good?** Results must equal those of a fresh list. By default the check precedes the use: one
number is read from the device per evaluation for the displacement, and one for the size of the selection. On a device
each read waits for all work that has been handed out. With `check_every` above 1 nothing is read: largest
displacement, changes of the cell and sizes are reduced on the device by the recorded function itself, and `settle`
reads them all at once. If one of them went beyond its bound, evaluations since the last `settle` may be wrong:
`settle` says so, the caller goes back to its state of that moment, and as many evaluations are checked one by one.
The repeated steps are then those of a fresh list. To make this rare, `settle` has the list built anew as soon as
the displacement, continued in a straight line, could use up the skin before the next one. So wrong forces
are never seen by anyone who looks at settled states only, which `Simulation` sees to.

Cells that change are followed by the checks on the host only, so `check_every` must be 1 for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.captured_edges import EdgeSource, HostEdges, SelectedEdges, edge_rules
from e2former_calc.md.captured_network import FixedShapeNetwork, pad_coordinates, why_not_fixed
from e2former_calc.md.captured_replay import Execution, Recorder, Replay, check_execution, recorder_for
from e2former_calc.md.forces import Evaluation, ForceProvider, PotentialForces, SkinList, without_rows
from e2former_calc.potentials.interface import Potential
from e2former_calc.potentials.neighbors import squared_length
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

CAPACITY = "capacity"
"""Entry of the memory: each replica's share of every capacity."""

CHECK_EVERY = {"cuda": 16}
"""Evaluations between two looks at the device, by its type; 1 elsewhere."""


def potential_forces(
    potential: Potential, system: System, *, skin: float, execution: Execution, fixed_cell: bool
) -> ForceProvider:
    """The provider for an execution.

    Args:
        potential: what is evaluated.
        system: all replicas stacked.
        skin: of neighbour lists, in Å.
        execution: see `SimulationOptions`.
        fixed_cell: whether the cell stays as it is.

    Raises:
        ValueError: for an execution that does not exist, or that this potential or its device does not allow.
    """
    check_execution(execution)
    if execution == "eager":
        return PotentialForces(potential, system, skin=skin)
    device = potential.device
    check_every = CHECK_EVERY.get(device.type, 1) if fixed_cell else 1
    recorder = recorder_for(execution, device)
    return StaticForces(potential, system, skin=skin, recorder=recorder, check_every=check_every)


class StaticForces:
    """A network evaluated on all replicas by a recorded function; see `ForceProvider`.

    Args:
        potential: an `EnergyPotential` whose model takes `elements`.
        system: all replicas stacked; positions and cell are only the first ones.
        skin: in Å; 0 builds a list for every evaluation.
        recorder: makes replays; see `captured_replay`.
        check_every: 1 checks every list before it is used; more leaves that to `settle`, which is then to be called
            about every so many evaluations.

    Attributes:
        failures, rebuilds: see `ForceProvider`.
        recordings: number of functions recorded.
        generation: changes when arrays are made anew.
        check_every: as given; 1 where the choice of edges or a skin of 0 needs the host anyway.

    Raises:
        ValueError: for potentials that cannot run with fixed shapes, a negative skin, or `check_every` below 1.
    """

    def __init__(
        self, potential: Potential, system: System, *, skin: float, recorder: Recorder, check_every: int = 1
    ) -> None:
        reason = why_not_fixed(potential)
        if reason is not None or not isinstance(potential, EnergyPotential):
            raise ValueError(f"{reason}; use execution='eager'")
        if check_every < 1:
            raise ValueError(f"`check_every` must be at least 1, got {check_every}")
        self.failures: dict[int, str] = {}
        self.rebuilds = self.recordings = self.generation = 0
        self._potential, self._recorder = potential, recorder
        self._system = system.to(potential.device)
        self._list = SkinList(self._system, potential.cutoff, skin=skin)
        self._network = FixedShapeNetwork(potential, self._system)
        rules = edge_rules(potential, self._system)
        self._source: EdgeSource = (
            HostEdges(potential, self._network.padded) if rules is None else SelectedEdges(rules, self._network.padded)
        )
        self.check_every = 1 if self._source.every_time or skin == 0.0 else check_every
        self._replays: dict[bool, Replay] = {}
        start = self._system.positions, self._system.cell
        self._buffers = [torch.zeros_like(tensor) for tensor in (*start, *start)]
        self._unsettled = self._checked = self._since_build = 0
        self._build_next = True
        self._seen: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the potential."""
        return self._potential.device

    @property
    def defers_checks(self) -> bool:
        """Whether results are only known to be right after `settle`."""
        return self.check_every > 1

    def evaluate(self, positions: Tensor, cell: Tensor, *, stress: bool) -> Evaluation:
        """See `ForceProvider`.

        Raises:
            ValueError: on the first call, if the structure is unusable, or the network has edges of any length; if the
                stress is asked for, but the forces are not the gradient of the energy.
        """
        if stress and not self._potential.conservative:
            raise ValueError("forces from a head have no consistent stress: use forces='gradient'")
        system = replace(self._system, positions=positions, cell=cell)
        check_first = not self.defers_checks or self._checked > 0
        broken: dict[int, str] = {}
        if self._build_next or (check_first and not self._list.holds(positions, cell)):
            system, broken = self._build(system)
        elif self._source.every_time:
            self._load(system)
        outputs = self._run(system, stress)
        if check_first:
            self._checked = max(0, self._checked - 1)
            while self._source.grow([int(count) for count in outputs[3][2:].tolist()]):
                self._forget_recordings()
                outputs = self._run(system, stress)
            self._unsettled += 1
        else:
            self.note(outputs[3])
        result = Evaluation(*outputs[:3])
        return without_rows(result, broken, self._system) if broken else result

    @property
    def inputs(self) -> list[Tensor]:
        """What `function` reads besides positions and cell; other tensors after `generation` has changed."""
        return [*self._buffers[2:], *self._source.inputs]

    def prepare(self, positions: Tensor, cell: Tensor) -> bool:
        """Get ready for evaluations near these positions by `function`; False if they have to be checked one by one."""
        if not self.defers_checks or self._checked > 0:
            return False
        if self._build_next:
            _, broken = self._build(replace(self._system, positions=positions, cell=cell))
            return not broken
        return True

    def note(self, status: Float[Tensor, " numbers"]) -> None:
        """Keep for `settle` what `function` has said about an evaluation."""
        self._seen = status if self._seen is None else torch.maximum(self._seen, status)
        self._unsettled += 1

    def settle(self) -> bool:
        """Whether all evaluations since the last call were right; if not, they have to be repeated."""
        evaluations, self._unsettled = self._unsettled, 0
        self._since_build += evaluations
        if self._seen is None:
            return True
        (squared, cell_changed, *counts), self._seen = self._seen.tolist(), None
        limit = 0.5 * self._list.skin
        fits = all(count <= size for count, size in zip(counts, self._source.capacity[1:], strict=True))
        if not (squared <= limit**2 and cell_changed == 0.0 and fits):
            self._checked = evaluations
            return False
        self._build_next = math.sqrt(squared) * (1.0 + self.check_every / self._since_build) > limit
        return True

    def memory(self) -> dict[str, Tensor]:
        """Positions and cell for which the list was built, and the capacities."""
        remembered = self._list.memory()
        if remembered:
            replicas = self._system.n_structures
            shares = torch.tensor([[size // replicas for size in self._source.capacity]])
            remembered[CAPACITY] = shares.repeat(replicas, 1)
        return remembered

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Build the list for the remembered positions, in arrays of the remembered size."""
        self._seen, self._unsettled, self._checked = None, 0, 0
        rest = dict(memory)
        shares = rest.pop(CAPACITY, None)
        if shares is not None:
            self._source.capacity, self._source.inputs = shares.sum(0).tolist(), []
            self._forget_recordings()
        if rest:
            self._list.recall(rest)
            self._use_list()

    def _build(self, system: System) -> tuple[System, dict[int, str]]:
        system, broken = self._list.build(system)
        self.failures |= broken
        self.rebuilds += 1
        self._use_list()
        return system, broken

    def _use_list(self) -> None:
        """Hand a list that has just been built to the recorded function."""
        if self._list.built is None:
            return
        self._build_next, self._since_build = False, 0
        positions, cell = self._list.built
        for buffer, values in zip(self._buffers[2:], (positions, cell), strict=True):
            buffer.copy_(values)
        self._load(replace(self._system, positions=positions, cell=cell))

    def _load(self, system: System) -> None:
        if self._list.neighbors is not None and self._source.load(system, self._list.neighbors):
            self._forget_recordings()

    def _forget_recordings(self) -> None:
        """Shapes have changed."""
        self._replays.clear()
        self.generation += 1

    def _run(self, system: System, stress: bool) -> list[Tensor]:
        """Energy, forces, stress, and what `settle` looks at."""
        for buffer, values in zip(self._buffers[:2], (system.positions, system.cell), strict=True):
            buffer.copy_(values)
        if stress not in self._replays:
            function = partial(self.function, stress)
            self._replays[stress] = self._recorder(function, [*self._buffers, *self._source.inputs])
            self.recordings += 1
        return [tensor.clone() for tensor in self._replays[stress]()]

    def function(self, stress: bool, *inputs: Tensor) -> list[Tensor]:
        """What is recorded: of positions, cell and `inputs`; energy, forces, stress, and a status for `note`."""
        positions, cell, built_positions, built_cell, *edges = inputs
        padded_positions, padded_cell = pad_coordinates(positions, cell)
        graphs, counts = self._source.graphs(edges, padded_positions, padded_cell)
        energy, forces, tension = self._network(graphs, padded_positions, padded_cell, stress=stress)
        moved = squared_length(positions - built_positions).amax()
        cell_changed = (cell != built_cell).any()
        status = torch.stack([value.to(torch.float64) for value in (moved, cell_changed, *counts)])
        return [energy, forces, tension, status]
