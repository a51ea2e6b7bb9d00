"""The network that a run starts from: fresh, or that of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.checkpoint import CheckpointError, LoadedModel, ModelCard, load_model
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.e2former_v2.model import resolve_head
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.reference import (
    isolated_atom_reference,
    least_squares_reference,
    reference_from_mapping,
)
from e2former_calc.train.plan import TrainingPlan

HEAD = "default"
SMOOTH_NETWORK: dict[str, Any] = {
    "heads": (HEAD,), "channels": 48, "lmax": 2, "conv_multiplicity": 3, "num_layers": 2, "num_heads": 16,
    "head_width": 4, "num_basis": 32, "max_radius": 5.0, "normalization": "softplus", "alpha_dropout": 0.0,
}  # fmt: skip
"""Defaults that give a smooth, conservative potential: softplus weights, gradient forces, no neighbour cap."""


def fresh(plan: TrainingPlan, data: Dataset) -> LoadedModel:
    """Network with random weights and reference energies from the data."""
    values = {**SMOOTH_NETWORK, **plan.network}
    values.setdefault("avg_degree", _mean_neighbors(data, float(values["max_radius"])))
    values.setdefault("orders", ["first"] * int(values["num_layers"]))
    config = E2FormerV2Config.from_dict(values)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(plan.settings.seed)
        model = E2FormerV2(config)
    table = _reference(plan.reference_energies, data)
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


def fine_tuned(plan: TrainingPlan, data: Dataset) -> tuple[LoadedModel, str]:
    """The model to start from with the head that will be trained, and the name of that head.

    Raises:
        CheckpointError: if the model cannot be loaded, or has no such head, or already has the new one.
    """
    loaded = load_model(str(plan.start_from), plan.config)
    head = loaded.choose_head(plan.head)
    if plan.new_head is not None:
        loaded, head = _with_new_head(loaded, head, plan.new_head, data), plan.new_head
    if plan.reference_energies == "keep":
        return loaded, head
    explained = torch.zeros_like(data.energy)
    if plan.reference_energies == "least-squares":
        explained = _network_energies(loaded, head, data)
    table = _reference(plan.reference_energies, replace(data, energy=data.energy - explained))
    return replace(loaded, reference_energies={**loaded.reference_energies, head: table}), head


def _with_new_head(loaded: LoadedModel, head: str, new: str, data: Dataset) -> LoadedModel:
    """One head more, with the weights and reference energies of `head`."""
    config = loaded.config
    if not isinstance(config, E2FormerV2Config):
        raise CheckpointError(f"{loaded.path.name} is not an E2Former-V2 model: new_head works with those only")
    if new in config.heads:
        raise CheckpointError(f"{loaded.path.name} already has a head {new!r}: choose another name for new_head")
    config = replace(config, heads=(*config.heads, new))
    with torch.random.fork_rng(devices=[]):
        model = E2FormerV2(config)
    state = dict(loaded.model.state_dict())
    stored = resolve_head(head, share_heads=config.share_heads)
    for kind in ("energy_heads", "force_heads"):
        start = f"{kind}.{stored}."
        copies = {f"{kind}.{new}." + name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
        state |= copies
    model.load_state_dict(state)
    card = replace(
        loaded.card, heads=config.heads, default_head=new, parameters=sum(p.numel() for p in model.parameters()),
        elements=tuple(sorted({*loaded.card.elements, *data.elements})),
    )  # fmt: skip
    references = {**loaded.reference_energies, new: loaded.reference_energies[head]}
    elements = {**loaded.elements, new: data.elements}
    return LoadedModel(loaded.path, model, card, config, references, elements)


def _network_energies(loaded: LoadedModel, head: str, data: Dataset) -> Float[Tensor, " frames"]:
    """Energies (eV) of the network without reference energies."""
    zero = {head: torch.zeros_like(loaded.reference_energies[head])}
    potential = EnergyPotential(
        loaded.model, head=head, reference_energies=zero, elements=data.elements, force_mode="gradient",
        neighbor_cap="none",
    )  # fmt: skip
    batches = Batches(data, potential.cutoff)
    energies = [
        potential(system, properties=frozenset({"energy"}), neighbors=lists).energy
        for system, lists, _ in batches.in_order(8)
    ]
    return torch.cat(energies)


def _reference(wanted: str | Mapping[str, float], data: Dataset) -> Float[Tensor, " elements"]:
    if isinstance(wanted, Mapping):
        return reference_from_mapping(wanted)
    return isolated_atom_reference(data) if wanted == "isolated-atoms" else least_squares_reference(data)


def _varies(values: list[Tensor]) -> bool:
    return len(torch.cat(values).unique()) > 1


def _mean_neighbors(data: Dataset, cutoff: float) -> float:
    """Mean number of neighbours over (at most 100) structures, which normalises the input embedding."""
    batches = Batches(data.subset(range(min(len(data), 100))), cutoff)
    edges, atoms = 0, 0
    for system, lists, _ in batches.in_order(10):
        edges, atoms = edges + lists.n_edges, atoms + system.n_atoms
    return max(edges / atoms, 1.0)
