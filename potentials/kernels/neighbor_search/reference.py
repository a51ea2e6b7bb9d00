"""Specification of `neighbor_search` in plain torch: every image of every atom within reach of the frame."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.kernels.neighbor_search.plan import FoundEdges, SearchPlan
from e2former_calc.potentials.neighbors import NeighborList, squared_length


def neighbor_search(positions: Float[Tensor, "atoms 3"], plan: SearchPlan, capacity: int) -> FoundEdges:
    """Quadratic in the number of atoms, in time and memory."""
    inside, moved, _ = plan.wrapped(positions)
    same = plan.batch[:, None] == plan.batch
    centers, sources, shifts = [], [], []
    # Atoms of one image reach into as many images as their bins do, rounded up.
    images = [-(-reach // bins) for reach, bins in zip(plan.reach, plan.bins, strict=True)]
    for image in product(*(range(-n, n + 1) for n in images)):
        shift = torch.tensor(image, dtype=inside.dtype, device=inside.device)
        allowed = (plan.periodic | (shift == 0)).all(1)[plan.batch]
        delta = inside[:, None] - inside - (shift @ plan.frame)[plan.batch]
        near = (squared_length(delta) <= plan.cutoff**2) & same & allowed
        if not any(image):
            near.fill_diagonal_(False)
        center, source = near.nonzero(as_tuple=True)
        centers.append(center)
        sources.append(source)
        shifts.append(shift.to(torch.int64) + moved[center] - moved[source])
    columns = (torch.cat(centers), torch.cat(sources), torch.cat(shifts))
    pairs = NeighborList.from_pairs(*columns, n_atoms=len(positions), cutoff=plan.cutoff)

    def slots(column: Tensor) -> Tensor:
        padded = torch.zeros(capacity, *column.shape[1:], dtype=torch.int32, device=column.device)
        padded[: len(column)] = column[:capacity]
        return padded

    row_ptr = pairs.row_ptr.clamp(max=capacity).to(torch.int32)
    missing = (pairs.row_ptr[-1] - capacity).clamp(min=0)
    return FoundEdges(slots(pairs.center), slots(pairs.source), slots(pairs.shift), row_ptr, missing)
