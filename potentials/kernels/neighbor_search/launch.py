"""Launches of the Triton kernel of `neighbor_search`."""

from __future__ import annotations

import torch
from torch import Tensor

from e2former_calc.potentials.kernels.neighbor_search import kernels
from e2former_calc.potentials.kernels.neighbor_search.plan import FoundEdges, SearchPlan

CANDIDATES_PER_STEP = 32


def neighbor_search(positions: Tensor, plan: SearchPlan, capacity: int) -> FoundEdges:
    """Same edges as the reference; edges of one center in the order of bins."""
    inside, moved, bins = plan.wrapped(positions)
    n_atoms, device = len(positions), positions.device
    count_x, count_y, count_z = plan.bins
    # 64 bits: bins of all structures together may exceed what 32 bits can number.
    row = ((plan.batch * count_x + bins[:, 0]) * count_y + bins[:, 1]) * count_z + bins[:, 2]
    in_order, order = torch.sort(row, stable=True)
    rows = torch.arange(len(plan.frame) * count_x * count_y * count_z + 1, device=device)
    counts, row_ptr = (torch.zeros(n_atoms + k, dtype=torch.int32, device=device) for k in (0, 1))
    center, source = (torch.zeros(capacity, dtype=torch.int32, device=device) for _ in range(2))
    shift = torch.zeros(capacity, 3, dtype=torch.int32, device=device)
    arguments = {
        "inside": inside.contiguous(),
        "moved": moved.contiguous(),
        "bins": bins.contiguous(),
        "batch": plan.batch,
        "frame": plan.frame.contiguous(),
        "periodic": plan.periodic.to(torch.int32).contiguous(),
        "order": order.to(torch.int32),
        "bin_ptr": torch.searchsorted(in_order, rows),
        "counts": counts,
        "row_ptr": row_ptr,
        "center": center,
        "source": source,
        "shift": shift,
        "capacity": capacity,
        "SQUARED_CUTOFF": plan.cutoff**2,
        **dict(zip(("COUNT_X", "COUNT_Y", "COUNT_Z"), plan.bins, strict=True)),
        **dict(zip(("REACH_X", "REACH_Y", "REACH_Z"), plan.reach, strict=True)),
        "BLOCK": CANDIDATES_PER_STEP,
        "num_warps": 1,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(positions):  # kernels start on the current device
        kernels.search_kernel[(n_atoms,)](**arguments, WRITE=False)
        torch.cumsum(counts, dim=0, out=row_ptr[1:])
        kernels.search_kernel[(n_atoms,)](**arguments, WRITE=True)
    missing = (row_ptr[-1] - capacity).clamp(min=0)
    return FoundEdges(center, source, shift, row_ptr.clamp(max=capacity), missing)
