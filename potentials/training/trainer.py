"""The training loop: plain torch, resumable to the last bit.

Which structures a step sees, its learning rate and its dropout follow from the seed and the number of
the step alone, so a run that is stopped, killed or continued gives the same weights as one that is not
(same machine, same number of threads).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.loss import ErrorAccumulator, Errors, loss
from e2former_calc.potentials.training.settings import TrainingSettings

EMA_WARMUP = 10


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

    Attributes:
        step: optimiser steps done.
        best: smallest validation loss so far, and the averaged weights that had it.

    Raises:
        ValueError: if nothing is left to train, or `frozen` names no parameter.
    """

    def __init__(
        self,
        potential: EnergyPotential,
        training: Batches,
        validation: Batches | None,
        settings: TrainingSettings,
        *,
        frozen: tuple[str, ...] = (),
    ) -> None:
        self.potential, self.training, self.validation, self.settings = potential, training, validation, settings
        network = potential.model
        if not isinstance(network, nn.Module):
            raise TypeError(f"`potential.model` must be a torch module, got {type(network).__name__}")
        self.network: nn.Module = network
        self._parameters = self._choose_parameters(frozen)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._averaged = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.step = 0
        self.best: tuple[float, dict[str, Tensor]] = (float("inf"), {})
        stress = settings.stress_weight > 0 and any(s is not None for s in training.dataset.stress)
        self._properties: frozenset[Property] = frozenset(
            {"energy", "forces", "stress"} if stress else {"energy", "forces"}
        )

    def run(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda _: None,
        report_every: int = 100,
    ) -> None:
        """Train until `settings.steps`, or until `stop()` after a step.

        Raises:
            FloatingPointError: if the loss is not finite; the state is that before the step.
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
            if stop():
                return

    def train_step(self) -> float:
        """One optimiser step; returns the loss.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        settings = self.settings
        system, lists, labels = self.training.batch(
            self.training.indices(self.step, settings.batch_size, settings.seed)
        )
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.network.train()
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed * 1_000_003 + self.step)
            prediction = self.potential(system, properties=self._properties, neighbors=lists, create_graph=True)
        device = self.potential.device
        value = loss(prediction, labels.to(device), system.to(device), settings)
        if not bool(torch.isfinite(value)):
            raise FloatingPointError(
                f"the loss is {float(value.detach())} at step {self.step}: "
                "lower learning_rate, or look for wrong labels"
            )
        gradients = torch.autograd.grad(value, list(self._parameters.values()), allow_unused=True)
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self._parameters.values(), settings.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        decay = min(settings.ema_decay, self.step / (self.step + EMA_WARMUP))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._averaged[name].lerp_(parameter, 1.0 - decay)
        self.step += 1
        return float(value.detach())

    def evaluate(self, batches: Batches, *, weights: dict[str, Tensor] | None = None) -> Errors:
        """Errors on a set of structures, with the averaged (or other) weights."""
        return self._evaluate(batches, self._averaged if weights is None else weights)[0]

    def _validate(self) -> Errors:
        if self.validation is None:
            raise ValueError("there are no structures to validate on")
        errors, value = self._evaluate(self.validation, self._averaged)
        if value < self.best[0]:
            self.best = (value, {name: tensor.clone() for name, tensor in self._averaged.items()})
        return errors

    def _evaluate(self, batches: Batches, weights: dict[str, Tensor]) -> tuple[Errors, float]:
        """Errors and loss."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        accumulator, total = ErrorAccumulator(), 0.0
        self._load(weights)
        self.network.eval()
        try:
            for system, lists, labels in batches.in_order(4 * self.settings.batch_size):
                prediction = self.potential(system, properties=self._properties, neighbors=lists)
                system, labels = system.to(self.potential.device), labels.to(self.potential.device)
                accumulator.add(prediction, labels, system)
                total += float(loss(prediction, labels, system, self.settings)) * system.n_structures
        finally:
            self._load(trained)
        return accumulator.errors(), total / len(batches)

    def finish(self) -> None:
        """Put the best validated weights (the averaged ones without validation) into the network."""
        self._load(self.best[1] or self._averaged)
        self.network.eval().requires_grad_(False)

    def save(self, path: Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write everything needed to continue, atomically.

        Args:
            path: file, replaced only when the new one is complete.
            extra: plain values to keep with it.
        """
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
        """Continue from a saved state; returns its `extra`.

        Raises:
            ValueError: if it belongs to another network or other settings, naming what differs.
        """
        content = torch.load(path, weights_only=True)
        differing = [
            f"{name} was {content['settings'].get(name)!r}, is {value!r}"
            for name, value in self.settings.to_dict().items()
            if content["settings"].get(name) != value
        ]
        shapes = {name: tuple(t.shape) for name, t in content["parameters"].items()}
        if shapes != {name: tuple(p.shape) for name, p in self._parameters.items()}:
            differing.append("the network is another one")
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
