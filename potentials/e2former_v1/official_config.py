"""Reader of the official YAML of the original E2Former; finds everything that is wrong with it at once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, get_args

from e2former_calc.potentials.e2former_v1.config import (
    Clusters,
    E2FormerV1Config,
    Encoder,
    FeedForward,
    Norm,
    Normalization,
    Order,
    Score,
    Variant,
)

VARIANTS: tuple[str, ...] = get_args(Variant)

_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "rescale_degree": (False,),
    "nonlinear_message": (False,),
    "attn_biastype": ("share",),
    "add_rope": (False,),
    "time_embed": (False,),
    "sparse_attn": (False,),
    "decouple_EF": (False,),
    "force_head": (None, "None"),
    "out_drop": (0, 0.0),
    "use_fp16_backbone": (False,),
    "atten_name": ("math", "memory_efficient", "flash"),
}
"""Keys without effect in the official code, with the values that promise nothing."""

_EXECUTION = """
    model regress_forces direct_force use_padding hidden_size batch_size activation use_compile
    dynamic_sparse_attn_threthod flatten_atoms_threshold pbc_expanded_token_cutoff alpha_drop proj_drop drop_path_rate
    dropout
"""
_READ = """
    irreps_node_embedding num_layers pbc_max_radius max_radius max_neighbors basis_type number_of_basis num_attn_heads
    attn_scalar_head irreps_head norm_layer tp_type attn_type edge_embedtype ffn_type encoder encoder_embed_dim
    ffn_embedding_dim num_attention_heads num_encoder_layers with_cluster use_rdkit
    pbc_expanded_num_cell_per_direction expanded_token_cutoff
"""
KNOWN = frozenset(_EXECUTION.split()) | frozenset(_READ.split()) | frozenset(_NO_EFFECT)

_DEFAULT_ENCODERS = ("default", "none", "None", "", None, False)


def read_official_config(
    values: Mapping[str, Any], *, variant: Variant, heads: tuple[str, ...] = ("energy",)
) -> E2FormerV1Config:
    """Configuration from the official YAML (as a mapping).

    Args:
        values: a FairChem configuration with `model.backbone`, or the flat configuration of the lsr code base.
        variant: code base that the file belongs to.
        heads: names of the output heads.

    Raises:
        ValueError: one message that lists every unknown or contradicting value.

    Warns:
        UserWarning: naming every setting that the official code of this variant accepts and ignores.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {variant!r}")
    return _Reader(values, variant, heads).read()


