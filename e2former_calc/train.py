"""From a configuration file to a trained model file: data, network, run, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from e2former_calc.checkpoint import CheckpointError, LoadedModel, ModelCard, load_model, write_native
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.data_check import Finding, check_dataset
from e2former_calc.potentials.training.dataset import Dataset, split
from e2former_calc.potentials.training.distributed import ALONE, Workers
from e2former_calc.potentials.training.errors import Errors
from e2former_calc.potentials.training.readers import read_dataset
from e2former_calc.potentials.training.reference import least_squares_reference, reference_from_mapping
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Progress, Trainer

HEAD = "default"
SMOOTH_NETWORK: dict[str, Any] = {
    "heads": (HEAD,), "channels": 48, "lmax": 2, "conv_multiplicity": 3, "num_layers": 2, "num_heads": 16,
    "head_width": 4, "num_basis": 32, "max_radius": 5.0, "normalization": "softplus", "alpha_dropout": 0.0,
}  # fmt: skip
"""Defaults that give a smooth, conservative potential: softplus weights, gradient forces, no neighbour cap."""

CARD_FIELDS = ("name", "level_of_theory", "training_data", "intended_use", "known_failures", "licence", "citation")
SECTIONS = ("data", "model", "reference_energies", "training", "card")


@dataclass(frozen=True)
class TrainingPlan:
    """What a configuration file asks for.

    Attributes:
        training: files to learn from.
        validation: number of frames kept aside, or a file.
        test: file of frames that are only used for the final errors, or None.
        network: fields of `E2FormerV2Config`; those that are not given are `SMOOTH_NETWORK`'s.
        start_from: model file to fine-tune, or None.
        config: official YAML of `start_from`.
        head: head of `start_from` that is trained.
        frozen: beginnings of the names of parameters that keep their values.
        reference_energies: "least-squares", "keep" (with `start_from`) or eV by element symbol.
        settings: loss, optimiser, schedule.
        card: text for the model card.
    """

    training: tuple[Path, ...]
    validation: int | Path
    test: Path | None
    settings: TrainingSettings
    network: Mapping[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    config: Path | None = None
    head: str | None = None
    frozen: tuple[str, ...] = ()
    reference_energies: str | Mapping[str, float] = "least-squares"
    card: Mapping[str, str] = field(default_factory=dict)


def read_plan(path: Path) -> TrainingPlan:
    """Read a configuration file; paths in it are relative to its folder.

    Raises:
        ValueError: one message that names the section and the key that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold the sections {', '.join(SECTIONS)}")
    _only(content, SECTIONS, str(path))
    data, model = content.get("data") or {}, dict(content.get("model") or {})
    _only(data, ("training", "validation", "test"), "section data")
    _only(content.get("card") or {}, CARD_FIELDS, "section card")
    if not data.get("training"):
        raise ValueError(f"{path}: section data needs `training`, a file or a list of files")
    files = data["training"] if isinstance(data["training"], list) else [data["training"]]
    validation = data.get("validation", 50)
    if isinstance(validation, bool) or not isinstance(validation, int | str) or validation == "":
        raise ValueError(f"{path}: `validation` must be a number of frames or a file, got {validation!r}")
    here = path.parent
    start_from, config = model.pop("start_from", None), model.pop("config", None)
    head, frozen = model.pop("head", None), tuple(model.pop("frozen", ()))
    if start_from is not None and model:
        raise ValueError(f"section model: {sorted(model)} cannot be changed together with start_from")
    return TrainingPlan(
        training=tuple(here / file for file in files),
        validation=validation if isinstance(validation, int) else here / validation,
        test=here / data["test"] if data.get("test") else None,
        settings=TrainingSettings.from_mapping(content.get("training") or {}),
        network=model,
        start_from=_path_or_name(start_from, here),
        config=None if config is None else here / config,
        head=head,
        frozen=frozen,
        reference_energies=content.get("reference_energies", "least-squares" if start_from is None else "keep"),
        card=dict(content.get("card") or {}),
    )


