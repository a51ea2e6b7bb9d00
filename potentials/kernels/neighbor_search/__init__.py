"""Neighbour search on the device: a list of fixed capacity, without a look at it from the host.

Space is cut into bins of equal fractional size along the lattice vectors, and the atoms are sorted by bin. A
center looks at the bins within reach of its own, periodic images included: bin index c along an axis of n bins is bin
c mod n of image floor(c / n). One bin is brute force. Along directions without periodicity atoms outside of the frame
count to its outermost bins; that never separates neighbours, since it only brings bins closer.

Source: M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids (2017), section 5.3.2 (cell structures).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.implementation import KernelImplementation, uses_triton
from e2former_calc.potentials.kernels.neighbor_search import reference
from e2former_calc.potentials.kernels.neighbor_search.plan import FoundEdges, SearchPlan, plan_search


def neighbor_search(
    positions: Float[Tensor, "atoms 3"], plan: SearchPlan, *, capacity: int, implementation: KernelImplementation
) -> FoundEdges:
    """All directed pairs within the cutoff of the plan.

    Args:
        positions: in Å, float64; never wrapped, any number of cells away.
        plan: bins for the lattice of the structures, from `plan_search`.
        capacity: slots for edges. Nothing is written beyond them; `FoundEdges.missing` says how many were needed.
        implementation: "reference" (plain torch, edges sorted by source and shift) or "triton" (CUDA; edges of one
            center in the order of bins, always the same for the same input).

    Raises:
        ValueError: for a number of atoms that is not the plan's, an unknown implementation, or a device without it.
        ModuleNotFoundError: if "triton" is asked for and not installed.
    """
    if len(positions) != len(plan.batch):
        raise ValueError(f"the plan is for {len(plan.batch)} atoms, got positions of {len(positions)}")
    if not uses_triton(implementation, positions.device):
        return reference.neighbor_search(positions, plan, capacity)
    from e2former_calc.potentials.kernels.neighbor_search import launch

    return launch.neighbor_search(positions, plan, capacity)


__all__ = ["FoundEdges", "SearchPlan", "neighbor_search", "plan_search"]