class _Reader:
    """Translates the official keys and collects everything that is wrong with them."""

    def __init__(self, values: Mapping[str, Any], variant: Variant, heads: tuple[str, ...]) -> None:
        self.variant, self.heads = variant, heads
        self.problems: list[str] = []
        self.ignored: list[str] = []
        model = values.get("model")
        nested = model.get("backbone") if isinstance(model, Mapping) else None
        self.modules = _head_modules(model)
        nested = values.get("backbone_config") if nested is None else nested
        self.backbone: Mapping[str, Any] = nested if isinstance(nested, Mapping) else values
        if "irreps_node_embedding" not in self.backbone:
            raise ValueError(
                "this is not an official E2Former YAML: neither `model.backbone` nor the top level has the key "
                "`irreps_node_embedding`"
            )

    def read(self) -> E2FormerV1Config:
        self._check_keys()
        channels, lmax = self._irreps("irreps_node_embedding")
        multiplicity, head_lmax = self._irreps("irreps_head")
        if head_lmax < lmax:
            self.problems.append(f"irreps_head has degrees up to {head_lmax}, irreps_node_embedding up to {lmax}")
        layers = self._integer("num_layers")
        score, normalization = self._attention_weights()
        embedtype = str(self.backbone.get("edge_embedtype", "default"))
        force_head, gradient = self._force_head()
        fields: dict[str, Any] = {
            "variant": self.variant,
            "heads": self.heads,
            "channels": channels,
            "lmax": lmax,
            "conv_multiplicity": multiplicity,
            "num_layers": layers,
            "num_heads": self._integer("num_attn_heads"),
            "head_width": self._integer("attn_scalar_head"),
            "num_basis": self._integer("number_of_basis"),
            "max_radius": self._number("max_radius"),
            "pbc_max_radius": self._number("pbc_max_radius"),
            "max_neighbors": self._integer("max_neighbors"),
            "image_limit": self._integer("pbc_expanded_num_cell_per_direction", 4),
            "image_atoms": self._integer("expanded_token_cutoff", 512),
            "orders": self._orders(layers),
            "score": score,
            "normalization": normalization,
            "norm": self._norm(),
            "basis": self._basis(),
            "feed_forward": self._feed_forward(),
            "edge_embedding": self._edge_embedding(embedtype),
            "embedding_layer_norm": "wolayernorm" not in embedtype,
            "clusters": self._clusters(),
            "force_head": force_head,
            "gradient_forces": gradient,
            "alpha_dropout": self._number("alpha_drop", 0.1),
            "feed_forward_dropout": self._number("proj_drop", 0.0),
            "drop_path": self._number("drop_path_rate", 0.0),
        } | self._encoder_fields()
        self._complain()
        return E2FormerV1Config(**fields)

    def _complain(self) -> None:
        if self.problems:
            raise ValueError("official configuration: " + "; ".join(self.problems))
        if self.ignored:
            warnings.warn(
                f"the official code of variant {self.variant!r} ignores {', '.join(self.ignored)}; so it is here",
                UserWarning,
                stacklevel=5,
            )

    def _check_keys(self) -> None:
        unknown = sorted(str(key) for key in self.backbone if key not in KNOWN)
        if unknown:
            self.ignored.append(f"the unknown keys {unknown}")
        for key, harmless in _NO_EFFECT.items():
            if key in self.backbone and self.backbone[key] not in harmless:
                self.ignored.append(f"{key}={self.backbone[key]!r}")
        token_cutoff = self.backbone.get("pbc_expanded_token_cutoff", 512)
        if token_cutoff != 512 and self.variant != "lsr":
            self.ignored.append(f"pbc_expanded_token_cutoff={token_cutoff!r} (it reads expanded_token_cutoff)")

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self.backbone.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{key} must be an integer, got {value!r}")
            return 1
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.backbone.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problems.append(f"{key} must be a number, got {value!r}")
            return 1.0
        return float(value)

    def _irreps(self, key: str) -> tuple[int, int]:
        """Multiplicity and largest degree of a string such as 16x0e+16x1e."""
        text = str(self.backbone.get(key)).replace(" ", "")
        parts = [re.fullmatch(r"(\d+)x(\d+)e", part) for part in text.split("+")]
        found = [(int(p[1]), int(p[2])) for p in parts if p]
        complete = len(found) == len(parts) and [degree for _, degree in found] == list(range(len(found)))
        if not complete or len({count for count, _ in found}) != 1:
            self.problems.append(
                f"{key}={text!r} must list 0e, 1e, ... in order with one multiplicity, for instance 16x0e+16x1e"
            )
            return 1, 1
        return found[0][0], len(found) - 1

    def _attention_weights(self) -> tuple[Score, Normalization]:
        text = str(self.backbone.get("tp_type", "QK_alpha"))
        name, *suffixes = text.split("+")
        words: dict[str, Normalization] = {
            "use_smooth_softmax": "smooth_softmax",
            "use_smooth_softplus": "smooth_softplus",
        }
        if name not in get_args(Score) or len(suffixes) > 1 or any(s not in words for s in suffixes):
            self.problems.append(
                f"tp_type={text!r} must be one of {list(get_args(Score))}, alone or with +use_smooth_softmax"
            )
            return "QK_alpha", "softmax"
        score: Score = name  # type: ignore[assignment]
        if score == "dot_alpha_small" and self.variant in ("microsoft", "lsr"):
            self.ignored.append("the ending of tp_type='dot_alpha_small' (it is dot_alpha there)")
        return score, words[suffixes[0]] if suffixes else "softmax"

    def _orders(self, layers: int) -> tuple[Order, ...]:
        text = str(self.backbone.get("attn_type", "first-order"))
        names: dict[str, Order] = {f"{order}-order": order for order in get_args(Order)}
        if text in names:
            return (names[text],) * layers
        parts = [re.fullmatch(r"(.*-order)(\d)", part) for part in text.replace(" ", "").split("+")]
        schedule = [(names.get(p[1]), int(p[2])) for p in parts if p]
        if len(schedule) != 2 or len(parts) != 2 or any(order is None for order, _ in schedule):
            self.problems.append(
                f"attn_type={text!r} must be one of {list(names)}, or two of them with layer counts below ten such as "
                "'first-order4+second-order4'"
            )
            fallback: Order = "first"
            return (fallback,) * layers
        orders = tuple(order for order, count in schedule if order is not None for _ in range(count))
        if len(orders) != layers:
            self.problems.append(f"attn_type={text!r} names {len(orders)} layers, but num_layers is {layers}")
        return orders

    def _norm(self) -> Norm:
        value = self.backbone.get("norm_layer", "rms_norm_sh_BL")
        if value == "rms_norm_sh_BL":
            return "rms_norm_sh"
        if value not in get_args(Norm):
            hint = " (the official code raises an error for it)" if value == "layer_norm_sh_BL" else ""
            self.problems.append(f"norm_layer={value!r} is not one of {[*get_args(Norm), 'rms_norm_sh_BL']}{hint}")
            return "rms_norm_sh"
        norm: Norm = value
        return norm

    def _basis(self) -> str:
        value = self.backbone.get("basis_type", "gaussiansmear")
        if value not in ("gaussiansmear", "gaussian"):
            hint = " (the official code raises an error for it)" if value == "bessel" else ""
            self.problems.append(f"basis_type={value!r} is not one of ['gaussiansmear', 'gaussian']{hint}")
            return "gaussiansmear"
        return str(value)

    def _feed_forward(self) -> tuple[FeedForward, ...]:
        text = str(self.backbone.get("ffn_type", "default"))
        words: dict[str, FeedForward] = {
            "default": "s2", "s2": "s2", "eqv2ffn": "s2", "s3": "s3", "2body": "2body", "grid_nonlinear": "grid",
        }  # fmt: skip
        tokens = text.split("+")
        unknown = [token for token in tokens if token not in words]
        if unknown:
            self.problems.append(f"ffn_type={text!r} contains {unknown}; known are {list(words)}")
            return ("s2",)
        parts = {words[token] for token in tokens}
        if "grid" in parts and len(parts) > 1:
            self.ignored.append(f"everything but grid_nonlinear in ffn_type={text!r}")
            return ("grid",)
        return tuple(part for part in get_args(FeedForward) if part in parts)

    def _edge_embedding(self, text: str) -> str:
        if "eqv2" in text:
            return "eqv2"
        if not any(word in text for word in ("default", "highorder", "elec")):
            self.problems.append(f"edge_embedtype={text!r} must contain default, highorder, elec or eqv2")
        return "default"

    def _encoder_fields(self) -> dict[str, Any]:
        kind = self.backbone.get("encoder", "default")
        allowed: dict[str, tuple[str, ...]] = {"modular": ("dit", "transformer"), "microsoft": ("dit",)}
        fields: dict[str, Any] = {}
        if self.variant != "scitix":
            fields["encoder_channels"] = self._integer("encoder_embed_dim")
        if kind in _DEFAULT_ENCODERS:
            return fields
        if kind not in allowed.get(self.variant, ()):
            self.ignored.append(f"encoder={kind!r}")
            return fields
        encoder: Encoder = kind
        return fields | {
            "encoder": encoder,
            "encoder_hidden": self._integer("ffn_embedding_dim"),
            "encoder_heads": self._integer("num_attention_heads"),
            "encoder_layers": self._integer("num_encoder_layers"),
        }

    def _clusters(self) -> Clusters:
        value = self.backbone.get("with_cluster", False)
        if value in (False, None, "", "false", "False"):
            return "none"
        if self.variant == "modular":
            return "kmeans"
        if self.variant == "lsr":
            if not self.backbone.get("use_rdkit", False):
                self.problems.append(
                    "with_cluster=true needs use_rdkit=true: the official code raises an error otherwise"
                )
            return "fragments"
        self.ignored.append(f"with_cluster={value!r}")
        return "none"

    def _force_head(self) -> tuple[str, bool]:
        """Kind of force head, and whether forces are the energy gradient."""
        if self.variant == "lsr":
            return "gated", False
        known = {"EasyEnergyHead": "energy", "EasyForceHead": "forces", "GradEnergyHead": "gradient"}
        found = set()
        for name, module in self.modules.items():
            kind = next((kind for ending, kind in known.items() if module.endswith(ending)), None)
            if kind is None:
                self.problems.append(f"heads.{name}.module={module!r} is not one of E2Former{', E2Former'.join(known)}")
            found.add(kind)
        if self.modules and not found & {"energy", "gradient"}:
            self.problems.append("`model.heads` has no energy head")
        gradient = "gradient" in found
        return ("linear" if "forces" in found or not self.modules else "none"), gradient


def _head_modules(model: Any) -> dict[str, str]:
    heads = model.get("heads") if isinstance(model, Mapping) else None
    if not isinstance(heads, Mapping):
        return {}
    return {str(name): str(head.get("module")) for name, head in heads.items() if isinstance(head, Mapping)}
