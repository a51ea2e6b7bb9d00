"""The loss of a batch and its gradients as one compiled graph.

Training on forces differentiates twice, which `torch.compile` cannot do by itself. So network, forces,
loss and gradients are traced together into one graph of plain operations, which is then compiled as a
function that needs no differentiation. The shape is fixed; batches are padded to it.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from e2former_calc.potentials.interface import AtomOutput, EnergyModel
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.padding import Capacity, PaddedGraph, pad_graph, pad_system
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.loss import Labels, LossCounts, loss
from e2former_calc.potentials.training.settings import LossWeights, TrainingSettings

COMPILERS = ("c++", "g++", "clang++")
SPARE = 4.0
"""Capacity of a batch beyond its mean size, in standard deviations."""


def compiler_available(device: torch.device) -> bool:
    """Whether graphs can be compiled for this device: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cuda":
        return bool(torch.utils._triton.has_triton())
    return device.type == "cpu" and any(shutil.which(name) for name in COMPILERS)


def batch_capacity(potential: EnergyPotential, batches: Batches, batch_size: int) -> Capacity:
    """Sizes that (almost) every random batch keeps to; exact for structures of equal size."""
    atoms, edges = [], []
    for index in range(len(batches)):
        system, lists, _ = batches.batch([index])
        atoms.append(system.n_atoms)
        edges.append([graph.n_edges for graph in potential.graphs(system.to(potential.device), lists)])
    sizes = torch.tensor(atoms, dtype=torch.float64)
    counts = torch.tensor(edges, dtype=torch.float64)
    return Capacity.around(
        batch_size,
        _likely_sum(sizes, batch_size),
        [_likely_sum(counts[:, k], batch_size) for k in range(counts.shape[1])],
    )


def _likely_sum(values: Tensor, number: int) -> int:
    spread = float(values.std(correction=0)) * number**0.5
    return int(min(number * float(values.mean()) + SPARE * spread, number * float(values.max())) + 0.5)


class CannotCompileError(RuntimeError):
    """The training step cannot run as one compiled graph; the message says why."""


