"""The official state dict of E2Former-V2 (QK_alpha, first order, gradient forces): names, shapes, random weights.

Written from the description of the checkpoint format, not from the reader under test.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Layout = dict[str, tuple[int, ...]]

CONSTANTS = ("Jd_list", "CG_weight", "path_norm", "balance_degree_weight", "rbf.offset", "sph.W", "selected_idx")
"""Parts of the names of tensors that are not trained, besides `expand_index`."""

DECODER = "decoder.decoder."


def official_layout(values: Mapping[str, Any]) -> Layout:
    """Every tensor of the file that belongs to a flattened official configuration."""
    backbone = values["backbone_config"]
    degrees = backbone["irreps_node_embedding"].split("+")
    channels, lmax = int(degrees[0].split("x")[0]), len(degrees) - 1
    multiplicity = int(backbone["irreps_head"].split("x")[0])
    heads, width, basis = (backbone[k] for k in ("num_attn_heads", "attn_scalar_head", "number_of_basis"))
    layout = _stem(channels, lmax, heads, basis)
    for layer in range(backbone["num_layers"]):
        block = f"{DECODER}blocks.{layer}."
        layout |= _norm(f"{block}norm_1", lmax, channels) | _norm(f"{block}norm_ffn", lmax, channels)
        layout |= _scores(f"{block}ga.", channels, lmax, heads=heads, width=width, basis=basis)
        layout |= _convolution(f"{block}ga.", channels, lmax, heads * multiplicity)
        layout |= _feed_forward(f"{block}ffn.", channels, lmax)
    layout |= _norm(f"{DECODER}norm_final", lmax, channels)
    for name in values["dataset_name_list"].split(","):
        for index, rows in (("0", channels), ("2", channels), ("4", 1)):
            layout |= _linear(f"head.energy_heads.{name}.mlp.{index}", rows, channels)
    return layout


def official_state(values: Mapping[str, Any], salt: str) -> dict[str, Tensor]:
    """Reproducible random weights for every trained tensor, and the stored constants."""
    backbone = values["backbone_config"]
    state = {name: _weight(name, shape, salt) for name, shape in official_layout(values).items()}
    state[f"{DECODER}rbf.offset"] = torch.linspace(0, backbone["max_radius"], backbone["number_of_basis"])
    return state


def is_constant(name: str) -> bool:
    """True for tensors that are not trained."""
    return any(part in name for part in CONSTANTS) or name.endswith("expand_index")


def _weight(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    if is_constant(name):
        return torch.zeros(shape)
    seed = zlib.crc32(f"{salt}:{name}".encode())
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    if name.endswith("affine_weight") or (len(shape) == 1 and name.endswith("weight")):
        z = 1 + 0.3 * z
    elif "embedding" in name and name.endswith("weight") and len(shape) == 2 and "unifiedtoken" not in name:
        z = 0.5 * z
    elif len(shape) == 1 or name.endswith("bias"):
        z = 0.2 * z
    else:
        z = z / np.sqrt(shape[-1])
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def _stem(channels: int, lmax: int, heads: int, basis: int) -> Layout:
    embedding = f"{DECODER}edge_deg_embed_dense."
    layout: Layout = {
        "decoder.embedding.weight": (256, channels),
        "decoder.embedding_charge.weight": (30, channels),
        "decoder.embedding_multiplicity.weight": (30, channels),
        f"{DECODER}default_node_embedding.weight": (256, channels),
        f"{DECODER}rbf.offset": (basis,),
        f"{embedding}source_embedding.weight": (300, basis),
        f"{embedding}target_embedding.weight": (300, basis),
        f"{embedding}proj.weight": (lmax + 1, channels, 2 * channels),
        f"{embedding}proj.bias": (channels,),
        f"{embedding}sph.W": (9, 5),
    }
    layout |= {f"{DECODER}Jd_list.{degree}": (2 * degree + 1,) * 2 for degree in range(12)}
    layout |= _linear("decoder.mix_cm.0", channels, 2 * channels)
    layout |= _linear("decoder.unifiedtokentoembedding", channels, channels)
    layout |= _linear(f"{DECODER}heads2basis", basis, heads)
    for degree in range(lmax + 1):
        layout |= _radial(f"{embedding}gbf_projs.{degree}.net.", 3 * basis, min(128, basis // 2), channels)
    return layout


def _scores(prefix: str, channels: int, lmax: int, *, heads: int, width: int, basis: int) -> Layout:
    hidden = heads * width // 2
    layout: Layout = {f"{prefix}{side}_embedding.weight": (256, 128) for side in ("source", "target")}
    layout |= _radial(f"{prefix}fc_easy.net.", basis + 256, min(128, basis // 2), 2 * heads)
    for name in (f"{prefix}query_linear", f"{prefix}key_linear"):
        layout |= {
            f"{name}.weight": (lmax + 1, hidden, channels),
            f"{name}.weight2": (lmax + 1, hidden, channels),
            f"{name}.bias": (1, 1, hidden),
            f"{name}.expand_index": ((lmax + 1) ** 2,),
            f"{name}.final_linear.1.weight": (hidden,),
            f"{name}.final_linear.1.bias": (hidden,),
        }
        layout |= _linear(f"{name}.final_linear.0", hidden, (lmax + 1) * hidden)
        layout |= _linear(f"{name}.final_linear.3", heads * width, hidden)
    return layout


def _convolution(prefix: str, channels: int, lmax: int, n_out: int) -> Layout:
    n_paths = [1] + [3] * (lmax - 1) + [2]
    n_products = sum((2 * degree + 1) * n for degree, n in enumerate(n_paths))
    product = f"{prefix}first_order_tp.so2_tp."
    return {
        f"{prefix}proj_value.weight": (lmax + 1, channels, channels),
        f"{prefix}proj_value.bias": (channels,),
        f"{prefix}proj_first.weight": (lmax + 1, channels, n_out),
        f"{prefix}proj_first.bias": (channels,),
        f"{product}path_norm": (1, (lmax + 1) ** 2, 1),
        f"{product}selected_idx": (n_products,),
        f"{product}CG_weight": (n_products,),
    } | {f"{product}out_linear.{degree}.weight": (n_out, n * channels) for degree, n in enumerate(n_paths)}


def _feed_forward(prefix: str, channels: int, lmax: int) -> Layout:
    layout = _linear(f"{prefix}gate.gates", (lmax + 1) * channels, channels)
    for name in (f"{prefix}slinear_1", f"{prefix}slinear_2"):
        layout |= {f"{name}.weight": (lmax + 1, channels, channels), f"{name}.bias": (channels,)}
    return layout


def _norm(prefix: str, lmax: int, channels: int) -> Layout:
    return {
        f"{prefix}.affine_weight": (lmax + 1, channels),
        f"{prefix}.affine_bias": (channels,),
        f"{prefix}.expand_index": ((lmax + 1) ** 2,),
        f"{prefix}.balance_degree_weight": ((lmax + 1) ** 2, 1),
    }


def _radial(prefix: str, n_in: int, hidden: int, n_out: int) -> Layout:
    layout = _linear(f"{prefix}0", hidden, n_in) | _linear(f"{prefix}3", hidden, hidden)
    layout |= _linear(f"{prefix}6", n_out, hidden)
    for norm in ("1", "4"):
        layout |= {f"{prefix}{norm}.weight": (hidden,), f"{prefix}{norm}.bias": (hidden,)}
    return layout


def _linear(name: str, n_out: int, n_in: int) -> Layout:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
