"""Verlet list: a neighbour list with a skin, reused while no atom has moved too far.

A list built with cutoff + skin holds every pair within the cutoff as long as no atom has moved more
than skin / 2 since (L. Verlet, Phys. Rev. 159, 98 (1967)). Filtered to the cutoff it equals a
fresh list exactly.
"""

from __future__ import annotations

from torch import equal

from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import System


class VerletList:
    """Neighbour lists for a sequence of similar systems.

    Args:
        cutoff: interaction cutoff in Å.
        skin: extra distance in Å; 0 rebuilds the list on every call.

    Attributes:
        rebuilds: how many lists have been built.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if skin < 0:
            raise ValueError(f"`skin` must not be negative, got {skin} Å")
        self.cutoff = cutoff
        self.skin = skin
        self.rebuilds = 0
        self._built_for: System | None = None
        self._list: NeighborList | None = None

    def update(self, system: System) -> NeighborList:
        """All pairs of `system` within the cutoff, and possibly some up to cutoff + skin.

        The stored list is reused if elements, cell and periodicity are unchanged and no atom has
        moved by more than half the skin; a wrapped atom counts as moved.
        """
        if self._list is not None and self._built_for is not None and self._reusable(self._built_for, system):
            return self._list
        self._list = neighbor_list(system, self.cutoff + self.skin)
        self._built_for = system.clone()
        self.rebuilds += 1
        return self._list

    def _reusable(self, built: System, system: System) -> bool:
        unchanged = all(equal(getattr(built, name), getattr(system, name)) for name in ("batch", "cell", "pbc"))
        if self.skin == 0 or not unchanged:
            return False
        moved = squared_length(system.positions.detach() - built.positions)
        # NaN compares as False, so that broken coordinates reach the checks of a rebuild.
        return bool((moved <= (self.skin / 2) ** 2).all())
