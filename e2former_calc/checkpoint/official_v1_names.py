"""Names of the tensors of official E2Former checkpoints, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.convolution import convolution_paths

_UNUSED = tuple(
    re.compile(pattern)
    for pattern in (
        r"\.(expand_index|balance_degree_weight|path_norm|inv_freq)$",
        r"\.(SO3_grid|so3_grid|mappingReduced)\.",
        r"\._compiled_main_left_right\.",
        r"_order_tp\.components\.\d+\.",
        r"^decoder\.rbf(_cluster)?\.offset$",
        r"\.poly[12]\.coefficients$",
        r"\.ga\.norm_[12]\.",
        r"^decoder\.(default_node_embedding|heads2basis|norm_tmp|norm_ffn_cluster|norm_cluster_long)\.",
        r"^decoder\.edge_deg_embed_dense\.(proj|linear_sigmaco|electron_density|(source|target)_embedding_elec)\.",
        r"^(boo_embedding|boo_embedding_linear|linear_sigmaco|electron_density)\.",
        r"\.manybody_ffn\.body2_tp\.",
        r"^decoder\.cluster_blocks\.\d+\.(source_embedding|pos_embedding_proj|node_scalar_proj)\.",
    )
)
"""Tensors without influence on the output, and constants that are computed exactly instead."""

_STEM: tuple[tuple[str, str], ...] = (
    (r"^embedding\.", "atom_embedding.element."),
    (r"^embedding_charge\.", "atom_embedding.charge."),
    (r"^embedding_multiplicity\.", "atom_embedding.spin."),
    (r"^embed_proj\.(weight|bias)$", r"projection.first.\1"),
    (r"^embed_proj\.0\.", "projection.first."),
    (r"^embed_proj\.2\.", "projection.norm."),
    (r"^decoder\.unifiedtokentoembedding\.", "projection.last."),
    (r"^decoder\.rbf\.", "basis."),
    (r"^decoder\.edge_deg_embed_dense\.gbf_projs\.", "edge_embedding.radial."),
    (r"^decoder\.edge_deg_embed_dense\.rad_func\.", "edge_embedding.radial.0."),
    (r"^decoder\.edge_deg_embed_dense\.(source|target)_embedding\.", r"edge_embedding.\1_embedding."),
    (r"^decoder\.norm_final\.", "norm_final."),
    (r"^decoder\.blocks\.(\d+)\.norm_1\.", r"blocks.\1.norm."),
    (r"^decoder\.blocks\.(\d+)\.ga\.", r"blocks.\1.attention."),
    (r"^decoder\.blocks\.(\d+)\.", r"blocks.\1.feed_forward."),
    (r"^decoder\.cluster_blocks\.", "clusters.attention."),
    (r"^decoder\.norm_ffn\.(\d+)\.0\.", r"clusters.norms.\1."),
    (r"^decoder\.norm_ffn\.(\d+)\.1\.", r"clusters.feed_forward.\1."),
    (r"^decoder\.norm_cluster(_short)?\.", "clusters.norm_final."),
    (r"^decoder\.final_linear\.", "clusters.join."),
)

_FEED_FORWARD: tuple[tuple[str, str], ...] = (
    (r"\.norm_s2\.", ".norm_sphere."),
    (r"\.norm_s3\.", ".norm_gated."),
    (r"\.norm_manybody\.", ".norm_product."),
    (r"\.ffn_s2\.", ".sphere."),
    (r"\.ffn_s3\.", ".gated."),
    (r"\.gate_s2s3\.0\.", ".mixing."),
    (r"\.gate_manybody\.0\.", ".product_mixing."),
    (r"\.manybody_ffn\.irreps_small_fc_(left|right)\.", r".product.\1."),
    (r"\.manybody_ffn\.linear_final\.", ".product.last."),
    (r"\.ffn_grid_escn\.fc1_sphere\.", ".grid.first."),
    (r"\.ffn_grid_escn\.fc2_sphere\.", ".grid.second."),
    (r"\.ffn_grid_escn\.fc3_sphere\.", ".grid.last."),
    (r"\.so3_linear_1\.", ".first."),
    (r"\.so3_linear_2\.", ".last."),
    (r"\.slinear_1\.", ".first."),
    (r"\.slinear_2\.", ".last."),
    (r"\.gating_linear\.", ".gate."),
    (r"\.gate\.gates\.", ".gate."),
    (r"\.norm_l0\.", ".scalar."),
    (r"\.affine_(weight|bias)$", r".\1"),
)

_ATTENTION: tuple[tuple[str, str], ...] = (
    (r"\.alpha_module\.", "."),
    (r"\.attention_order_module\.", "."),
    (r"\.pos_embedding_proj\.", ".gate_basis."),
    (r"\.node_scalar_proj\.", ".gate_scalars."),
    (r"\.(query|key)_linear\.final_linear\.0\.", r".score.\1.first."),
    (r"\.(query|key)_linear\.final_linear\.1\.", r".score.\1.norm."),
    (r"\.(query|key)_linear\.final_linear\.3\.", r".score.\1.last."),
    (r"\.(query|key)_linear\.", r".score.\1."),
    (r"\.(fc_easy|rad_func_m0)\.", ".score.radial."),
    (r"\.dot_linear\.", ".score.dot."),
    (r"\.fc_m0\.", ".score.last."),
    (r"\.alpha_norm\.", ".score.norm."),
    (r"\.alpha_dot$", ".score.vector"),
    (r"\.(zero_order\.rad_func_intputhead|rad_func_intputhead_zero)\.", ".branches.zero.radial."),
    (r"\.rad_func_intputhead_fir\.", ".branches.first.radial."),
    (r"\.rad_func_intputhead_sec\.", ".branches.second.radial."),
    (r"\.rad_func_intputhead\.", ".branches.ORDER.radial."),
    (r"\.proj_value_fir\.", ".branches.first.value."),
    (r"\.proj_value_sec\.", ".branches.second.value."),
    (r"\.proj_value\.", ".branches.ORDER.value."),
    (r"\.(zero_order\.)?proj_zero\.", ".branches.zero.output."),
    (r"\.proj_first\.", ".branches.first.output."),
    (r"\.proj_sec\.", ".branches.second.output."),
    (r"\.(first|second)_order_tp\.tensor_product_tp_component_1\.weight$", r".branches.\1.convolution"),
)

_ENCODER: tuple[tuple[str, str], ...] = (
    (r"^(invariant_encoder\.)?dit_gbf\.means\.weight$", "encoder.gaussians.mean"),
    (r"^(invariant_encoder\.)?dit_gbf\.stds\.weight$", "encoder.gaussians.std"),
    (r"^(invariant_encoder\.)?dit_gbf\.mul\.weight$", "encoder.gaussians.slope"),
    (r"^(invariant_encoder\.)?dit_gbf\.bias\.weight$", "encoder.gaussians.offset"),
    (r"^(invariant_encoder\.)?gbf_proj\.0\.", "encoder.bias.first."),
    (r"^invariant_encoder\.gbf_proj\.2\.", "encoder.bias.norm."),
    (r"^(invariant_encoder\.gbf_proj\.3|gbf_proj\.2)\.", "encoder.bias.last."),
    (r"^embedding_src\.", "encoder.pair_sum.source_embedding."),
    (r"^embedding_tgt\.", "encoder.pair_sum.target_embedding."),
    (r"^edge_init\.0\.", "encoder.pair_sum.first."),
    (r"^edge_init\.2\.", "encoder.pair_sum.last."),
    (r"^dit_encoder_layers\.(\d+)\.(attn|mlp|adaLN_modulation|adjust_dit_forward|adjust_dit_inverse)\.", r"E.\2.\1."),
    (r"^invariant_encoder\.(?=(attn|mlp|adaLN_modulation|adjust_dit_forward|adjust_dit_inverse)\.)", "E."),
    (r"^invariant_encoder\.attn_ln\.(\d+)\.", r"encoder.layers.\1.norm_1."),
    (r"^invariant_encoder\.ffn_ln\.(\d+)\.", r"encoder.layers.\1.norm_2."),
    (r"^invariant_encoder\.ffn\.(\d+)\.0\.", r"encoder.layers.\1.first."),
    (r"^invariant_encoder\.ffn\.(\d+)\.2\.", r"encoder.layers.\1.last."),
    (r"^E\.attn\.(\d+)\.q_proj\.", r"encoder.layers.\1.attention.query."),
    (r"^E\.attn\.(\d+)\.k_proj\.", r"encoder.layers.\1.attention.key."),
    (r"^E\.attn\.(\d+)\.v_proj\.", r"encoder.layers.\1.attention.value."),
    (r"^E\.attn\.(\d+)\.out_proj\.", r"encoder.layers.\1.attention.output."),
    (r"^E\.mlp\.(\d+)\.", r"encoder.layers.\1.network."),
    (r"^E\.adaLN_modulation\.(\d+)\.", r"encoder.layers.\1.modulation."),
    (r"^E\.adjust_dit_forward\.(\d+)\.", r"encoder.layers.\1.enter."),
    (r"^E\.adjust_dit_inverse\.(\d+)\.", r"encoder.layers.\1.leave."),
)

_HEADS: tuple[tuple[str, str], ...] = (
    (r"^output_heads\.energy\.", "energy_heads.energy."),
    (r"^output_heads\.forces\.", "force_heads.energy."),
    (r"^(energy_heads\.[^.]+)\.0\.", r"\1.first."),
    (r"^(energy_heads\.[^.]+)\.2\.", r"\1.last."),
    (r"^(force_heads\.[^.]+)\.output_network\.0\.", r"\1.first."),
    (r"^(force_heads\.[^.]+)\.output_network\.1\.", r"\1.last."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.vec(1|2)_proj\.", r"\1.vector_\2."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.update_net\.0\.", r"\1.first."),
    (r"^(force_heads\.[^.]+\.(?:first|last))\.update_net\.2\.", r"\1.last."),
)

_LAYERS_WITH_NORM = {"0": "first", "1": "first_norm", "3": "second", "4": "second_norm", "6": "last"}
_LAYERS_WITHOUT_NORM = {"0": "first", "2": "second", "4": "last"}


def rename_state(config: E2FormerV1Config, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our names for the official tensors, and back; tensors without influence are left out.

    Args:
        config: the network.
        state: official tensors; names without `module.` and `backbone.`.
    """
    renamed: dict[str, Tensor] = {}
    official: dict[str, str] = {}
    for key, tensor in state.items():
        if _without_influence(config, key):
            continue
        for name, part in _tensors(config, _rename(config, key), tensor):
            renamed[name], official[name] = part, key
    return renamed, official


