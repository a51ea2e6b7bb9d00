"""Official YAML files: what is read, refused and ignored."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from e2former_calc.potentials.e2former_v1.official_config import read_official_config

BACKBONE: dict[str, Any] = {
    "model": "src.models.E2Former_wrapper.E2FormerBackbone",
    "encoder": "default",
    "max_neighbors": 20,
    "irreps_node_embedding": "16x0e+16x1e+16x2e",
    "num_layers": 4,
    "pbc_max_radius": 5.0,
    "max_radius": 5.0,
    "basis_type": "gaussiansmear",
    "number_of_basis": 16,
    "num_attn_heads": 4,
    "attn_scalar_head": 8,
    "irreps_head": "4x0e+4x1e+4x2e",
    "norm_layer": "rms_norm_sh_BL",
    "attn_type": "first-order",
    "tp_type": "QK_alpha",
    "edge_embedtype": "default",
    "ffn_type": "default",
    "encoder_embed_dim": 24,
    "ffn_embedding_dim": 32,
    "num_attention_heads": 4,
    "num_encoder_layers": 2,
}
HEADS = {"energy": {"module": "x.E2FormerEasyEnergyHead"}, "forces": {"module": "x.E2FormerEasyForceHead"}}


def read(variant: str = "scitix", heads: Any = HEADS, **changes: Any) -> Any:
    backbone = {k: v for k, v in (BACKBONE | changes).items() if v != "absent"}
    return read_official_config({"model": {"backbone": backbone, "heads": heads}}, variant=variant)


def ignored(variant: str = "scitix", **changes: Any) -> str:
    """Text of the warning about settings without effect."""
    with pytest.warns(UserWarning, match="the official code of variant") as caught:
        read(variant, **changes)
    return str(caught[0].message)


def test_sizes_are_read():
    config = read()
    assert (config.channels, config.lmax, config.conv_multiplicity, config.orders) == (16, 2, 4, ("first",) * 4)
    assert (config.force_head, config.gradient_forces, config.norm) == ("linear", False, "rms_norm_sh")


@pytest.mark.parametrize("order", ["zero", "first", "second", "all"])
def test_every_order_is_read(order):
    assert read(attn_type=f"{order}-order").orders == (order,) * 4


def test_schedules_are_read():
    assert read(attn_type="first-order3+second-order1").orders == ("first", "first", "first", "second")


@pytest.mark.parametrize("score", ["QK_alpha", "dot_alpha", "dot_alpha_small"])
@pytest.mark.parametrize(("suffix", "weights"), [("", "softmax"), ("+use_smooth_softmax", "smooth_softmax")])
def test_scores_and_their_suffix_are_read(score, suffix, weights):
    config = read(tp_type=score + suffix)
    assert (config.score, config.normalization) == (score, weights)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("default", ("s2",)), ("eqv2ffn", ("s2",)), ("s3", ("s3",)), ("s2+s3", ("s2", "s3")),
     ("default+2body", ("s2", "2body")), ("2body", ("2body",)), ("grid_nonlinear", ("grid",))],
)  # fmt: skip
def test_feed_forward_sections_are_read(text, parts):
    assert read(ffn_type=text).feed_forward == parts


@pytest.mark.parametrize(("text", "norm"), [("default", True), ("highorder", True), ("elec_wolayernorm", False)])
def test_edge_embeddings_are_read(text, norm):
    assert read(edge_embedtype=text).embedding_layer_norm is norm


def test_encoders_are_read_where_they_exist():
    config = read("modular", encoder="transformer")
    assert (config.encoder, config.encoder_channels, config.encoder_hidden) == ("transformer", 24, 32)
    assert read("microsoft", encoder="dit").encoder == "dit"


def test_clusters_are_read_where_they_exist():
    assert read("modular", with_cluster=True).clusters == "kmeans"
    assert read("lsr", with_cluster=True, use_rdkit=True).clusters == "fragments"


def test_gradient_heads_are_read():
    config = read(heads={"energy": {"module": "x.E2FormerGradEnergyHead"}})
    assert (config.gradient_forces, config.force_head) == (True, "none")


def test_dropout_of_training_is_read():
    config = read(alpha_drop=0.3, proj_drop=0.2, drop_path_rate=0.1)
    assert (config.alpha_dropout, config.feed_forward_dropout, config.drop_path) == (0.3, 0.2, 0.1)


@pytest.mark.parametrize("name", ["math", "memory_efficient", "flash"])
def test_kernel_names_of_the_readme_say_nothing_about_the_mathematics(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(atten_name=name) == read()


REFUSED = [
    ({"attn_type": "escn"}, "attn_type='escn' must be one of"),
    ({"attn_type": "first-order2+second-order1"}, "names 3 layers, but num_layers is 4"),
    ({"attn_type": "first-order12+second-order1"}, "layer counts below ten"),
    ({"tp_type": "cosine"}, "tp_type='cosine' must be one of"),
    ({"tp_type": "QK_alpha+fast"}, r"tp_type='QK_alpha\+fast' must be one of"),
    ({"basis_type": "bessel"}, r"basis_type='bessel' .*official code raises an error"),
    ({"norm_layer": "layer_norm_sh_BL"}, r"norm_layer='layer_norm_sh_BL' .*official code raises an error"),
    ({"norm_layer": "batch"}, "norm_layer='batch' is not one of"),
    ({"ffn_type": "s3+3body"}, r"ffn_type='s3\+3body' contains \['3body'\]"),
    ({"ffn_type": "edge_attn"}, r"contains \['edge_attn'\]"),
    ({"edge_embedtype": "fancy"}, "edge_embedtype='fancy' must contain"),
    ({"edge_embedtype": "eqv2"}, "edge_embedtype 'eqv2' raises an error in the official code"),
    ({"irreps_node_embedding": "16x0e+8x1e"}, "irreps_node_embedding='16x0e.8x1e' must list"),
    ({"irreps_node_embedding": "16x0e+16x1o"}, "must list 0e, 1e"),
    ({"irreps_head": "4x0e+4x1e"}, "irreps_head has degrees up to 1, irreps_node_embedding up to 2"),
    ({"max_neighbors": "many"}, "max_neighbors must be an integer, got 'many'"),
    ({"max_radius": None}, "max_radius must be a number, got None"),
    ({"pbc_max_radius": 12.0}, r"pbc_max_radius \(12.0\) must equal max_radius"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_the_official_code_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_unknown_heads_are_refused():
    with pytest.raises(ValueError, match=r"heads.forces.module='src.E2Former.DirectForceHead' is not one of"):
        read(heads=HEADS | {"forces": {"module": "src.E2Former.DirectForceHead"}})


def test_a_missing_energy_head_is_refused():
    with pytest.raises(ValueError, match="has no energy head"):
        read(heads={"forces": HEADS["forces"]})


def test_unsupported_cluster_data_is_refused():
    with pytest.raises(ValueError, match="with_cluster=true needs use_rdkit=true"):
        read("lsr", with_cluster=True, use_rdkit=False)


def test_another_yaml_is_refused():
    with pytest.raises(ValueError, match="this is not an official E2Former YAML"):
        read_official_config({"backbone_config": {}}, variant="scitix")


@pytest.mark.usefixtures("_untyped")
def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"variant must be one of \['scitix', .*'main'"):
        read_official_config({}, variant="main")


IGNORED = [
    ("scitix", {"encoder": "dit"}, "variant 'scitix' ignores encoder='dit'"),
    ("scitix", {"with_cluster": True}, "with_cluster=True"),
    ("scitix", {"add_rope": True, "time_embed": True}, "add_rope=True, time_embed=True"),
    ("scitix", {"atten_name": "xformers"}, "atten_name='xformers'"),
    ("scitix", {"pbc_expanded_token_cutoff": 256}, r"pbc_expanded_token_cutoff=256 (it reads expanded_token_cutoff)"),
    ("scitix", {"ffn_type": "s3+grid_nonlinear"}, "everything but grid_nonlinear"),
    ("scitix", {"colour": 1}, "the unknown keys ['colour']"),
    ("microsoft", {"tp_type": "dot_alpha_small"}, "the ending of tp_type='dot_alpha_small'"),
    ("microsoft", {"encoder": "transformer"}, "encoder='transformer'"),
    ("lsr", {"encoder": "dit"}, "encoder='dit'"),
]


@pytest.mark.parametrize(("variant", "changes", "message"), IGNORED)
def test_what_the_official_code_ignores_is_warned_about_by_name(variant, changes, message):
    assert message in ignored(variant, **changes)
