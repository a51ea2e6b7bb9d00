"""The original E2Former, each attention order: our edge form beside the node-centric form, in the same process.

Run as a program it measures one case: reads it as JSON from stdin, writes the result as JSON to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

import numpy as np
import torch

from e2former_calc.benchmark.original_node_centric import NodeCentricOriginal
from e2former_calc.benchmark.runner import BenchmarkError, builtin_structure
from e2former_calc.benchmark.shapes import ELEMENTS, NetworkShape
from e2former_calc.benchmark.timing import MINIMUM_REPEATS, timed
from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.e2former_v1.config import Order
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

ORDERS: Final[tuple[Order, ...]] = ("first", "second", "all")
"""Orders with a convolution; zero order is the same in both forms."""
STRUCTURES: Final = ("aspirin", "Ac-Ala3-NHMe", "water-64")
DEFAULT_SHAPE: Final = "64x2"
HEADS: Final = 4


@dataclass(frozen=True)
class OriginalCase:
    """What is measured.

    Attributes:
        structure: built-in structure.
        order: of the attention in all layers.
        shape: CHANNELSxLAYERS, channels a multiple of 16.
        threads: of torch.
        repeats: timed calls of each form.
        seconds: no further repeat starts after this time; two are made in any case.
        seed: of the random weights.
    """

    structure: str
    order: Order
    shape: str = DEFAULT_SHAPE
    threads: int = 1
    repeats: int = 10
    seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"`order` must be one of {', '.join(get_args(Order))}, got {self.order!r}")
        for name in ("threads", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        original_config(NetworkShape.parse(self.shape), self.order)


@dataclass(frozen=True)
class OriginalResult:
    """Energy and forces of one structure in both forms; times in ms, neighbour list included.

    Attributes:
        structure, order, shape, threads: as in the case.
        atoms: number of atoms.
        neighbors: edges per atom.
        repeats: timed calls that were made of each form.
        edge_ms, node_ms: medians.
        ratio: median over the repeats of node / edge, each pair measured in a row.
        difference: largest difference of a force, relative to the largest force.
    """

    structure: str
    order: str
    shape: str
    threads: int
    atoms: int
    neighbors: float
    repeats: int
    edge_ms: float
    node_ms: float
    ratio: float
    difference: float


def original_config(shape: NetworkShape, order: Order) -> E2FormerV1Config:
    """Hyperparameters in the proportions of the published OC22 network, with a cutoff of 5 Å and 32 neighbours.

    Raises:
        ValueError: if four heads do not divide a quarter of the channels.
    """
    if shape.channels % (4 * HEADS):
        raise ValueError(f"a shape of the original E2Former needs channels that are a multiple of {4 * HEADS}")
    return E2FormerV1Config(
        variant="scitix", heads=("random",), channels=shape.channels, lmax=2, conv_multiplicity=shape.channels // 8,
        num_layers=shape.layers, num_heads=HEADS, head_width=32, num_basis=shape.channels // 2, max_radius=5.0,
        pbc_max_radius=5.0, max_neighbors=32, orders=(order,) * shape.layers, force_head="none", gradient_forces=True,
    )  # fmt: skip


def original_potential(
    shape: NetworkShape, order: Order, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> EnergyPotential:
    """A potential with random weights and all pairs; global random state is left as it was.

    Args:
        shape: width and depth.
        order: of the attention.
        dtype: arithmetic of the network.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = E2FormerV1(original_config(shape, order))
    return EnergyPotential(
        model.eval().requires_grad_(False).to(dtype), head="random",
        reference_energies={"random": torch.zeros(len(ELEMENTS) + 1)}, elements=frozenset(ELEMENTS),
        force_mode="gradient", neighbor_cap="none",
    )  # fmt: skip


def run_original_in_subprocess(case: OriginalCase) -> OriginalResult:
    """Measure one case in a fresh Python process.

    Raises:
        BenchmarkError: if it fails or dies.
    """
    process = subprocess.run(
        [sys.executable, "-P", "-m", "e2former_calc.benchmark.original"],
        input=json.dumps(asdict(case)),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message; probably out of memory"]
        raise BenchmarkError(f"{case.structure}, {case.order} order: {lines[-1]}")
    return OriginalResult(**json.loads(process.stdout))


def measure_original(case: OriginalCase) -> OriginalResult:
    """Time both forms in turn in this process, so that they see the same load of the machine.

    Raises:
        ValueError: for an unknown structure.
    """
    torch.set_num_threads(case.threads)
    atoms = builtin_structure(case.structure)
    system = System.single(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
    potential = original_potential(NetworkShape.parse(case.shape), case.order, seed=case.seed)
    node_centric = NodeCentricOriginal(potential.model)  # type: ignore[arg-type]
    wanted: frozenset[Property] = frozenset({"energy", "forces"})

    def edge() -> Prediction:
        result: Prediction = potential(system, properties=wanted)
        return result

    def node() -> Prediction:
        return node_centric(potential, system, properties=wanted, neighbors=None)

    first, second = edge().forces, node().forces
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < case.repeats:
        if len(times) >= MINIMUM_REPEATS and time.perf_counter() - start > case.seconds:
            break
        times.append((timed(edge)[0], timed(node)[0]))
    common: Mapping[str, Any] = {name: getattr(case, name) for name in ("structure", "order", "shape", "threads")}
    return OriginalResult(
        **common,
        atoms=len(atoms),
        neighbors=neighbor_list(system, potential.cutoff).n_edges / len(atoms),
        repeats=len(times),
        edge_ms=float(np.median([pair[0] for pair in times])),
        node_ms=float(np.median([pair[1] for pair in times])),
        ratio=float(np.median([after / before for before, after in times])),
        difference=_difference(first, second),
    )


def _difference(first: torch.Tensor | None, second: torch.Tensor | None) -> float:
    if first is None or second is None:
        return float("nan")
    return float((first - second).abs().max() / first.abs().max())


def main() -> None:
    """Measure the case on stdin."""
    case = OriginalCase(**json.load(sys.stdin))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = measure_original(case)
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
