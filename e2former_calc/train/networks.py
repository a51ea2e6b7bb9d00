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
from e2former_calc.checkpoint.card import UNKNOWN
from e2former_calc.checkpoint.loading import Network, NetworkConfig
from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
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


ORIGINAL_NETWORK: dict[str, Any] = {
    "variant": "lsr", "heads": (HEAD,), "channels": 64, "lmax": 2, "conv_multiplicity": 8, "num_layers": 2,
    "num_heads": 8, "head_width": 8, "num_basis": 32, "max_radius": 5.0, "alpha_dropout": 0.0, "force_head": "none",
    "gradient_forces": True, "encoder_channels": 64,
}  # fmt: skip
"""Defaults for the original E2Former: gradient forces, no neighbour cap, attention weights as smooth as they get."""
NO_LIMITS: dict[str, Any] = {"max_neighbors": 1_000_000, "image_limit": 1000, "image_atoms": 1_000_000_000}
"""Limits of the official E2Former code, so high that none is reached: training keeps every pair."""

Built = tuple[NetworkConfig, Network, str]
"""Configuration, network, and how to cite the architecture."""


def fresh(plan: TrainingPlan, data: Dataset) -> LoadedModel:
    """Network with random weights and reference energies from the data.

    Raises:
        ValueError: for an unknown architecture, a bad configuration, or data whose charge or spin the network ignores.
    """
    values = dict(plan.network)
    architecture = values.pop("architecture", "e2former_v2")
    builders = {"e2former_v2": _fresh_v2, "e2former_v1": _fresh_v1}
    if architecture not in builders:
        raise ValueError(f"section model: architecture must be {' or '.join(builders)}, got {architecture!r}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(plan.settings.seed)
        config, model, citation = builders[architecture](values, data)
    table = _reference(plan.reference_energies, data)
    original = isinstance(config, E2FormerV1Config)
    card = ModelCard(
        name=HEAD,
        architecture=architecture,
        variant=config.variant,
        cutoff=config.cutoff,
        max_neighbors=None if original else config.max_neighbors,
        elements=tuple(sorted(data.elements)),
        heads=config.heads,
        default_head=config.heads[0],
        forces="gradient",
        uses_charge=_varies([s.charge for s in data.systems]),
        uses_spin=_varies([s.spin for s in data.systems]),
        parameters=sum(p.numel() for p in model.parameters()),
        compositions=tuple(data.formulas) if len(data.formulas) == 1 else (),
        citation=f"architecture: {citation}",
        source="",
        source_sha256="",
    )
    heads = config.heads
    return LoadedModel(Path(), model, card, config, dict.fromkeys(heads, table), dict.fromkeys(heads, data.elements))


def _fresh_v2(given: Mapping[str, Any], data: Dataset) -> Built:
    values = {**SMOOTH_NETWORK, **given}
    values.setdefault("avg_degree", _mean_neighbors(data, float(values["max_radius"])))
    values.setdefault("orders", ["first"] * int(values["num_layers"]))
    config = E2FormerV2Config.from_dict(values)
    return config, E2FormerV2(config), "E2Former-V2, arXiv:2601.16622"


def _fresh_v1(given: Mapping[str, Any], data: Dataset) -> Built:
    limits = sorted(set(given) & set(NO_LIMITS))
    if limits:
        raise ValueError(
            f"section model: {limits} are limits of the official code; training keeps every pair: leave them out"
        )
    values = {**ORIGINAL_NETWORK, **NO_LIMITS, **given}
    values.setdefault("pbc_max_radius", values["max_radius"])
    values.setdefault("orders", ["first"] * int(values["num_layers"]))
    values.setdefault("normalization", "smooth_softplus" if values["variant"] == "lsr" else "smooth_softmax")
    config = E2FormerV1Config.from_dict(values)
    _check_trainable(config, data)
    return config, E2FormerV1(config), "E2Former, arXiv:2501.19216"


def _check_trainable(config: E2FormerV1Config, data: Dataset) -> None:
    """Refuse what an original E2Former cannot learn from files of structures."""
    if config.clusters == "fragments":
        raise ValueError(
            "clusters 'fragments' must be given for every structure, which training from files cannot do: "
            "use a model without clusters"
        )
    differing = [name for name in ("charge", "spin") if _varies([getattr(s, name) for s in data.systems])]
    if differing and not config.uses_charge:
        raise ValueError(
            f"the training frames differ in {' and '.join(differing)}, which variant {config.variant!r} of E2Former "
            "does not see: use variant 'modular' or architecture e2former_v2"
        )


def design_failures(config: NetworkConfig) -> list[str]:
    """What a network cannot do however it is trained, for its card."""
    if not isinstance(config, E2FormerV1Config):
        return []
    failures = [
        "by design of the architecture the energy jumps where a pair crosses the cutoff: it is not conserved in long "
        "NVE runs"
    ]
    if config.energy_shift:
        failures.append(
            f"every structure has a constant of {config.energy_shift:g} eV, so energies of structures of other size do "
            "not add up"
        )
    return failures


def fine_tuned(plan: TrainingPlan, data: Dataset) -> tuple[LoadedModel, str]:
    """The model to start from with the head that will be trained, and the name of that head.

    Raises:
        CheckpointError: if the model cannot be loaded, or has no such head, or already has the new one.
        ValueError: if the model cannot be trained on these data.
    """
    loaded = load_model(str(plan.start_from), plan.config, variant=plan.variant, weights=plan.weights)
    head = loaded.choose_head(plan.head)
    if isinstance(loaded.config, E2FormerV1Config):
        _check_trainable(loaded.config, data)
        loaded = _without_limits(loaded, loaded.config)
    if plan.new_head is not None:
        loaded, head = _with_new_head(loaded, head, plan.new_head, data), plan.new_head
    if plan.reference_energies == "keep":
        return loaded, head
    explained = torch.zeros_like(data.energy)
    if plan.reference_energies == "least-squares":
        explained = _network_energies(loaded, head, data)
    table = _reference(plan.reference_energies, replace(data, energy=data.energy - explained))
    return replace(loaded, reference_energies={**loaded.reference_energies, head: table}), head


def _without_limits(loaded: LoadedModel, config: E2FormerV1Config) -> LoadedModel:
    """An original E2Former for training: with every pair, and without a force head, which would not be trained."""
    config = replace(config, **NO_LIMITS, force_head="none", gradient_forces=True)
    with torch.random.fork_rng(devices=[]):
        model = E2FormerV1(config)
    kept = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in loaded.model.state_dict().items() if name in kept})
    card = replace(
        loaded.card, max_neighbors=None, forces="gradient", intended_use=UNKNOWN,
        parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    return replace(loaded, model=model, config=config, card=card)


def _with_new_head(loaded: LoadedModel, head: str, new: str, data: Dataset) -> LoadedModel:
    """One head more, with the weights and reference energies of `head`."""
    config = loaded.config
    if not isinstance(config, E2FormerV2Config):
        raise CheckpointError(
            f"{loaded.path.name} is an original E2Former, new_head works with E2Former-V2 models only: leave out "
            f"new_head={new!r} to train its head {head!r}"
        )
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
