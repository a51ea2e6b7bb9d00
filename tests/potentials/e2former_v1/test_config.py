"""Configurations that cannot be are refused by name; those that can survive a round trip."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from e2former_calc.potentials.e2former_v1 import E2FormerV1Config

UNKNOWN_WORDS = [
    ({"variant": "other"}, "variant must be 'scitix' or 'modular' or 'microsoft' or 'lsr', got 'other'"),
    ({"orders": ("first", "third")}, r"orders must consist of .*, got \['third'\]"),
]
BAD = [
    ({"encoder": "dit"}, "encoder='dit' does not exist in variant 'scitix'"),
    ({"feed_forward_dropout": 1.0}, r"proj_drop must be in \[0, 1\), got 1.0"),
    ({"drop_path": -0.1}, r"drop_path_rate must be in \[0, 1\), got -0.1"),
    ({"variant": "microsoft", "encoder": "transformer"}, "encoder='transformer' does not exist in variant 'microsoft'"),
    ({"clusters": "kmeans"}, "clusters='kmeans' do not exist in variant 'scitix'"),
    ({"variant": "modular", "clusters": "kmeans", "orders": ("all", "all")}, "with_cluster needs one attention order"),
    ({"edge_embedding": "eqv2"}, "edge_embedtype 'eqv2' raises an error in the official code of variant 'scitix'"),
    ({"normalization": "smooth_softplus"}, "use_smooth_softplus does not exist in variant 'scitix'"),
    ({"pbc_max_radius": 3.0}, r"pbc_max_radius \(3.0\) must equal max_radius \(4.0\)"),
    ({"feed_forward": ("grid", "s3")}, "grid_nonlinear replaces every other feed-forward part"),
    ({"force_head": "none"}, "there is no force head, so gradient_forces must be true"),
    ({"heads": ()}, "there is no output head"),
    ({"orders": ("first",)}, "attn_type must name as many layers, got 2 and 1"),
    ({"lmax": 0}, r"need lmax >= 1, got 0"),
    ({"lmax": 1, "orders": ("first", "second")}, r"need lmax >= 2, got 1"),
    ({"lmax": 1, "feed_forward": ("2body",)}, r"need lmax >= 2, got 1"),
    ({"num_heads": 3, "head_width": 2}, r"first-order attention works on 8 // 1 channels, .* \(3\) must divide"),
    ({"num_heads": 8, "orders": ("all", "all")}, r"all-order attention works on 8 // 4 channels"),
    ({"num_heads": 1, "head_width": 3}, "must be even and positive, got 1 \\* 3"),
    ({"num_basis": 6, "score": "dot_alpha_small"}, "dot_alpha_small needs number_of_basis >= 8, got 6"),
    ({"max_neighbors": 0}, "max_neighbors must be at least 1, got 0"),
    ({"max_radius": -1.0, "pbc_max_radius": -1.0}, "max_radius must be positive, got -1.0"),
    ({"alpha_dropout": 1.0}, r"alpha_drop must be in \[0, 1\), got 1.0"),
    ({"energy_scale": 0.0}, "energy_scale must be positive, got 0.0"),
    ({"energy_shift": float("nan")}, "energy_shift and force_shift must be finite"),
    ({"variant": "modular", "encoder": "dit", "encoder_heads": 3}, r"encoder_embed_dim \(8\) must be a multiple of"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_impossible_configurations_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(("changes", "message"), UNKNOWN_WORDS)
def test_unknown_words_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_all_problems_are_listed_at_once(config):
    with pytest.raises(ValueError, match=r"max_neighbors must .*; .*max_radius must be positive"):
        replace(config, max_neighbors=0, max_radius=0.0, variant="modular")


def test_configurations_survive_json(config):
    assert E2FormerV1Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_of_newer_versions_are_refused(config):
    with pytest.raises(ValueError, match=r"unknown configuration fields \['shade'\]"):
        E2FormerV1Config.from_dict(config.to_dict() | {"shade": 1})


def test_missing_fields_are_named(config):
    values = config.to_dict()
    del values["lmax"]
    with pytest.raises(ValueError, match=r"incomplete configuration: .*'lmax'"):
        E2FormerV1Config.from_dict(values)


@pytest.mark.parametrize(("variant", "width"), [("scitix", 1), ("modular", 1), ("microsoft", 8), ("lsr", 8)])
def test_small_direction_scores_are_small_in_two_code_bases_only(config, variant, width):
    assert replace(config, variant=variant, score="dot_alpha_small").dot_width == width
