"""The training loop: plain torch, resumable to the last bit.

Which structures a step sees, its learning rate and its dropout follow from the seed and the number of
the step alone, so a run that is stopped, killed or continued gives the same weights as one that is not
(same machine, same number of threads and of processes). Several processes give the weights of one up to
rounding; with dropout, which each process draws for itself, they do not.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.training.batches import Batches, reflect
from e2former_calc.potentials.training.compiled import (
    CannotCompileError,
    CompiledLoss,
    batch_capacity,
    compiler_available,
)
from e2former_calc.potentials.training.distributed import ALONE, Workers
from e2former_calc.potentials.training.errors import Comparison, Errors
from e2former_calc.potentials.training.loss import Labels, LossCounts, loss
from e2former_calc.potentials.training.mixed_precision import bfloat16_products
from e2former_calc.potentials.training.settings import COMPILE_FROM_STEPS, TrainingSettings

EMA_WARMUP = 10
_RANK_STRIDE = 0x9E3779B1
"""Distance of the random seeds of two processes; below 2^32, because the generator takes no more bits."""


@dataclass(frozen=True)
class Progress:
    """State of a run, given to the callback.

    Attributes:
        step: optimiser steps done.
        loss: training loss, averaged since the last report.
        learning_rate: of the last step.
        validation: errors of the averaged weights, or None between validations.
    """

    step: int
    loss: float
    learning_rate: float
    validation: Errors | None


class Trainer:
    """Trains the network of a potential.

    Args:
        potential: with gradient forces; its reference energies stay as they are.
        training: structures to learn from.
        validation: structures to judge by, or None.
        settings: loss, optimiser and schedule.
        frozen: names (or their beginnings) of parameters that keep their values.
        workers: processes that train together. All of them build the same trainer, and make the same calls;
            they start from the weights of the first.

    Attributes:
        step: optimiser steps done.
        best: smallest validation loss so far, and the averaged weights that had it.
        compiled: the step as one compiled graph, or None.

    Raises:
        ValueError: if nothing is left to train, `frozen` names no parameter, or a batch has fewer structures
            than there are processes.
    """

    def __init__(
        self,
        potential: EnergyPotential,
        training: Batches,
        validation: Batches | None,
        settings: TrainingSettings,
        *,
        frozen: tuple[str, ...] = (),
        workers: Workers = ALONE,
    ) -> None:
        if settings.batch_size < workers.size:
            raise ValueError(
                f"batch_size is {settings.batch_size}, but {workers.size} processes share it: "
                "use a larger batch or fewer processes"
            )
        self.workers = workers
        self.potential, self.training, self.validation, self.settings = potential, training, validation, settings
        network = potential.model
        if not isinstance(network, nn.Module):
            raise TypeError(f"`potential.model` must be a torch module, got {type(network).__name__}")
        self.network: nn.Module = network
        workers.copy_first(list(network.parameters()))
        self._parameters = self._choose_parameters(frozen)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._averaged = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.step = 0
        self.best: tuple[float, dict[str, Tensor]] = (float("inf"), {})
        stress = settings.uses("stress") and any(s is not None for s in training.dataset.stress)
        self._properties: frozenset[Property] = frozenset(
            {"energy", "forces", "stress"} if stress else {"energy", "forces"}
        )
        self.compiled = self._prepare_compiled()

    def run(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda _: None,
        report_every: int = 100,
    ) -> None:
        """Train until `settings.steps`, or until `stop()` of any process after a step.

        Raises:
            FloatingPointError: in all processes, if the loss or its gradient is not finite; the state is that
                before the step.
        """
        collected: list[float] = []
        while self.step < self.settings.steps:
            collected.append(self.train_step())
            finished = self.step == self.settings.steps
            validate = self.validation is not None and (finished or self.step % self.settings.validate_every == 0)
            if validate or finished or self.step % report_every == 0:
                errors = self._validate() if validate else None
                mean = sum(collected) / len(collected)
                report(Progress(self.step, mean, self.settings.rate(self.step - 1), errors))
                collected.clear()
            if self.workers.any(stop()):
                return

    def train_step(self) -> float:
        """One optimiser step; returns the loss.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite.
        """
        settings = self.settings
        value, gradients = self._loss_and_gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        _check_finite(float(nn.utils.clip_grad_norm_(self._parameters.values(), settings.gradient_clip)), self.step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        decay = min(settings.ema_decay, self.step / (self.step + EMA_WARMUP))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._averaged[name].lerp_(parameter, 1.0 - decay)
        self.step += 1
        return value

    def _loss_and_gradients(self) -> tuple[float, list[Tensor | None]]:
        """Loss of the whole batch, and its derivatives; the same in all processes."""
        settings, device = self.settings, self.potential.device
        indices = self.training.indices(self.step, settings.batch_size, settings.seed)
        system, lists, labels = self.training.batch(self.workers.share(indices))
        if settings.mirror:
            mirrored = self.training.mirrored(self.step, settings.batch_size, settings.seed)
            system, labels = reflect(system, labels, self.workers.share(mirrored))
        counts = self.workers.sum_counts(LossCounts.of(labels))
        self.network.train()
        system, labels = system.to(device), labels.to(device)
        value, gradients = self._differentiated(system, lists, labels, counts)
        total = float(self.workers.sum(value.detach().cpu()))
        _check_finite(total, self.step)
        return total, self.workers.sum_gradients(gradients, list(self._parameters.values()))

    def _differentiated(
        self, system: System, lists: NeighborList, labels: Labels, counts: LossCounts
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Loss of this process's share and its derivatives: as a compiled graph if there is one and the share fits."""
        weights = self.settings.weights(self.step)
        if self.compiled is not None:
            graphs = self.potential.graphs(system, lists)
            if self.compiled.capacity.holds(system, graphs):
                try:
                    value, known = self.compiled(system, graphs, labels, weights=weights, counts=counts)
                    return value, list(known)
                except CannotCompileError as error:
                    if self.settings.compile == "always":
                        raise
                    warnings.warn(f"{error}; training goes on without compiling", stacklevel=3)
                    self.compiled = None
        parameters = list(self._parameters.values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        half = self.settings.node_matmul_dtype == "bfloat16"
        with bfloat16_products(self.network) if half else nullcontext():
            with self._seeded():
                prediction = self.potential(system, properties=self._properties, neighbors=lists, create_graph=True)
            value = loss(prediction, labels, system, self.settings, weights=weights, counts=counts)
            # A share without a single label in the loss has no graph.
            if not value.requires_grad:
                return value, [None] * len(parameters)
            return value, list(torch.autograd.grad(value, parameters, allow_unused=True))

    def _prepare_compiled(self) -> CompiledLoss | None:
        """The compiled training step, if the settings and the machine allow it."""
        settings, device = self.settings, self.potential.device
        if settings.compile == "never":
            return None
        if settings.compile == "auto":
            short = settings.steps < COMPILE_FROM_STEPS
            if short or settings.node_matmul_dtype != "float32" or not compiler_available(device):
                return None
        largest = -(-settings.batch_size // self.workers.size)
        return CompiledLoss(
            self.potential,
            self._parameters,
            settings,
            stress="stress" in self._properties,
            capacity=batch_capacity(self.potential, self.training, largest),
            elements=self.training.dataset.elements,
        )

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Random numbers of this step and process, for dropout; the states outside stay as they are."""
        device = self.potential.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed * 1_000_003 + self.step + _RANK_STRIDE * self.workers.rank)
            yield

    def evaluate(self, batches: Batches, *, weights: dict[str, Tensor] | None = None) -> Errors:
        """Errors on a set of structures, with the averaged (or other) weights; the same in all processes."""
        return self._evaluate(batches, self._averaged if weights is None else weights)[0].errors()

    def compare(self, batches: Batches, *, weights: dict[str, Tensor]) -> Comparison:
        """Predictions with some weights beside the labels; the same in all processes."""
        return self._evaluate(batches, weights)[0]

    def _validate(self) -> Errors:
        if self.validation is None:
            raise ValueError("there are no structures to validate on")
        comparison, value = self._evaluate(self.validation, self._averaged)
        if value < self.best[0]:
            self.best = (value, {name: tensor.clone() for name, tensor in self._averaged.items()})
        return comparison.errors()

    def _evaluate(self, batches: Batches, weights: dict[str, Tensor]) -> tuple[Comparison, float]:
        """Predictions beside labels, and the loss with the weights of the last step, comparable between steps."""
        comparison, total = Comparison(), 0.0
        final = self.settings.weights(self.settings.steps)
        chunks = batches.chunks(4 * self.settings.batch_size)
        for chunk, prediction in zip(chunks, self._predict(batches, chunks, weights), strict=True):
            system, labels = batches.labelled(chunk)
            comparison.add(prediction, labels, system)
            total += float(loss(prediction, labels, system, self.settings, weights=final)) * system.n_structures
        return comparison, total / len(batches)

    def _predict(self, batches: Batches, chunks: Sequence[range], weights: dict[str, Tensor]) -> list[Prediction]:
        """Predictions for all chunks, on the host; every process makes some of them and gets all."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        predictions = []
        self._load(weights)
        self.network.eval()
        try:
            for chunk in self.workers.share(chunks):
                system, lists, _ = batches.batch(chunk)
                predictions.append(_to_host(self.potential(system, properties=self._properties, neighbors=lists)))
        finally:
            self._load(trained)
        return self.workers.collect(predictions)

    def finish(self) -> None:
        """Put the best validated weights (the averaged ones without validation) into the network."""
        self._load(self.best[1] or self._averaged)
        self.network.eval().requires_grad_(False)

    def save(self, path: Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write everything needed to continue, atomically; only the first process writes.

        Args:
            path: file, replaced only when the new one is complete.
            extra: plain values to keep with it.
        """
        if not self.workers.first:
            return
        content = {
            "step": self.step,
            "settings": self.settings.to_dict(),
            "parameters": {name: p.detach() for name, p in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            "averaged": self._averaged,
            "best_loss": self.best[0],
            "best": self.best[1],
            "extra": extra or {},
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from a saved state, which every process reads; returns its `extra`.

        The number of processes may be another one than before; the weights are then equal up to rounding only.

        Raises:
            ValueError: if it belongs to another network or other settings, naming what differs, or if the
                processes read different files.
        """
        content = torch.load(path, weights_only=True)
        # A setting that did not exist when the file was written had the effect of its default.
        before = TrainingSettings().to_dict() | content["settings"]
        differing = [
            f"{name} was {before[name]!r}, is {value!r}"
            for name, value in self.settings.to_dict().items()
            if before[name] != value
        ]
        shapes = {name: tuple(t.shape) for name, t in content["parameters"].items()}
        if shapes != {name: tuple(p.shape) for name, p in self._parameters.items()}:
            differing.append("the network is another one")
        steps = sorted(set(self.workers.collect([content["step"]])))
        if len(steps) > 1:
            differing.append(f"the processes read files of the steps {steps}, which must be the same file")
        if differing:
            raise ValueError(f"{path} cannot be continued: " + "; ".join(differing))
        self.step = content["step"]
        self._load(content["parameters"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._averaged = content["averaged"]
        self.best = (content["best_loss"], content["best"])
        extra: dict[str, Any] = content["extra"]
        return extra

    def _load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

    def _choose_parameters(self, frozen: tuple[str, ...]) -> dict[str, nn.Parameter]:
        everything = dict(self.network.named_parameters())
        useless = [prefix for prefix in frozen if not any(name.startswith(prefix) for name in everything)]
        if useless:
            raise ValueError(f"`frozen` names no parameter with {useless}; there are {sorted(everything)[:10]}, ...")
        chosen = {name: p for name, p in everything.items() if not name.startswith(frozen or ("\0",))}
        if not chosen:
            raise ValueError("every parameter is frozen: nothing is left to train")
        for name, parameter in everything.items():
            parameter.requires_grad_(name in chosen)
        return chosen


def _check_finite(value: float, step: int) -> None:
    """Refuse a loss, or the norm of its gradient; both are the same in all processes."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss or its gradient is {value} at step {step}: lower learning_rate, or look for wrong labels"
        )


def _to_host(prediction: Prediction) -> Prediction:
    forces = None if prediction.forces is None else prediction.forces.cpu()
    stress = None if prediction.stress is None else prediction.stress.cpu()
    energy, energies = prediction.energy.cpu(), prediction.energies.cpu()
    return replace(prediction, energy=energy, energies=energies, forces=forces, stress=stress)