def _without_influence(config: E2FormerV1Config, key: str) -> bool:
    if any(pattern.search(key) for pattern in _UNUSED):
        return True
    if key.endswith("alpha_dot"):
        return config.score == "QK_alpha"
    if key.startswith(("embedding_charge.", "embedding_multiplicity.")):
        return not config.uses_charge
    if key.startswith(("dit_gbf.", "embedding_src.", "embedding_tgt.")):
        return config.encoder == "none"
    if key.startswith("decoder.norm_cluster."):
        return config.clusters == "fragments"
    match = re.match(r"decoder\.blocks\.(\d+)\.ga\.(pos_embedding_proj|node_scalar_proj)\.", key)
    if match is None:
        return False
    all_order = int(match[1]) < config.num_layers and config.orders[int(match[1])] == "all"
    return config.variant in ("scitix", "modular") or not all_order


def _rename(config: E2FormerV1Config, key: str) -> str:
    for rules in (_HEADS, _ENCODER, _STEM):
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
    if ".attention." in key and not key.startswith("encoder."):
        for pattern, replacement in _ATTENTION:
            key = re.sub(pattern, replacement, key)
        match = re.match(r"blocks\.(\d+)\.", key)
        layer = int(match[1]) if match else 0
        order = config.orders[min(layer, config.num_layers - 1)]
        key = key.replace(".ORDER.", f".{order}.")
    for pattern, replacement in _FEED_FORWARD:
        key = re.sub(pattern, replacement, key)
    return _name_layer(config, key)


