"""Official E2Former-V2 layout: `torch.save` of a dict with the state dict under "model", and a flattened YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from e2former_calc.checkpoint.errors import CheckpointError
from e2former_calc.checkpoint.strict_state import differences
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config

_BLOCK = r"(?:long_range\.)?blocks\.\d+"
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^decoder\.embedding_charge\.", "charge_embedding."),
    (r"^decoder\.embedding_multiplicity\.", "spin_embedding."),
    (r"^decoder\.mix_cm\.0\.", "condition."),
    (r"^decoder\.decoder\.rbf\.offset$", "basis.centers"),
    (r"^decoder\.decoder\.rbf_long\.offset$", "long_range.basis.centers"),
    (r"^decoder\.decoder\.edge_deg_embed_dense\.gbf_projs\.(\d+)\.net\.", r"embedding.radial.\1.net."),
    (r"^decoder\.decoder\.edge_deg_embed_dense\.(source|target)_embedding\.", r"embedding.\1_embedding."),
    (r"^decoder\.decoder\.blocks\.", "blocks."),
    (r"^decoder\.decoder\.long_blocks\.", "long_range.blocks."),
    (r"^decoder\.decoder\.pre_norm_node\.", "long_range.norm_1."),
    (r"^decoder\.decoder\.norm_cluster\.", "long_range.norm_2."),
    (r"^decoder\.decoder\.final_linear\.", "long_range.join."),
    (r"^decoder\.decoder\.norm_final\.", "norm_final."),
    (r"^head\.energy_heads\.", "energy_heads."),
    (r"^head\.force_heads\.", "force_heads."),
    (rf"^({_BLOCK})\.norm_ffn\.", r"\1.norm_2."),
    (rf"^({_BLOCK})\.ga\.", r"\1.attention."),
    (rf"^({_BLOCK})\.ffn\.slinear_1\.", r"\1.feed_forward.first."),
    (rf"^({_BLOCK})\.ffn\.slinear_2\.", r"\1.feed_forward.last."),
    (rf"^({_BLOCK})\.ffn\.gate\.gates\.", r"\1.feed_forward.gate."),
    (r"\.attention\.(fc_easy)\.", ".attention.radial."),
    (r"\.attention\.rad_func_m0\.", ".attention.gate.radial."),
    (r"\.attention\.dot_linear\.", ".attention.gate.dot."),
    (r"\.attention\.fc_m0\.", ".attention.gate.last."),
    (r"\.attention\.direction_linear\.0\.", ".attention.gate.first."),
    (r"\.attention\.direction_linear\.1\.", ".attention.gate.norm."),
    (r"\.attention\.direction_linear\.3\.", ".attention.gate.last."),
    (r"\.attention\.(query|key)_linear\.final_linear\.0\.", r".attention.\1.first."),
    (r"\.attention\.(query|key)_linear\.final_linear\.1\.", r".attention.\1.norm."),
    (r"\.attention\.(query|key)_linear\.final_linear\.3\.", r".attention.\1.last."),
    (r"\.attention\.(query|key)_linear\.", r".attention.\1."),
    (r"\.attention\.proj_value\.", ".attention.value."),
    (r"\.attention\.first_order_tp\.so2_tp\.out_linear\.(\d+)\.weight$", r".attention.convolution.mixing.\1"),
    (r"\.attention\.proj_(first|zero)\.", ".attention.output."),
    (r"\.affine_weight$", ".weight"),
    (r"\.affine_bias$", ".bias"),
    (r"^(energy_heads\.[^.]+)\.mlp\.0\.", r"\1.first."),
    (r"^(energy_heads\.[^.]+)\.mlp\.2\.", r"\1.second."),
    (r"^(energy_heads\.[^.]+)\.mlp\.4\.", r"\1.last."),
    (r"^(force_heads\.[^.]+)\.sing_linear\.", r"\1.linear."),
    (r"^(force_heads\.[^.]+)\.output_network\.0\.", r"\1.first."),
    (r"^(force_heads\.[^.]+)\.output_network\.1\.", r"\1.last."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.vec(1|2)_proj\.", r"\1.vector_\2."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.update_net\.0\.", r"\1.first."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.update_net\.2\.", r"\1.last."),
    (r"^((?:energy|force)_heads\.[^.]+)\.(?:[^.]+\.)?fc1\.", r"\1.first."),
    (r"^((?:energy|force)_heads\.[^.]+)\.(?:[^.]+\.)?fc2\.", r"\1.second."),
    (r"^((?:energy|force)_heads\.[^.]+)\.(?:[^.]+\.)?fc3\.", r"\1.last."),
    (r"^((?:energy|force)_heads\.[^.]+)\.(?:[^.]+\.)?sphharm_weights$", r"\1.sampling"),
    (r"^(force_heads\.[^.]+)\.(?:[^.]+\.)?sphere_points$", r"\1.points"),
)

_WITHOUT_INFLUENCE = tuple(
    re.compile(pattern)
    for pattern in (
        r"^decoder\.embedding\.weight$",
        r"^decoder\.unifiedtokentoembedding\.(weight|bias)$",
        r"^decoder\.decoder\.default_node_embedding\.weight$",
        r"^decoder\.decoder\.heads2basis\.(weight|bias)$",
        r"^decoder\.decoder\.Jd_list\.\d+$",
        r"^decoder\.decoder\.edge_deg_embed_dense\.proj\.(weight|bias)$",
        r"^decoder\.decoder\.edge_deg_embed_dense\.sph\.W$",
        r"\.expand_index$",
        r"\.balance_degree_weight$",
        r"\.so2_tp\.(path_norm|selected_idx|CG_weight)$",
        r"\.ga\.sum_vec$",
        r"^head\.energy_heads\.[^.]+\.(?:[^.]+\.)?sphere_points$",
    )
)
"""Tensors that have zero influence on the output, and constants that are computed exactly instead."""

_LAYERS_WITH_NORM = {"0": "first", "1": "first_norm", "3": "second", "4": "second_norm", "6": "last"}
_LAYERS_WITHOUT_NORM = {"0": "first", "2": "second", "4": "last"}


def is_official_v2(content: Any) -> bool:
    """True if the unpickled content looks like an official E2Former-V2 checkpoint."""
    model = content.get("model") if isinstance(content, Mapping) else None
    return isinstance(model, Mapping) and any(str(k).startswith("decoder.decoder.edge_deg_embed_dense.") for k in model)


def build_official_v2(config: E2FormerV2Config, state: Mapping[str, Tensor]) -> E2FormerV2:
    """Network with the official weights, loaded strictly.

    Raises:
        CheckpointError: one message with all missing, unexpected, wrongly shaped and contradicting tensors.
    """
    model = initialize(config)
    renamed, official_name = rename_state(config, state)
    problems = differences(model.state_dict(), renamed, official_name) + _check_basis(config, state)
    if problems:
        raise CheckpointError(
            "the checkpoint does not fit its configuration:\n  "
            + "\n  ".join(problems)
            + "\nGive the YAML that belongs to this file (config=...), or the right head."
        )
    return load_weights(model, renamed)


def initialize(config: E2FormerV2Config) -> E2FormerV2:
    """Network with random weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return E2FormerV2(config)


