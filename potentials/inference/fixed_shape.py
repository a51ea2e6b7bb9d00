"""The form for devices in arrays of fixed shape, as one operator of torch: what a recorded step of dynamics contains.

A trace cannot look into Triton kernels. It sees this operator instead, which needs nothing but shapes; when the trace
is replayed, or captured as a CUDA graph, the operator launches all kernels of forward and backward. It
differentiates inside, and cannot be differentiated itself, nor called from what Inductor has compiled, where automatic
differentiation is switched off: `captured_replay.compiled_or_traced` then says so and replays the trace.
"""

from __future__ import annotations

from itertools import count
from typing import cast
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.inference.device_network import DeviceAtoms, DeviceNetwork
from e2former_calc.potentials.kernels.edge_index import EdgeIndex
from e2former_calc.potentials.padding import PaddedGraph

_KEYS = count()
_FORMS: WeakValueDictionary[int, FixedShapeForm] = WeakValueDictionary()
"""Operators take numbers and tensors; a form is found again by its number."""


class FixedShapeForm:
    """A prepared network and a system with an atom of padding, as `PaddedGraph` has it.

    Args:
        network: on its device.
        atoms: of the padded system. Tables are those of now, whatever elements are added later.
    """

    def __init__(self, network: DeviceNetwork, atoms: DeviceAtoms) -> None:
        self._network, self._atoms, self._key = network, atoms, next(_KEYS)
        _FORMS[self._key] = self

    @property
    def n_structures(self) -> int:
        """Number of structures, the one of padding among them."""
        return self._atoms.structures.n_structures

    def __call__(
        self, graph: PaddedGraph, positions: Float[Tensor, "padded_atoms 3"]
    ) -> tuple[Float[Tensor, " padded_atoms"], Float[Tensor, "padded_atoms 3"], Float[Tensor, "padded_structures 3 3"]]:
        """Atomic energies (eV), forces (eV/Å) and dE/dstrain (eV), without graph; positions in Å, float64."""
        columns = graph.image, graph.center, graph.source, graph.row_ptr
        result = torch.ops.e2former_calc.energy_forces_strain(self._key, positions, *columns)
        return cast(tuple[Tensor, Tensor, Tensor], result)

    def evaluate(self, graph: PaddedGraph, positions: Float[Tensor, "padded_atoms 3"]) -> tuple[Tensor, Tensor, Tensor]:
        """What the operator does."""
        result = self._network.evaluate(self._atoms, positions, graph.image, without_padding(graph), forces=True)
        return result.energies, cast(Tensor, result.forces), cast(Tensor, result.strain)


def without_padding(graph: PaddedGraph) -> EdgeIndex:
    """The edges of all atoms but the last, which has those of padding: their slots stay, and are not used."""
    n_atoms, capacity = graph.row_ptr.shape[0] - 1, graph.center.shape[0]
    row_ptr = torch.cat([graph.row_ptr[:-1], graph.row_ptr[-2:-1]])
    unused = torch.arange(capacity, device=row_ptr.device) >= row_ptr[-1]
    in_order, by_source = torch.sort(graph.source.masked_fill(unused, n_atoms), stable=True)
    atoms = torch.arange(n_atoms + 1, dtype=in_order.dtype, device=in_order.device)
    columns = (graph.center, graph.source, row_ptr, by_source, torch.searchsorted(in_order, atoms))
    return EdgeIndex(*(column.to(torch.int32) for column in columns))


def _run(
    key: int, positions: Float[Tensor, "atoms 3"], image: Float[Tensor, "edges 3"], center: Int[Tensor, " edges"],
    source: Int[Tensor, " edges"], row_ptr: Int[Tensor, " atoms_plus_one"],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _FORMS[key].evaluate(PaddedGraph(center, source, image, row_ptr), positions)


def _shapes(
    key: int, positions: Tensor, image: Tensor, center: Tensor, source: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del image, center, source, row_ptr
    n_structures = _FORMS[key].n_structures
    return positions.new_empty(len(positions)), torch.empty_like(positions), positions.new_empty(n_structures, 3, 3)


_LIBRARY = torch.library.Library("e2former_calc", "FRAGMENT")
_LIBRARY.define(
    "energy_forces_strain(int key, Tensor positions, Tensor image, Tensor center, Tensor source, Tensor row_ptr)"
    " -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("energy_forces_strain", _run, "CompositeExplicitAutograd")
# The operator is called as it is where gradients could be recorded, so that it can record its own.
_LIBRARY.impl("energy_forces_strain", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake("e2former_calc::energy_forces_strain", _shapes, lib=_LIBRARY)
