"""Configuration: official defaults and keys, every bad value named, round trip."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from e2former_calc.potentials.e2former_v2 import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.official_config import read_official_config

SMALLEST: dict[str, Any] = {
    "dataset_name_list": "omol25",
    "backbone_config": {"name": "e2former", "encoder": "default", "attn_type": "so2-first-order"},
}


def _read(backbone: dict[str, Any] | None = None, *, variant: str = "main", **top: Any) -> E2FormerV2Config:
    values = deepcopy(SMALLEST) | top
    values["backbone_config"] |= backbone or {}
    return read_official_config(values, variant=variant)


def test_defaults_are_the_official_ones() -> None:
    config = _read()
    assert (config.channels, config.lmax, config.conv_multiplicity, config.num_layers) == (128, 2, 32, 6)
    assert (config.num_heads, config.head_width, config.num_basis, config.max_radius) == (4, 32, 128, 4.5)
    assert (config.max_neighbors, config.long_max_neighbors, config.image_limit) == (300, 750, 4)
    assert (config.avg_degree, config.alpha_dropout, config.norm) == (23.01, 0.1, True)
    assert (config.score, config.normalization, config.orders) == ("QK_alpha", "softmax", ("first",) * 6)
    assert (config.long_range, config.long_layers, config.long_lower, config.long_upper) == ("none", 2, 0.1, 12.0)
    assert (config.gradient_forces, config.force_head, config.energy_head) == (True, "none", "mlp")
    assert (config.heads, config.share_heads, config.embedding_layer_norm) == (("omol25",), False, True)


def test_published_example_is_read() -> None:
    config = _read(
        {
            "irreps_node_embedding": "256x0e+256x1e+256x2e",
            "irreps_head": "2x0e+2x1e+2x2e",
            "num_layers": 4,
            "num_attn_heads": 128,
            "attn_scalar_head": 8,
            "number_of_basis": 256,
            "max_neighbors": 32,
            "tp_type": "QK_alpha+triton",
            "ffn_type": "s3",
            "with_cluster": False,
        }
    )
    assert (config.channels, config.conv_multiplicity, config.num_heads, config.head_width) == (256, 2, 128, 8)
    assert (config.max_neighbors, config.cutoff) == (32, 4.5)


@pytest.mark.parametrize(
    ("text", "score", "normalization"),
    [
        ("QK_alpha", "QK_alpha", "softmax"),
        ("QKdot_alpha+triton", "QKdot_alpha", "softmax"),
        ("QKdotS_alpha+sigmoid", "QKdotS_alpha", "sigmoid"),
        ("QK_alpha+triton+softplus", "QK_alpha", "softplus"),
        ("QK_alpha+sigmoid+softplus", "QK_alpha", "softplus"),
    ],
)
def test_attention_types_combine(text: str, score: str, normalization: str) -> None:
    config = _read({"tp_type": text})
    assert (config.score, config.normalization) == (score, normalization)


@pytest.mark.parametrize(
    ("text", "layers", "orders"),
    [
        ("so2-first-order", 2, "first first"),
        ("zero-order", 2, "zero zero"),
        ("so2-first-order+zero-order", 4, "first first zero zero"),
        ("so2-first-order+zero-order", 5, "first first zero zero zero"),
        ("so2-first-order+zero-order", 1, "zero"),
    ],
)
def test_orders_of_the_layers(text: str, layers: int, orders: str) -> None:
    assert _read({"attn_type": text, "num_layers": layers}).orders == tuple(orders.split())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, "none"),
        (None, "none"),
        ("", "none"),
        ("node", "node"),
        ("node_bell", "node_bell"),
        ("bell_node", "node_bell"),
    ],
)
def test_long_range_modes(value: object, expected: str) -> None:
    assert _read({"with_cluster": value}).long_range == expected


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("None", None), (7, 7)])
def test_neighbor_cap_may_be_absent(value: object, expected: int | None) -> None:
    config = _read({"max_neighbors": value})
    assert config.max_neighbors == expected
    assert config.long_max_neighbors == (None if expected is None else 17)


@pytest.mark.parametrize(
    ("top", "force_head", "energy_head"),
    [
        ({}, "none", "mlp"),
        ({"with_moe": "painn"}, "none", "mlp"),
        ({"with_moe": "escn"}, "none", "escn"),
        ({"AutoGradForce": False}, "linear", "mlp"),
        ({"AutoGradForce": False, "with_moe": "painn"}, "painn", "mlp"),
        ({"AutoGradForce": False, "with_moe": "escn"}, "escn", "escn"),
    ],
)
def test_heads_follow_the_training_choices(top: dict[str, Any], force_head: str, energy_head: str) -> None:
    config = _read(**top)
    assert (config.force_head, config.energy_head) == (force_head, energy_head)


def test_several_heads_are_split_and_shared() -> None:
    config = _read(dataset_name_list="omol25, tzvpd", head_cfg_str="share")
    assert config.heads == ("omol25", "tzvpd")
    assert config.share_heads


@pytest.mark.parametrize(
    ("norm", "embedding", "expected"),
    [
        ("rms_norm_sh", "default", (True, True)),
        ("rms_norm_sh_BL", "wolayernorm", (True, False)),
        ("identity", "x", (False, True)),
    ],
)
def test_norms(norm: str, embedding: str, expected: tuple[bool, bool]) -> None:
    config = _read({"norm_layer": norm, "edge_embedtype": embedding})
    assert (config.norm, config.embedding_layer_norm) == expected


@pytest.mark.parametrize(
    "key", ["seed", "lr", "data_path_list", "save_dir", "wandb_project", "swanlab_mode", "loss_fn"]
)
def test_training_keys_are_ignored(key: str) -> None:
    assert _read(**{key: "anything"}) == _read()


def test_unknown_backbone_keys_are_ignored_as_in_the_official_code() -> None:
    assert _read({"num_encoder_layers": 12}) == _read()


def test_cutoff_is_the_longest_edge() -> None:
    assert _read({"with_cluster": "node", "long_cutoff_upper": 9.0}).cutoff == 9.0
    assert _read({"with_cluster": "node", "long_cutoff_upper": 3.0}).cutoff == 4.5
    assert _read({"long_cutoff_upper": 9.0}).cutoff == 4.5


def test_legacy_defaults() -> None:
    config = _read({"pbc_max_radius": 5.0, "ffn_type": "s3", "name": "e2formerv2"}, variant="legacy")
    assert (config.variant, config.pbc_max_radius, config.max_neighbors, config.long_lower) == ("legacy", 5.0, 20, 2.5)


BAD_BACKBONE = {
    "name='equiformer'": {"name": "equiformer"},
    "name='None'": {"name": None},
    "basis_type='bessel'": {"basis_type": "bessel"},
    "norm_layer='layer_norm'": {"norm_layer": "layer_norm"},
    "encoder='transformer'": {"encoder": "transformer"},
    "ffn_type='grid'": {"ffn_type": "grid"},
    "tp_type='QK'": {"tp_type": "QK"},
    "tp_type='QK_alpha[+]relu'": {"tp_type": "QK_alpha+relu"},
    "attn_type='first-order'": {"attn_type": "first-order"},
    "attn_type='zero-order[+]so2-first-order' does not exist": {"attn_type": "zero-order+so2-first-order"},
    "attn_type='zero-order[+]zero-order[+]zero-order'": {"attn_type": "zero-order+zero-order+zero-order"},
    "with_cluster='True'": {"with_cluster": "True"},
    "irreps_node_embedding='8x0e[+]4x1e'": {"irreps_node_embedding": "8x0e+4x1e"},
    "irreps_node_embedding='8x0e[+]8x2e'": {"irreps_node_embedding": "8x0e+8x2e"},
    "irreps_node_embedding='8x0e[+]8x1o'": {"irreps_node_embedding": "8x0e+8x1o"},
    "irreps_head='2x1e'": {"irreps_head": "2x1e"},
    "num_layers must be an integer, got 2.5": {"num_layers": 2.5},
    "num_attn_heads must be an integer, got '4'": {"num_attn_heads": "4"},
    "number_of_basis must be an integer, got True": {"number_of_basis": True},
    "max_radius must be a number, got '4.5'": {"max_radius": "4.5"},
    "max_neighbors must be an integer or null, got 'all'": {"max_neighbors": "all"},
    "lmax must be 1 ... 11, got 0": {"irreps_node_embedding": "8x0e"},
    "lmax must be 1 ... 11, got 12": {"irreps_node_embedding": "+".join(f"8x{degree}e" for degree in range(13))},
    r"channels \(128\) must be a multiple of num_attn_heads \(3\)": {"num_attn_heads": 3},
    r"channels \(128\) must be a multiple of num_attn_heads \(0\)": {"num_attn_heads": 0},
    "attn_scalar_head must be even, got 1 [*] 3": {"num_attn_heads": 1, "attn_scalar_head": 3},
    "attn_scalar_head.*4 [*] 0": {"attn_scalar_head": 0},
    "number_of_basis must be at least 2, got 1": {"number_of_basis": 1},
    "max_radius must be positive, got 0.0": {"max_radius": 0},
    "max_radius.* nan": {"max_radius": float("nan")},
    "max_radius.* inf": {"max_radius": float("inf")},
    "max_neighbors must be at least 1 or None, got 0": {"max_neighbors": 0},
    "num_layers must be at least 1, got 0": {"num_layers": 0},
    "num_layers must be at least 1, got -2": {"num_layers": -2},
    "long_cutoff_lower must be below long_cutoff_upper, got 5.0 and 4.0": {
        "long_cutoff_lower": 5,
        "long_cutoff_upper": 4,
    },
    "avg_degree must be positive, got -1.0": {"avg_degree": -1},
    "alpha_drop.* 1.5": {"alpha_drop": 1.5},
    "alpha_drop.* -0.1": {"alpha_drop": -0.1},
    "(channels|irreps_node_embedding).*0": {"irreps_node_embedding": "0x0e+0x1e"},
    "(conv_multiplicity|irreps_head).*0": {"irreps_head": "0x0e+0x1e"},
    "pbc_expanded_num_cell_per_direction.*-1": {"pbc_expanded_num_cell_per_direction": -1},
    "long_range_layers.*-1": {"with_cluster": "node", "long_range_layers": -1},
}
BAD_TOP = {
    "dataset_name_list names no head": {"dataset_name_list": " , "},
    r"unknown top-level keys \['comment', 'learning_rate'\]": {"comment": 1, "learning_rate": 2},
    "AutoGradForce must be true or false, got 'no'": {"AutoGradForce": "no"},
}
BAD_LEGACY = {
    "variant='legacy' needs pbc_max_radius": {},
    "pbc_max_radius must be a number, got 'x'": {"pbc_max_radius": "x"},
    "pbc_max_radius.*-1": {"pbc_max_radius": -1.0},
    "tp_type='QK_alpha[+]softplus' does not exist in the legacy variant": {"tp_type": "QK_alpha+softplus"},
    "ffn_type='default' is not supported with variant='legacy'": {"ffn_type": "default"},
}
BAD_FIELDS = {
    "score.*'QK'": {"score": "QK"},
    "normalization.*'relu'": {"normalization": "relu"},
    "orders.*second": {"orders": ("first", "second")},
    "num_layers must be at least 1, got 2|orders": {"orders": ("first",)},
    "long_range.*'cluster'": {"long_range": "cluster"},
    "force_head.*'moe'": {"force_head": "moe"},
    "energy_head.*'moe'": {"energy_head": "moe"},
    "AutoGradForce is false but there is no force head": {"gradient_forces": False},
    "variant must be 'main' or 'legacy', got 'new'": {"variant": "new"},
}


@pytest.mark.parametrize("message", BAD_BACKBONE)
def test_bad_values_of_the_backbone_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _read(BAD_BACKBONE[message])


@pytest.mark.parametrize("message", BAD_TOP)
def test_bad_values_at_the_top_level_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _read(**BAD_TOP[message])


@pytest.mark.parametrize("message", BAD_LEGACY)
def test_bad_values_of_the_legacy_variant_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _read({"ffn_type": "s3"} | BAD_LEGACY[message], variant="legacy")


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize("message", BAD_FIELDS)
def test_bad_fields_are_named(message: str, config: E2FormerV2Config) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **BAD_FIELDS[message])


def test_all_problems_stand_in_one_message() -> None:
    with pytest.raises(ValueError, match=r"unknown top-level.*num_layers must be an integer.*basis_type='x'"):
        _read({"basis_type": "x", "num_layers": "two"}, comment="mine")


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="variant must be 'main' or 'legacy', got 'paper'"):
        _read(variant="paper")


@pytest.mark.parametrize("values", [{}, {"backbone_config": None}, {"backbone_config": "e2former"}])
def test_other_files_are_recognized_as_such(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an official E2Former-V2 YAML: it has no `backbone_config` mapping"):
        read_official_config(values)


def test_round_trip_through_json(config: E2FormerV2Config) -> None:
    for original in (config, replace(config, long_range="node_bell", max_neighbors=None, heads=("a", "b"))):
        assert E2FormerV2Config.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_unknown_fields_of_a_newer_version_are_refused(config: E2FormerV2Config) -> None:
    with pytest.raises(ValueError, match=r"unknown configuration fields \['spin_orbit'\]: the file is from a newer"):
        E2FormerV2Config.from_dict(config.to_dict() | {"spin_orbit": True})


def test_missing_fields_are_named(config: E2FormerV2Config) -> None:
    values = config.to_dict()
    del values["num_heads"]
    with pytest.raises(ValueError, match=r"incomplete configuration: .*'num_heads'"):
        E2FormerV2Config.from_dict(values)