def load_weights(model: E2FormerV2, state: Mapping[str, Tensor]) -> E2FormerV2:
    """Fill a network with weights under our own names, strictly; ready for inference."""
    model.load_state_dict(dict(state), strict=True)
    return model.eval().requires_grad_(False)


def rename_state(config: E2FormerV2Config, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our names for the official tensors, and back; tensors without influence are left out."""
    renamed: dict[str, Tensor] = {}
    official: dict[str, str] = {}
    unused_norm = "decoder.decoder.norm_final." if config.long_range != "none" else None
    for key, tensor in state.items():
        unused = unused_norm is not None and key.startswith(unused_norm)
        if unused or any(pattern.search(key) for pattern in _WITHOUT_INFLUENCE):
            continue
        name = _rename(key, config.embedding_layer_norm)
        if name.endswith((".query.bias", ".key.bias")):
            tensor = tensor.reshape(-1)
        renamed[name], official[name] = tensor, key
    return renamed, official


def _rename(key: str, embedding_layer_norm: bool) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    match = re.search(r"radial\.(?:\d+\.)?net\.(\d)\.", key)
    if match:
        with_norm = embedding_layer_norm or not key.startswith("embedding.")
        layers = _LAYERS_WITH_NORM if with_norm else _LAYERS_WITHOUT_NORM
        layer = layers.get(match[1], f"net.{match[1]}")
        key = key.replace(f"net.{match[1]}.", f"{layer}.")
    return key


def _check_basis(config: E2FormerV2Config, state: Mapping[str, Tensor]) -> list[str]:
    """The stored basis centres say which cutoff the file was trained with."""
    problems = []
    ends = {"rbf.offset": ("max_radius", config.max_radius)}
    if config.long_range != "none":
        ends["rbf_long.offset"] = ("long_cutoff_upper", config.long_upper)
    for name, (key, value) in ends.items():
        stored = state.get(f"decoder.decoder.{name}")
        if stored is None or stored.shape != (config.num_basis,):
            continue
        expected = torch.linspace(0.0, value, config.num_basis)
        if not torch.allclose(stored.float(), expected, rtol=1e-5, atol=1e-6):
            problems.append(
                f"{name} ends at {float(stored[-1]):.4f} Å but the configuration says {key}={value} Å: correct {key}"
            )
    return problems
