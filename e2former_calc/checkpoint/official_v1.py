"""Official E2Former checkpoints: the layouts of the FairChem trainer, and of the lsr code base.

FairChem: `best_checkpoint.pt` (state_dict, normalizers, elementrefs, config, val_metrics, amp) and `checkpoint.pt`,
which adds the state of training and the running average of the weights (ema). lsr: a state dict under "model", and a
YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from e2former_calc.checkpoint.errors import CheckpointError
from e2former_calc.checkpoint.official_v1_names import rename_state
from e2former_calc.checkpoint.strict_state import differences
from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.e2former_v1.config import Variant
from e2former_calc.potentials.e2former_v1.official_config import VARIANTS, read_official_config

WeightsChoice = Literal["raw", "ema"]
ELEMENT_ROWS = 119

_NOT_PARAMETERS = re.compile(
    r"\.(expand_index|balance_degree_weight|path_norm|inv_freq|offset|W|sphere_grid|Y_lm_conj)$"
    r"|\.(SO3_grid|so3_grid|mappingReduced)\.|\._w3j_|\._compiled_main"
)
"""Tensors of a state dict that the optimiser does not see, so that the running average has none for them."""
_PLACEHOLDER = re.compile(r"\.(tp_without_sort|wigner_6j_tp|body2_tp)\.weight$")
"""Single numbers without influence, some of which are parameters."""


@dataclass(frozen=True)
class OfficialV1:
    """Content of one official file.

    Attributes:
        state: tensors without `module.` and `backbone.`.
        variant: code base, or None where nothing in the file is certain.
        heads: names of the output heads.
        values: configuration in the file, if there is one.
        normalizers: (scale, shift) of "energy" and "forces".
        references: reference energies (eV) by atomic number.
    """

    state: Mapping[str, Tensor]
    variant: Variant | None
    heads: tuple[str, ...]
    values: Mapping[str, Any] | None
    normalizers: Mapping[str, tuple[float, float]]
    references: Tensor


def is_official_v1(content: Any) -> bool:
    """True if the unpickled content looks like an official E2Former checkpoint."""
    if not isinstance(content, Mapping):
        return False
    state, model = content.get("state_dict"), content.get("model")
    if isinstance(state, Mapping):
        return any(re.match(r"(module\.)*backbone\.decoder\.edge_deg_embed_dense\.", str(key)) for key in state)
    if not isinstance(model, Mapping):
        return False
    keys = [str(key) for key in model]
    # E2Former-V2 files have the same prefix, and always embed charge and multiplicity.
    has_layout = any(key.startswith("decoder.decoder.edge_deg_embed_dense.") for key in keys)
    return has_layout and not any(key.startswith("decoder.mix_cm.") for key in keys)


def read_content(content: Mapping[str, Any], weights: WeightsChoice = "raw") -> OfficialV1:
    """Sort the unpickled content of a file.

    Args:
        content: as unpickled.
        weights: "raw" takes the weights of `state_dict`, as the official calculator does; "ema" the running average
            that a full training state holds besides. In `best_checkpoint.pt` the former are the latter.

    Raises:
        CheckpointError: if there is no running average, or it does not fit; or normalizers cannot be read.
    """
    if "state_dict" not in content:
        if weights == "ema":
            raise CheckpointError("this file holds no running average of the weights: use weights='raw'")
        return _read_lsr(content["model"])
    stored = {_strip_module(str(key)): tensor for key, tensor in content["state_dict"].items()}
    if weights == "ema":
        stored |= _running_average(content.get("ema"), stored)
    state = {key.removeprefix("backbone."): tensor for key, tensor in stored.items()}
    config = content.get("config")
    values = config if isinstance(config, Mapping) and isinstance(config.get("model"), Mapping) else None
    return OfficialV1(
        state=state,
        variant=_guess_variant(state),
        heads=("energy",),
        values=values,
        normalizers={name: _normalizer(content, name) for name in ("energy", "forces")},
        references=_references(content),
    )


def build_official_v1(
    official: OfficialV1, values: Mapping[str, Any], variant: str | None
) -> tuple[E2FormerV1Config, E2FormerV1]:
    """Network with the official weights, loaded strictly.

    Raises:
        CheckpointError: one message with everything that is wrong with the configuration, or with the tensors; or if
            the variant must be given.
    """
    try:
        config = read_official_config(values, variant=_choose_variant(official, variant), heads=official.heads)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    (energy_scale, energy_shift), (force_scale, force_shift) = (official.normalizers[k] for k in ("energy", "forces"))
    config = replace(
        config,
        energy_scale=energy_scale,
        energy_shift=energy_shift,
        force_scale=force_scale,
        force_shift=force_shift,
    )
    model = initialize_v1(config)
    renamed, names = rename_state(config, official.state)
    problems = differences(model.state_dict(), renamed, names) + _check_basis(config, official.state)
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit its configuration (variant {config.variant!r}):\n  "
            + "\n  ".join(problems)
            + "\nGive the configuration that belongs to this file (config=...), or the right variant."
        )
    return config, load_weights_v1(model, renamed)


def initialize_v1(config: E2FormerV1Config) -> E2FormerV1:
    """Network with random weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return E2FormerV1(config)