def _name_layer(config: E2FormerV1Config, key: str) -> str:
    """Number of a layer of an edge network to its name."""
    match = re.search(r"radial\.(?:\d+\.)?net\.(\d)\.", key)
    if match is None:
        return key
    with_norm = config.embedding_layer_norm or config.edge_embedding == "eqv2" or not key.startswith("edge_embedding.")
    layers = _LAYERS_WITH_NORM if with_norm else _LAYERS_WITHOUT_NORM
    return key.replace(f"net.{match[1]}.", f"{layers.get(match[1], f'net.{match[1]}')}.")


def _tensors(config: E2FormerV1Config, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Our tensors from one official tensor."""
    if name.endswith((".query.bias", ".key.bias")) or name.startswith("encoder.gaussians."):
        return [(name, tensor.reshape(-1))]
    if name.endswith((".branches.first.convolution", ".branches.second.convolution")):
        order = 1 if ".first." in name else 2
        return _mixing(config, name, tensor, order)
    if config.edge_embedding == "eqv2" and name == "edge_embedding.radial.0.first.weight":
        basis, source, target = tensor.split(
            [config.num_basis, *[(tensor.shape[1] - config.num_basis) // 2] * 2], dim=1
        )
        return [(name, torch.cat([basis, target, source], dim=1))]
    return [(name, tensor)]


def _mixing(config: E2FormerV1Config, name: str, tensor: Tensor, order: int) -> list[tuple[str, Tensor]]:
    """One matrix per output degree from the flat weight, which runs over l_in, then l_out, then [channels, n_out]."""
    n_out = config.num_heads * config.conv_multiplicity
    paths = convolution_paths(config.lmax, order)
    if tensor.numel() % (len(paths) * n_out):
        return [(name, tensor)]
    blocks = tensor.reshape(len(paths), -1, n_out)
    position = {path: index for index, path in enumerate(sorted(paths))}
    mixing = []
    for degree in range(config.lmax + 1):
        rows = [blocks[position[path]].T for path in paths if path[1] == degree]
        mixing.append((f"{name}.mixing.{degree}", torch.cat(rows, dim=1)))
    return mixing
