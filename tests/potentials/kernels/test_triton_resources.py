"""Kernels compiled ahead of time for two GPU generations: registers, shared memory, and nothing spilled.

The launchers run with tensors on the host; a recorder takes the place of each kernel, and it is compiled for what it
was called with. The bounds are those of the kernels README: registers decide how many warps are resident.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.kernels.fused_attention import AttentionEdges
from e2former_calc.potentials.kernels.geometry import Structures
from e2former_calc.potentials.kernels.spline import SplineTable, TabulatedFunctions
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.system import System

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("_unwrapped")
Call = tuple[Any, dict[str, Any]]
GENERATIONS = [80, 90]
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64"}
PUBLISHED = {"heads": 128, "width": 8, "rows": 9, "channels": 256}
COMPACT = {"heads": 16, "width": 8, "rows": 9, "channels": 64}


@pytest.fixture
def _unwrapped(pytestconfig: pytest.Config) -> None:
    """Kernels are compiled from their source, which must not be wrapped by a type checker."""
    if pytestconfig.getoption("jaxtyping_packages", default=None):
        pytest.skip("wrapped by the type checker, kernels cannot be compiled")


class Recorder:
    """Takes the place of a kernel and keeps what it is called with."""

    def __init__(self, kernel: Any, calls: dict[str, Call]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(**arguments: Any) -> None:
            self.calls[self.kernel.fn.__name__] = (self.kernel, arguments)

        return record


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Call]]:
    """Replace all kernels of some modules by recorders."""

    def record(*modules: ModuleType) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        for module in modules:
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                monkeypatch.setattr(module, name, Recorder(getattr(module, name), calls))
        return calls

    return record


@pytest.fixture
def index() -> EdgeIndex:
    center, source = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    pairs = NeighborList.from_pairs(center, source, torch.zeros(3, 3, dtype=torch.int64), n_atoms=2, cutoff=1.0)
    return EdgeIndex.from_neighbors(pairs)


def resources(call: Call, generation: int) -> dict[str, int]:
    """Registers per thread, bytes of stack and local memory (spills), bytes of shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments = call
    signature, constants, alignment = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name], alignment[position,] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    options = {name: arguments[name] for name in ("num_warps", "enable_fp_fusion")}
    source = ASTSource(kernel, signature, constants, alignment)
    compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)
    return read_resources(compiled.asm["cubin"]) | {"SHARED": compiled.metadata.shared}


def read_resources(binary: bytes) -> dict[str, int]:
    """What the assembler says about a compiled kernel."""
    import tempfile

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}


def assert_within(used: dict[str, int], *, registers: int, shared: int) -> None:
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= registers, used
    assert used["SHARED"] <= shared, used


def functions(width: int, n_edges: int, dtype: torch.dtype) -> TabulatedFunctions:
    table = SplineTable(torch.zeros(4, 512, 4, width, dtype=dtype), 4.5 / 511)
    distance = torch.zeros(n_edges, dtype=torch.float64, requires_grad=True)
    return TabulatedFunctions(table, torch.zeros(n_edges, dtype=torch.int32), distance)


def attend(sizes: dict[str, int], normalization: str, dtype: torch.dtype, index: EdgeIndex) -> None:
    from e2former_calc.potentials.kernels.fused_attention import launch

    n_atoms, n_edges, heads = index.n_atoms, index.n_edges, sizes["heads"]
    query, key = torch.zeros(2, n_atoms, heads, sizes["width"], dtype=dtype, requires_grad=True).unbind(0)
    value = torch.zeros(n_atoms, sizes["rows"], sizes["channels"], dtype=dtype, requires_grad=True)
    radial = functions(2 * heads, n_edges, dtype)
    edges = AttentionEdges(radial, torch.zeros(n_edges, dtype=dtype), torch.zeros(n_edges, 3, dtype=dtype), True)
    launch.fused_attention(query, key, value, edges, index, normalization).sum().backward()  # type: ignore[arg-type]


ATTENTION = {"forward": 136, "center": 208, "source": 176}
"""Registers per thread in single precision; 65 536 divided by 32 times this, in fours, are the resident warps."""


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("sizes", [PUBLISHED, COMPACT], ids=["published", "compact"])
def test_attention_kernels_fit_into_registers(generation: int, sizes: dict[str, int], record, index) -> None:
    from e2former_calc.potentials.kernels.fused_attention import triton_backward, triton_forward

    calls = record(triton_forward, triton_backward)
    attend(sizes, "softmax", torch.float32, index)
    assert set(calls) == {f"attention_{name}_kernel" for name in ATTENTION}
    for name, registers in ATTENTION.items():
        assert_within(resources(calls[f"attention_{name}_kernel"], generation), registers=registers, shared=256)


def test_pipelined_attention_leaves_shared_memory_for_ten_warps(record, index, monkeypatch) -> None:
    from e2former_calc.potentials.kernels.fused_attention import launch, triton_backward, triton_forward

    monkeypatch.setattr(launch, "PIPELINE_STAGES", 2)
    calls = record(triton_forward, triton_backward)
    attend(PUBLISHED, "softmax", torch.float32, index)
    for call in calls.values():
        used = resources(call, 90)
        assert used["REG"] <= 208
        assert 4096 < used["SHARED"] <= 20_000


def test_double_precision_does_not_spill(record, index) -> None:
    from e2former_calc.potentials.kernels.fused_attention import triton_backward, triton_forward

    calls = record(triton_forward, triton_backward)
    attend(PUBLISHED, "softplus", torch.float64, index)
    for call in calls.values():
        assert_within(resources(call, 90), registers=255, shared=1024)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_embedding_kernels_fit_into_registers(generation: int, record, index) -> None:
    from e2former_calc.potentials.kernels.edge_embedding import launch, triton_backward, triton_forward

    calls = record(triton_forward, triton_backward)
    harmonics = torch.zeros(index.n_edges, 9, requires_grad=True)
    launch.edge_embedding(functions(3 * 256, index.n_edges, torch.float32), harmonics, index).sum().backward()
    for name, registers in {"forward": 80, "backward": 80}.items():
        assert_within(resources(calls[f"embedding_{name}_kernel"], generation), registers=registers, shared=2048)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_geometry_kernels_fit_into_registers(generation: int, record, index) -> None:
    from e2former_calc.potentials.kernels.geometry import kernels, launch

    calls = record(kernels)
    positions, strain = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (1, 3, 3)))
    structures = Structures.from_batch(torch.zeros(2, dtype=torch.int64), 1)
    image = torch.zeros(3, 3, dtype=torch.float64)
    launch.edge_vectors(positions, strain, image, structures, index).sum().backward()
    assert len(calls) == 3
    for call in calls.values():
        assert_within(resources(call, generation), registers=96, shared=1024)


def test_the_neighbor_search_fits_into_registers(record) -> None:
    from e2former_calc.potentials.kernels.neighbor_search import kernels, launch, plan_search

    calls = record(kernels)
    system = System.single([[0.0, 0.0, 0.0]], [6], cell=[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]], pbc=True)
    launch.neighbor_search(system.positions, plan_search(system, 3.0, "cells"), 64)
    assert_within(resources(calls["search_kernel"], 90), registers=64, shared=256)