def load_weights_v1(model: E2FormerV1, state: Mapping[str, Tensor]) -> E2FormerV1:
    """Fill a network with weights under our own names, strictly; ready for inference."""
    model.load_state_dict(dict(state), strict=True)
    return model.eval().requires_grad_(False)


def _choose_variant(official: OfficialV1, variant: str | None) -> Variant:
    if variant is not None and variant not in VARIANTS:
        raise CheckpointError(f"variant must be one of {list(VARIANTS)}, got {variant!r}")
    chosen = variant if variant is not None else official.variant
    if chosen is None:
        raise CheckpointError(
            f"nothing in this file says which code base it belongs to: choose variant=... from {list(VARIANTS)}"
        )
    return cast(Variant, chosen)


def _guess_variant(state: Mapping[str, Tensor]) -> Variant | None:
    """The code base whose tensors a FairChem file has."""
    projected = any(key.startswith("embed_proj.") for key in state)
    separate = any(".ga.alpha_module." in key for key in state)
    if separate:
        return "modular" if projected else "scitix"
    return "microsoft" if projected and any(key.startswith("dit_gbf.") for key in state) else None


def _strip_module(key: str) -> str:
    return re.sub(r"^(module\.)+", "", key)


def _read_lsr(state: Mapping[str, Tensor]) -> OfficialV1:
    renamed = {}
    for key, tensor in state.items():
        stripped = _strip_module(key)
        renamed[stripped.removeprefix("molfm_finetune_head.").removeprefix("decoder.")] = tensor
    heads = dict.fromkeys(key.split(".")[1] for key in renamed if key.startswith("energy_heads."))
    return OfficialV1(
        state=renamed,
        variant="lsr",
        heads=tuple(heads),
        values=None,
        normalizers={"energy": (1.0, 0.0), "forces": (1.0, 0.0)},
        references=torch.zeros(ELEMENT_ROWS, dtype=torch.float64),
    )


def _normalizer(content: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Scale and shift of one target; (1, 0) without a normalizer."""
    stored = (content.get("normalizers") or {}).get(name)
    if stored is None:
        return 1.0, 0.0
    scale = stored.get("rmsd", stored.get("std"))
    if scale is None or "mean" not in stored:
        raise CheckpointError(f"the normalizer of {name!r} must hold mean and rmsd (or std), it holds {sorted(stored)}")
    return float(scale), float(stored["mean"])


def _references(content: Mapping[str, Any]) -> Tensor:
    """Reference energies that are added for every atom; zero without `elementrefs`."""
    stored = (content.get("elementrefs") or {}).get("energy")
    if stored is None:
        return torch.zeros(ELEMENT_ROWS, dtype=torch.float64)
    references: Tensor = stored["element_references"]
    return references.to(torch.float64)


def _running_average(ema: Any, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Averaged weights by name; the file lists them in the order of the parameters, shared ones once."""
    shadow: list[Tensor] | None = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if shadow is None:
        raise CheckpointError("this file holds no running average of the weights: use weights='raw'")
    remaining = list(shadow)
    average: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in stored.items():
        if _NOT_PARAMETERS.search(key) or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        fits = bool(remaining) and remaining[0].shape == tensor.shape
        if fits:
            average[key] = remaining.pop(0)
        elif not _PLACEHOLDER.search(key):
            raise CheckpointError(f"the running average does not fit the parameter {key}: use weights='raw'")
    if remaining:
        raise CheckpointError(f"the running average has {len(remaining)} tensors too many: use weights='raw'")
    return average


def _check_basis(config: E2FormerV1Config, state: Mapping[str, Tensor]) -> list[str]:
    """The stored basis centres say which cutoff the file was trained with."""
    stored = state.get("decoder.rbf.offset")
    if stored is None or stored.shape != (config.num_basis,):
        return []
    expected = torch.linspace(0.0, config.max_radius, config.num_basis)
    if torch.allclose(stored.float(), expected, rtol=1e-5, atol=1e-6):
        return []
    return [
        f"rbf.offset ends at {float(stored[-1]):.4f} Å but the configuration says max_radius={config.max_radius} Å: "
        "correct max_radius"
    ]
