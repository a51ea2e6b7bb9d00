"""Reader of the official flattened YAML of E2Former-V2; finds everything that is wrong with it at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from e2former_calc.potentials.e2former_v2.config import (
    AttentionOrder,
    E2FormerV2Config,
    LongRange,
    Normalization,
    Score,
    Variant,
)

USED_TOP_LEVEL = frozenset({"dataset_name_list", "AutoGradForce", "with_moe", "head_cfg_str", "backbone_config"})

_IGNORED_TOP_LEVEL = """
    local_rank world_size node_rank rank seed dist_backend scheduler_config strategy_config backbone
    dataset_name_list_valid dataset_sample_prob dataset_micro_batch_size train_val_test_split shuffle save_dir
    ckpt_path total_num_steps total_num_epochs log_interval energy_loss_weight force_loss_weight loss_unit lr
    custom_factors clip_grad_norm gradient_accumulation_steps weight_decay experiment_name ifresume loss_fn
"""
IGNORED_TOP_LEVEL = frozenset(_IGNORED_TOP_LEVEL.split())
"""Keys of the official training configuration that do not matter for inference."""

NORM_LAYERS = ("rms_norm_sh", "rms_norm_sh_BL", "identity")

IGNORED_PREFIXES = ("data_path", "save_", "val_", "wandb", "aim", "tb", "swanlab", "early_stopping")


def read_official_config(values: Mapping[str, Any], *, variant: str = "main") -> E2FormerV2Config:
    """Configuration from the official flattened YAML (as a mapping).

    Args:
        values: content of the YAML file.
        variant: "main", or "legacy" for the mathematics of the `e2formerv2` branch.

    Raises:
        ValueError: one message that lists every unknown or contradicting value.
    """
    if variant not in ("main", "legacy"):
        raise ValueError(f"variant must be 'main' or 'legacy', got {variant!r}")
    return _Reader(values, "legacy" if variant == "legacy" else "main").read()


class _Reader:
    """Translates the official keys and collects everything that is wrong with them."""

    def __init__(self, values: Mapping[str, Any], variant: Variant) -> None:
        self.top = values
        self.variant = variant
        self.problems: list[str] = []
        backbone = values.get("backbone_config")
        if not isinstance(backbone, Mapping):
            raise ValueError("this is not an official E2Former-V2 YAML: it has no `backbone_config` mapping")
        self.backbone = backbone

    def read(self) -> E2FormerV2Config:
        self._check_top_level()
        channels, lmax = self._irreps("irreps_node_embedding", "128x0e+128x1e+128x2e")
        multiplicity, _ = self._irreps("irreps_head", "32x0e+32x1e+32x2e", equal=False)
        layers = self._integer("num_layers", 6)
        score, normalization = self._attention_weights()
        head_text = str(self.top.get("head_cfg_str") or "")
        moe = str(self.top.get("with_moe", "None"))
        gradient = self._flag(self.top, "AutoGradForce", True)
        self._check_fixed_choices()
        fields: dict[str, Any] = {
            "heads": tuple(n.strip() for n in str(self.top.get("dataset_name_list") or "").split(",") if n.strip()),
            "share_heads": "share" in head_text,
            "channels": channels,
            "lmax": lmax,
            "conv_multiplicity": multiplicity,
            "num_layers": layers,
            "num_heads": self._integer("num_attn_heads", 4),
            "head_width": self._integer("attn_scalar_head", 32),
            "num_basis": self._integer("number_of_basis", 128),
            "max_radius": self._number("max_radius", 4.5),
            "max_neighbors": self._max_neighbors(),
            "image_limit": self._integer("pbc_expanded_num_cell_per_direction", 4),
            "avg_degree": self._number("avg_degree", 23.01),
            "norm": self._choice("norm_layer", "rms_norm_sh", NORM_LAYERS) != "identity",
            "score": score,
            "normalization": normalization,
            "orders": self._orders(layers),
            "embedding_layer_norm": "wolayernorm" not in str(self.backbone.get("edge_embedtype", "default")),
            "long_range": self._long_range(),
            "long_layers": self._integer("long_range_layers", 2),
            "long_lower": self._number("long_cutoff_lower", 2.5 if self.variant == "legacy" else 0.1),
            "long_upper": self._number("long_cutoff_upper", 12.0),
            "gradient_forces": gradient,
            "force_head": "none" if gradient else (moe if moe in ("painn", "escn") else "linear"),
            "energy_head": "escn" if moe == "escn" else "mlp",
            "alpha_dropout": self._number("alpha_drop", 0.1),
            "variant": self.variant,
            "pbc_max_radius": self._legacy_radius(),
        }
        if self.problems:
            raise ValueError("the configuration cannot be used: " + "; ".join(self.problems))
        return E2FormerV2Config(**fields)

    def _check_top_level(self) -> None:
        known = USED_TOP_LEVEL | IGNORED_TOP_LEVEL
        unknown = sorted(k for k in self.top if k not in known and not str(k).startswith(IGNORED_PREFIXES))
        if unknown:
            self.problems.append(f"unknown top-level keys {unknown} (remove them if they are comments of yours)")

    def _check_fixed_choices(self) -> None:
        names = ("e2former", "e2formerv2") if self.variant == "legacy" else ("e2former",)
        self._choice("name", None, names)
        self._choice("basis_type", "gaussiansmear", ("gaussiansmear",))
        encoder = self.backbone.get("encoder", "default")
        if encoder != "default":
            self.problems.append(f"encoder={encoder!r} is not supported, only 'default'")
        ffn = str(self.backbone.get("ffn_type", "default"))
        allowed = ("s3",) if self.variant == "legacy" else ("s3", "default")
        if not any(word in ffn for word in allowed):
            self.problems.append(
                f"ffn_type={ffn!r} is not supported with variant={self.variant!r}, it must contain one of {allowed}"
            )

    def _choice(self, key: str, default: str | None, allowed: tuple[str, ...]) -> str:
        value = str(self.backbone.get(key, default))
        if value not in allowed:
            self.problems.append(f"{key}={value!r} is not one of {allowed}")
        return value

    def _integer(self, key: str, default: int) -> int:
        value = self.backbone.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{key} must be an integer, got {value!r}")
            return default
        return value

    def _number(self, key: str, default: float) -> float:
        value = self.backbone.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problems.append(f"{key} must be a number, got {value!r}")
            return default
        return float(value)

    def _flag(self, mapping: Mapping[str, Any], key: str, default: bool) -> bool:
        value = mapping.get(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key} must be true or false, got {value!r}")
            return default
        return value

    def _irreps(self, key: str, default: str, *, equal: bool = True) -> tuple[int, int]:
        """Multiplicity and largest degree of a string such as 16x0e+16x1e."""
        text = str(self.backbone.get(key, default)).replace(" ", "")
        parts = [re.fullmatch(r"(\d+)x(\d+)e", part) for part in text.split("+")]
        found = [(int(p[1]), int(p[2])) for p in parts if p]
        complete = len(found) == len(parts) and [degree for _, degree in found] == list(range(len(found)))
        if not complete or (equal and len({count for count, _ in found}) != 1):
            self.problems.append(
                f"{key}={text!r} must list 0e, 1e, ... in order with one multiplicity, for instance {default!r}"
            )
            return 1, 1
        return found[0][0], len(found) - 1

    def _max_neighbors(self) -> int | None:
        value = self.backbone.get("max_neighbors", 20 if self.variant == "legacy" else 300)
        if value is None or value == "None":
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"max_neighbors must be an integer or null, got {value!r}")
            return None
        return value

    def _attention_weights(self) -> tuple[Score, Normalization]:
        text = str(self.backbone.get("tp_type", "QK_alpha"))
        name, *suffixes = text.split("+")
        unknown = [s for s in suffixes if s not in ("triton", "softplus", "sigmoid")]
        if name not in ("QK_alpha", "QKdot_alpha", "QKdotS_alpha") or unknown:
            self.problems.append(
                f"tp_type={text!r} must be QK_alpha, QKdot_alpha or QKdotS_alpha with +triton, +softplus or +sigmoid"
            )
            return "QK_alpha", "softmax"
        if self.variant == "legacy" and ("softplus" in suffixes or "sigmoid" in suffixes):
            self.problems.append(f"tp_type={text!r} does not exist in the legacy variant, only the softmax form does")
        normalization: Normalization = (
            "softplus" if "softplus" in suffixes else "sigmoid" if "sigmoid" in suffixes else "softmax"
        )
        return name, normalization  # type: ignore[return-value]

    def _orders(self, layers: int) -> tuple[AttentionOrder, ...]:
        text = str(self.backbone.get("attn_type", "first-order"))
        names: dict[str, AttentionOrder] = {"so2-first-order": "first", "zero-order": "zero"}
        parts = text.split("+")
        if len(parts) > 2 or any(part not in names for part in parts):
            self.problems.append(
                f"attn_type={text!r} must be so2-first-order, zero-order or so2-first-order+zero-order"
            )
            fallback: AttentionOrder = "first"
            return (fallback,) * layers
        first, second = names[parts[0]], names[parts[-1]]
        if (first, second) == ("zero", "first"):
            self.problems.append(f"attn_type={text!r} does not exist: zero-order layers cannot come first")
        return (first,) * (layers // 2) + (second,) * (layers - layers // 2)

    def _long_range(self) -> LongRange:
        value = self.backbone.get("with_cluster", False)
        if value in (False, None, "", "False", "false"):
            return "none"
        text = str(value)
        if "node" not in text:
            self.problems.append(f"with_cluster={value!r} is not supported: it must be false or contain 'node'")
        return "node_bell" if "bell" in text else "node"

    def _legacy_radius(self) -> float | None:
        if self.variant != "legacy":
            return None
        if "pbc_max_radius" not in self.backbone:
            self.problems.append("variant='legacy' needs pbc_max_radius in backbone_config")
            return None
        return self._number("pbc_max_radius", 0.0)
