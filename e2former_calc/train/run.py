"""A training run: state, log, model and report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from e2former_calc.checkpoint import ModelCard, write_native
from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.distributed import ALONE, Workers
from e2former_calc.potentials.training.domain import measure_domain
from e2former_calc.potentials.training.errors import Comparison, Errors
from e2former_calc.potentials.training.trainer import Progress, Trainer
from e2former_calc.train.data import read_data
from e2former_calc.train.networks import design_failures, fine_tuned, fresh
from e2former_calc.train.plan import TrainingPlan


@dataclass(frozen=True)
class Judgement:
    """How good the trained model is.

    Attributes:
        frames: "test" or "validation", whatever it was judged on.
        comparison: predictions and labels.
    """

    frames: str
    comparison: Comparison


class TrainingRun:
    """A training run on files: state, log and model are written beside each other.

    Args:
        plan: what to do.
        prefix: of the files PREFIX-state.pt and PREFIX.safetensors.
        device: torch device.
        resume: continue from PREFIX-state.pt.
        workers: processes that train together; each has its own device, and the first writes the files.

    Raises:
        ValueError, CheckpointError: if data, network or state cannot be used.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        prefix: Path,
        *,
        device: torch.device,
        resume: bool = False,
        workers: Workers = ALONE,
    ) -> None:
        self.plan, self.prefix = plan, prefix
        self.data = read_data(plan)
        if plan.start_from is None:
            self.loaded = fresh(plan, self.data.training)
            self.head = self.loaded.choose_head(plan.head)
        else:
            self.loaded, self.head = fine_tuned(plan, self.data.training)
        self.potential = EnergyPotential(
            self.loaded.model,
            head=self.head,
            reference_energies=self.loaded.reference_energies,
            elements=self.loaded.elements[self.head],
            force_mode="gradient",
            neighbor_cap="none",
        ).to(device)
        cutoff = self.potential.cutoff
        validation = self.data.validation
        self.trainer = Trainer(
            self.potential,
            Batches(self.data.training, cutoff),
            None if validation is None else Batches(validation, cutoff),
            plan.settings,
            frozen=plan.frozen,
            workers=workers,
        )
        if resume:
            self._check_split(self.trainer.load(self.state_file))

    def _check_split(self, saved: dict[str, Any]) -> None:
        """Training on frames that the state was validated on would spoil the validation."""
        if saved.get("validation_frames", self._split) != self._split:
            raise ValueError(
                f"{self.state_file} cannot be continued: other frames were kept aside for validation; "
                "restore the data files and `validation`, or start anew without --resume"
            )

    @property
    def _split(self) -> list[int]:
        return list(self.data.kept_aside)

    @property
    def state_file(self) -> Path:
        """Everything needed to continue."""
        return self.prefix.with_name(f"{self.prefix.name}-state.pt")

    @property
    def model_file(self) -> Path:
        """The trained model."""
        return self.prefix.with_name(f"{self.prefix.name}.safetensors")

    def run(
        self,
        *,
        report: Callable[[Progress], None],
        max_minutes: float | None = None,
        save_every_minutes: float = 1.0,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train; returns True if all steps are done, False if the time was up or the run was interrupted.

        The state is saved every `save_every_minutes` and at the end. Any other end leaves the last saved state,
        because it may come in the middle of a step.
        """
        started = saved = time.monotonic()

        def stop() -> bool:
            nonlocal saved
            now = time.monotonic()
            if now - saved > 60 * save_every_minutes:
                self._save()
                saved = now
            return interrupted() or (max_minutes is not None and now - started > 60 * max_minutes)

        try:
            self.trainer.run(stop=stop, report=report)
        except FloatingPointError:
            self._save()
            raise
        self._save()
        return self.trainer.step >= self.plan.settings.steps

    def _save(self) -> None:
        self.trainer.save(self.state_file, extra={"validation_frames": self._split})

    def finish(self) -> Judgement | None:
        """Write the model with its card and its training domain.

        It is judged on the test frames, or else on the validation frames.
        """
        self.trainer.finish()
        judged, name = (self.data.test, "test") if self.data.test is not None else (self.data.validation, "validation")
        judgement = None
        if judged is not None:
            weights = {name: p.detach() for name, p in self.trainer.network.named_parameters()}
            comparison = self.trainer.compare(Batches(judged, self.potential.cutoff), weights=weights)
            judgement = Judgement(name, comparison)
        errors = None if judgement is None else judgement.comparison.errors()
        model = replace(self.loaded, card=self._card(errors, name, judged))
        if self.trainer.workers.first:
            model = replace(model, domains=self._domains())
            self.potential.to("cpu")
            write_native(self.model_file, model.content())
        return judgement

    def _domains(self) -> dict[str, TrainingDomain]:
        """Of the trained head; what was known of other heads is no longer true for the new weights."""
        if max(system.n_atoms for system in self.data.training.systems) == 1:
            return {}
        return {self.head: measure_domain(self.potential, self.data.training, self.data.validation)}

    def _card(self, errors: Errors | None, name: str, judged: Dataset | None) -> ModelCard:
        data = self.data.training
        text = "no frames kept aside" if errors is None or judged is None else (
            f"{len(judged)} {name} frames: energy MAE {errors.energy_mae:.2f} meV/atom, forces MAE "
            f"{errors.forces.mae:.1f} meV/Å, RMSE {errors.forces.rmse:.1f} meV/Å"
        )  # fmt: skip
        steps = f"{self.trainer.step} steps of {self.plan.settings.batch_size}"
        failures = [f"structures unlike the training data ({', '.join(sorted(data.formulas)[:5])})"]
        stated: dict[str, Any] = {
            "name": self.prefix.name,
            "training_data": f"{len(data)} frames of {data.source}, {steps}",
            "known_failures": "; ".join(failures + design_failures(self.loaded.config)),
            "errors": text,
            "forces": "gradient",
        }
        return replace(self.loaded.card, **(stated | dict(self.plan.card)))
