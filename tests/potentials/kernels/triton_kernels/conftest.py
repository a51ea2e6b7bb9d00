"""Where Triton kernels are tested: on a CUDA device, or in the interpreter on the host.

The interpreter is chosen when triton is imported, by TRITON_INTERPRET=1. So that no other test sees that
variable, `test_triton_interpreter.py` runs this folder in a process of its own; without it and
without a device there is nothing to collect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import pytest
import torch

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.neighbors import NeighborList

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    """Where the tensors of a test live."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def edge_index(
    random_graph: Callable[[Sequence[int]], NeighborList], device: torch.device
) -> Callable[[Sequence[int]], EdgeIndex]:
    """Edges with given numbers of neighbours; pairs occur several times, as periodic images do."""

    def edge_index(counts: Sequence[int]) -> EdgeIndex:
        return EdgeIndex.from_neighbors(random_graph(counts)).to(device)

    return edge_index