def _only(mapping: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where} must hold lines 'key: value', got {mapping!r}")
    unknown = sorted(set(map(str, mapping)) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; it knows {list(known)}")


def _path_or_name(start_from: str | None, here: Path) -> str | None:
    """A model file beside the configuration, or the name of a bundled model."""
    if start_from is None or not (here / start_from).exists():
        return start_from
    return str(here / start_from)


@dataclass(frozen=True)
class TrainingData:
    """The data sets of a run, checked.

    Attributes:
        training, validation, test: frames; validation and test may be None.
        findings: what the data check noticed.
    """

    training: Dataset
    validation: Dataset | None
    test: Dataset | None
    findings: list[Finding]


def read_data(plan: TrainingPlan) -> TrainingData:
    """Read, check and split the data.

    Raises:
        ValueError: for unreadable files and for data that the check refuses.
    """
    everything = Dataset.join([read_dataset(path) for path in plan.training])
    findings = check_dataset(everything)
    refused = [finding.message for finding in findings if finding.severity == "error"]
    if refused:
        raise ValueError("the training data cannot be used: " + "; ".join(refused))
    if isinstance(plan.validation, Path):
        training, validation = everything, read_dataset(plan.validation)
    elif plan.validation == 0:
        training, validation = everything, None
    else:
        chosen, kept_aside = split(everything, plan.validation, plan.settings.seed)
        training, validation = everything.subset(chosen), everything.subset(kept_aside)
    test = None if plan.test is None else read_dataset(plan.test)
    return TrainingData(training, validation, test, findings)


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
        self.loaded = _fine_tuned(plan) if plan.start_from is not None else _fresh(plan, self.data.training)
        self.head = self.loaded.choose_head(plan.head)
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
            self.trainer.load(self.state_file)

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
                self.trainer.save(self.state_file)
                saved = now
            return interrupted() or (max_minutes is not None and now - started > 60 * max_minutes)

        try:
            self.trainer.run(stop=stop, report=report)
        except FloatingPointError:
            self.trainer.save(self.state_file)
            raise
        self.trainer.save(self.state_file)
        return self.trainer.step >= self.plan.settings.steps

    def finish(self) -> Errors | None:
        """Write the model with its card; returns the errors on the test frames, or else on the validation frames."""
        self.trainer.finish()
        judged, name = (self.data.test, "test") if self.data.test is not None else (self.data.validation, "validation")
        errors = None
        if judged is not None:
            weights = {name: p.detach() for name, p in self.trainer.network.named_parameters()}
            errors = self.trainer.evaluate(Batches(judged, self.potential.cutoff), weights=weights)
        model = replace(self.loaded, card=self._card(errors, name, judged))
        self.potential.to("cpu")
        if self.trainer.workers.first:
            write_native(self.model_file, model.content())
        return errors

    def _card(self, errors: Errors | None, name: str, judged: Dataset | None) -> ModelCard:
        data = self.data.training
        text = "no frames kept aside" if errors is None or judged is None else (
            f"{len(judged)} {name} frames: energy MAE {errors.energy_mae:.2f} meV/atom, forces MAE "
            f"{errors.forces.mae:.1f} meV/Å, RMSE {errors.forces.rmse:.1f} meV/Å"
        )  # fmt: skip
        steps = f"{self.trainer.step} steps of {self.plan.settings.batch_size}"
        stated: dict[str, Any] = {
            "name": self.prefix.name,
            "training_data": f"{len(data)} frames of {data.source}, {steps}",
            "known_failures": f"structures unlike the training data ({', '.join(sorted(data.formulas)[:5])})",
            "errors": text,
            "forces": "gradient",
        }
        return replace(self.loaded.card, **(stated | dict(self.plan.card)))


def _fresh(plan: TrainingPlan, data: Dataset) -> LoadedModel:
    """Network with random weights and reference energies from the data."""
    values = {**SMOOTH_NETWORK, **plan.network}
    values.setdefault("avg_degree", _mean_neighbors(data, float(values["max_radius"])))
    values.setdefault("orders", ["first"] * int(values["num_layers"]))
    config = E2FormerV2Config.from_dict(values)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(plan.settings.seed)
        model = E2FormerV2(config)
    table = _reference(plan, data)
    card = ModelCard(
        name=HEAD,
        architecture="e2former_v2",
        variant=config.variant,
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        elements=tuple(sorted(data.elements)),
        heads=config.heads,
        default_head=config.heads[0],
        forces="gradient",
        uses_charge=_varies([s.charge for s in data.systems]),
        uses_spin=_varies([s.spin for s in data.systems]),
        parameters=sum(p.numel() for p in model.parameters()),
        compositions=tuple(data.formulas) if len(data.formulas) == 1 else (),
        citation="architecture: E2Former-V2, arXiv:2601.16622",
        source="",
        source_sha256="",
    )
    heads = config.heads
    return LoadedModel(Path(), model, card, config, dict.fromkeys(heads, table), dict.fromkeys(heads, data.elements))


def _fine_tuned(plan: TrainingPlan) -> LoadedModel:
    """The model to start from, with other reference energies if they are asked for."""
    loaded = load_model(str(plan.start_from), plan.config)
    head = loaded.choose_head(plan.head)
    if plan.reference_energies == "keep":
        return loaded
    if not isinstance(plan.reference_energies, Mapping):
        raise CheckpointError(f"reference_energies must be 'keep' or a table, got {plan.reference_energies!r}")
    table = reference_from_mapping(plan.reference_energies)
    return replace(loaded, reference_energies={**loaded.reference_energies, head: table})


def _reference(plan: TrainingPlan, data: Dataset) -> Tensor:
    if isinstance(plan.reference_energies, Mapping):
        return reference_from_mapping(plan.reference_energies)
    if plan.reference_energies != "least-squares":
        raise ValueError(f"reference_energies must be 'least-squares' or a table, got {plan.reference_energies!r}")
    return least_squares_reference(data)


def _varies(values: list[Tensor]) -> bool:
    return len(torch.cat(values).unique()) > 1


def _mean_neighbors(data: Dataset, cutoff: float) -> float:
    """Mean number of neighbours over (at most 100) structures, which normalises the input embedding."""
    batches = Batches(data.subset(range(min(len(data), 100))), cutoff)
    edges, atoms = 0, 0
    for system, lists, _ in batches.in_order(10):
        edges, atoms = edges + lists.n_edges, atoms + system.n_atoms
    return max(edges / atoms, 1.0)