class CompiledLoss:
    """Loss and gradients of batches up to a fixed size; compiled when it is first called.

    Args:
        potential: with gradient forces and without dropout.
        parameters: those that are differentiated by, by their names in the network.
        settings: loss.
        stress: whether stresses are trained on.
        capacity: largest batch.
        elements: atomic numbers that occur in the batches.
        backend: of `torch.compile`.
    """

    def __init__(
        self,
        potential: EnergyPotential,
        parameters: dict[str, nn.Parameter],
        settings: TrainingSettings,
        *,
        stress: bool,
        capacity: Capacity,
        elements: frozenset[int],
        backend: str = "inductor",
    ) -> None:
        self.potential, self.parameters, self.settings, self.stress = potential, parameters, settings, stress
        self.capacity, self.backend = capacity, backend
        self.elements = torch.tensor(sorted(elements), device=potential.device)
        self._graph: Callable[..., list[Tensor]] | None = None

    def __call__(
        self,
        system: System,
        graphs: tuple[NeighborList, ...],
        labels: Labels,
        *,
        weights: LossWeights,
        counts: LossCounts,
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss, and its gradient with respect to each parameter.

        Args:
            system, graphs, labels: a batch for which `capacity.holds`, on the device of the potential.
            weights, counts: as in `loss`.

        Raises:
            CannotCompileError: in the first call, if the network has dropout or clusters, or the compiler fails.
        """
        scalars = (weights.energy, weights.forces, weights.stress, counts.structures, counts.atoms, counts.stresses)
        inputs = self._padded(system, graphs, labels, [labels.energy.new_tensor(float(x)) for x in scalars])
        parameters = [parameter.detach() for parameter in self.parameters.values()]
        if self._graph is None:
            if any(math.isinf(graph.cutoff) for graph in graphs):
                raise CannotCompileError("the network has edges of any length (clusters), which cannot be padded")
            self._graph = _compiled(self._loss_and_gradients, parameters, inputs, self.backend)
        with torch.no_grad():
            value, *gradients = self._graph(parameters, *inputs)
        return value, gradients

    def _padded(
        self, system: System, graphs: tuple[NeighborList, ...], labels: Labels, scalars: list[Tensor]
    ) -> tuple[list[Tensor], ...]:
        """All inputs of the graph as lists of tensors of fixed shape."""
        capacity, nan = self.capacity, float("nan")
        larger = pad_system(system, capacity)
        padded = [
            pad_graph(graph, system, atoms=capacity.atoms, edges=edges)
            for graph, edges in zip(graphs, capacity.edges, strict=True)
        ]
        structures, atoms = capacity.structures - system.n_structures, capacity.atoms - system.n_atoms
        stress = labels.stress
        if stress is None:
            stress = labels.energy.new_full((system.n_structures, 3, 3), nan)
        known = [
            pad(labels.energy, (0, structures), value=nan),
            pad(labels.forces, (0, 0, 0, atoms), value=nan),
            pad(stress, (0, 0, 0, 0, 0, structures), value=nan),
        ]
        graph_tensors = [tensor for graph in padded for tensor in _tensors(graph)]
        return _tensors(larger), graph_tensors, known, scalars

    def _loss_and_gradients(
        self,
        parameters: list[Tensor],
        system: list[Tensor],
        graphs: list[Tensor],
        labels: list[Tensor],
        scalars: list[Tensor],
    ) -> list[Tensor]:
        """What is traced."""
        padded_system, per_graph = System(*system), len(fields(PaddedGraph))
        padded = [PaddedGraph(*graphs[k : k + per_graph]) for k in range(0, len(graphs), per_graph)]
        leaves = [parameter.detach().requires_grad_(True) for parameter in parameters]
        prediction = self._predict(dict(zip(self.parameters, leaves, strict=True)), padded_system, padded)
        weights, counts = LossWeights(*scalars[:3]), LossCounts(*scalars[3:])
        value = loss(prediction, Labels(*labels), padded_system, self.settings, weights=weights, counts=counts)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
        return [value.detach(), *(gradient.detach() for gradient in filled)]

    def _predict(self, parameters: dict[str, Tensor], system: System, graphs: list[PaddedGraph]) -> Prediction:
        potential = self.potential
        positions = system.positions.detach().requires_grad_(True)
        strain = torch.zeros_like(system.cell).requires_grad_(True) if self.stress else None
        edges = tuple(graph.edges(positions, system.batch, strain, potential.cutoff) for graph in graphs)
        options = {"head": potential.head, "forces": False, "elements": self.elements}
        network = cast(nn.Module, potential.model)
        with _plain_torch(potential.model):
            output: AtomOutput = functional_call(network, parameters, (system, edges), options)
        energies = output.energies.to(torch.float64)
        leaves = [positions] if strain is None else [positions, strain]
        derivatives = torch.autograd.grad(energies.sum(), leaves, create_graph=True)
        stress = None
        if self.stress:
            # Structures without a volume have no stress label, so that the 1 never counts.
            volume = torch.linalg.det(system.cell).abs()
            volume = torch.where(volume > 0.0, volume, 1.0)
            stress = 0.5 * (derivatives[1] + derivatives[1].mT) / volume[:, None, None]
        energies = energies + potential.reference[system.numbers]
        energy = energies.new_zeros(system.n_structures).index_add(0, system.batch, energies)
        return Prediction(energy, energies, -derivatives[0], stress, force_source="gradient")


def _tensors(item: System | PaddedGraph) -> list[Tensor]:
    """Fields of a dataclass of tensors, in the order of its constructor."""
    return [getattr(item, field.name) for field in fields(item)]


@contextmanager
def _plain_torch(model: EnergyModel) -> Iterator[None]:
    """Edge operations of a model as the compiler wants them: plain operations that it can fuse."""
    before = model.implementation
    model.implementation = "reference"
    try:
        yield
    finally:
        model.implementation = before


def _compiled(
    function: Callable[..., Any], parameters: list[Tensor], inputs: Any, backend: str
) -> Callable[..., list[Tensor]]:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds, which only a run that compiles should pay

    with warnings.catch_warnings():
        # The compiler's own deprecations are not the user's.
        warnings.simplefilter("ignore")
        # A method has one argument more than the tracer counts.
        try:
            traced = make_fx(partial(function))(parameters, *inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotCompileError(f"tracing the training step failed: {error}") from error
        random = [str(node.target) for node in traced.graph.nodes if _is_random(node.target)]
        if random:
            raise CannotCompileError(
                f"the network draws random numbers ({random[0]}): set alpha_dropout to 0, and every other dropout"
            )
        compiled = torch.compile(traced, dynamic=False, fullgraph=True, backend=backend)
        try:
            with torch.no_grad():
                compiled(parameters, *inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CannotCompileError(f"compiling the training step failed: {error}") from error
    return cast(Callable[..., list[Tensor]], compiled)


def _is_random(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
