"""Configuration of E2Former-V2: everything that fixes the mathematics, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Score = Literal["QK_alpha", "QKdot_alpha", "QKdotS_alpha"]
Normalization = Literal["softmax", "softplus", "sigmoid"]
AttentionOrder = Literal["first", "zero"]
LongRange = Literal["none", "node", "node_bell"]
EnergyHeadKind = Literal["mlp", "escn"]
ForceHead = Literal["none", "linear", "painn", "escn"]
Variant = Literal["main", "legacy"]


@dataclass(frozen=True)
class E2FormerV2Config:
    """Everything that fixes the mathematics of one E2Former-V2 network.

    Attributes (symbol of the specification in brackets; lengths in Å):
        heads: names of the output heads, as in `dataset_name_list`.
        share_heads: "share" in head_cfg_str: all of the svp/tzvpd/omol25 names use the head omol25.
        channels: features per degree (C).
        lmax: largest degree (L).
        conv_multiplicity: output multiplicity of the convolution per head (m_h).
        num_layers: transformer blocks.
        num_heads: attention heads (H); channel c belongs to head c mod H.
        head_width: scalars per head in query and key (d).
        num_basis: radial basis functions (nb).
        max_radius: cutoff (r_c).
        max_neighbors: nearest neighbours kept per atom by the official code; None keeps all.
        image_limit: periodic images per direction that the official code looks at.
        avg_degree: divisor of the input embedding.
        norm: True for `rms_norm_sh`, False for `identity`.
        score: attention score (tp_type before the first "+").
        normalization: how scores become weights (tp_type suffix).
        orders: attention order of each layer.
        embedding_layer_norm: False for edge_embedtype "wolayernorm".
        long_range: second attention stack on distant heavy atoms.
        long_layers, long_lower, long_upper: its depth and its distance window.
        gradient_forces: forces are the energy gradient (AutoGradForce).
        force_head: direct-force head that the file holds, if any.
        energy_head: "mlp", or "escn" (sphere samples, not exactly rotation invariant).
        alpha_dropout: dropout on attention weights in training.
        variant: "main", or "legacy" for the mathematics of the `e2formerv2` branch.
        pbc_max_radius: reach of periodic images in the legacy variant.
    """

    heads: tuple[str, ...]
    channels: int
    lmax: int
    conv_multiplicity: int
    num_layers: int
    num_heads: int
    head_width: int
    num_basis: int
    max_radius: float
    orders: tuple[AttentionOrder, ...]
    max_neighbors: int | None = None
    share_heads: bool = False
    image_limit: int = 4
    avg_degree: float = 23.01
    norm: bool = True
    score: Score = "QK_alpha"
    normalization: Normalization = "softmax"
    embedding_layer_norm: bool = True
    long_range: LongRange = "none"
    long_layers: int = 2
    long_lower: float = 0.1
    long_upper: float = 12.0
    gradient_forces: bool = True
    force_head: ForceHead = "none"
    energy_head: EnergyHeadKind = "mlp"
    alpha_dropout: float = 0.1
    variant: Variant = "main"
    pbc_max_radius: float | None = None

    def __post_init__(self) -> None:
        problems = self._bad_choices() + self._bad_sizes() + self._bad_lengths()
        if problems:
            raise ValueError("E2Former-V2 configuration: " + "; ".join(problems))

    def _bad_choices(self) -> list[str]:
        """Fields whose value is not one of the known words."""
        allowed = {
            "score": get_args(Score),
            "normalization": get_args(Normalization),
            "long_range": get_args(LongRange),
            "force_head": get_args(ForceHead),
            "energy_head": get_args(EnergyHeadKind),
            "variant": get_args(Variant),
        }
        problems = [
            f"{name} must be {' or '.join(map(repr, words))}, got {getattr(self, name)!r}"
            for name, words in allowed.items()
            if getattr(self, name) not in words
        ]
        unknown = [order for order in self.orders if order not in get_args(AttentionOrder)]
        if unknown:
            problems.append(f"orders must be 'first' or 'zero', got {unknown}")
        if not self.heads:
            problems.append("dataset_name_list names no head")
        if not self.gradient_forces and self.force_head == "none":
            problems.append("AutoGradForce is false but there is no force head")
        if self.variant == "legacy" and self.long_range != "none":
            problems.append(f"with_cluster={self.long_range!r} is not available with variant='legacy'")
        return problems

    def _bad_sizes(self) -> list[str]:
        heads, width = self.num_heads, self.head_width
        checks = [
            (1 <= self.lmax <= 11, f"lmax must be 1 ... 11, got {self.lmax}"),
            (self.channels >= 1, f"channels must be at least 1, got {self.channels}"),
            (heads >= 1 and self.channels % max(heads, 1) == 0,
             f"channels ({self.channels}) must be a multiple of num_attn_heads ({heads})"),
            (heads * width % 2 == 0 and width >= 1,
             f"num_attn_heads * attn_scalar_head must be even, got {heads} * {width}"),
            (self.conv_multiplicity >= 1,
             f"irreps_head needs a multiplicity of at least 1, got {self.conv_multiplicity}"),
            (self.num_basis >= 2, f"number_of_basis must be at least 2, got {self.num_basis}"),
            (self.max_neighbors is None or self.max_neighbors >= 1,
             f"max_neighbors must be at least 1 or None, got {self.max_neighbors}"),
            (len(self.orders) == self.num_layers >= 1, f"num_layers must be at least 1, got {self.num_layers}"),
            (self.image_limit >= 0,
             f"pbc_expanded_num_cell_per_direction must not be negative, got {self.image_limit}"),
            (self.long_layers >= 0, f"long_range_layers must not be negative, got {self.long_layers}"),
        ]  # fmt: skip
        return [message for passed, message in checks if not passed]

    def _bad_lengths(self) -> list[str]:
        reach = self.pbc_max_radius
        checks = [
            (0 < self.max_radius < math.inf, f"max_radius must be positive, got {self.max_radius}"),
            (0 <= self.long_lower < self.long_upper < math.inf,
             f"long_cutoff_lower must be below long_cutoff_upper, got {self.long_lower} and {self.long_upper}"),
            (0 < self.avg_degree < math.inf, f"avg_degree must be positive, got {self.avg_degree}"),
            (0 <= self.alpha_dropout < 1, f"alpha_drop must be in [0, 1), got {self.alpha_dropout}"),
            (reach is None or 0 < reach < math.inf, f"pbc_max_radius must be positive, got {reach}"),
        ]  # fmt: skip
        return [message for passed, message in checks if not passed]

    @property
    def cutoff(self) -> float:
        """Longest edge in Å."""
        return max(self.max_radius, self.long_upper) if self.long_range != "none" else self.max_radius

    @property
    def long_max_neighbors(self) -> int | None:
        """Nearest neighbours kept in the long-range list."""
        return None if self.max_neighbors is None else int(2.5 * self.max_neighbors)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> E2FormerV2Config:
        """Inverse of `to_dict`.

        Raises:
            ValueError: for unknown or missing fields.
        """
        known = cls.__dataclass_fields__
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown configuration fields {unknown}: the file is from a newer version")
        fields: dict[str, Any] = {k: tuple(v) if k in ("heads", "orders") else v for k, v in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"incomplete configuration: {error}") from None
