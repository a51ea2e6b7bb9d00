"""Configuration of the original E2Former: everything that fixes the mathematics, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Variant = Literal["scitix", "modular", "microsoft", "lsr"]
Order = Literal["zero", "first", "second", "all"]
Score = Literal["QK_alpha", "dot_alpha", "dot_alpha_small"]
Normalization = Literal["softmax", "smooth_softmax", "smooth_softplus"]
Norm = Literal["rms_norm_sh", "layer_norm", "layer_norm_sh", "identity"]
Basis = Literal["gaussiansmear", "gaussian"]
FeedForward = Literal["s2", "s3", "2body", "grid"]
EdgeEmbedding = Literal["default", "eqv2"]
Encoder = Literal["none", "dit", "transformer"]
Clusters = Literal["none", "kmeans", "fragments"]
ForceHead = Literal["none", "linear", "gated"]

AVERAGE_DEGREE: dict[Variant, float] = {
    "scitix": 23.01,
    "modular": 23.01,
    "microsoft": 23.395238876342773,
    "lsr": 23.395238876342773,
}
"""Divisor of the embedding sum; a constant of each code base that no file records."""


@dataclass(frozen=True)
class E2FormerV1Config:
    """Everything that fixes the mathematics of one E2Former network (arXiv:2501.19216).

    Lengths in Å, energies in eV. The name of the official key is given in brackets where it differs.

    Attributes:
        variant: public code base that the numbers belong to; they differ in constants that no file records.
        heads: names of the output heads.
        channels, lmax: features per degree and largest degree (irreps_node_embedding).
        conv_multiplicity: output multiplicity of the convolution per head (irreps_head).
        num_layers: transformer blocks.
        num_heads: attention heads; head h has contiguous channels (num_attn_heads).
        head_width: scalars per head in the scores (attn_scalar_head).
        num_basis: radial basis functions (number_of_basis).
        max_radius: cutoff of structures without periodic directions, and length scale of basis and envelope.
        pbc_max_radius: cutoff of periodic structures.
        max_neighbors: nearest neighbours kept per atom by the official code.
        orders: attention order of each layer (attn_type).
        image_limit: periodic images per direction in the official code (pbc_expanded_num_cell_per_direction).
        image_atoms: atoms and image atoms that the official code keeps per structure (expanded_token_cutoff).
        score, normalization: attention scores and how they become weights (tp_type).
        norm: normalisation of node features (norm_layer).
        basis: radial basis (basis_type).
        feed_forward: parts of the feed-forward section (ffn_type).
        edge_embedding, embedding_layer_norm: input embedding of edges (edge_embedtype).
        encoder: network on the atom embeddings before the first block; its form follows the variant.
        encoder_channels, encoder_hidden, encoder_heads, encoder_layers: its sizes (encoder_embed_dim,
            ffn_embedding_dim, num_attention_heads, num_encoder_layers). Without an encoder `encoder_channels`
            is the width of the embedding table.
        clusters: attention to clusters of atoms after the last block (with_cluster).
        force_head: direct-force head that the file holds.
        gradient_forces: the model was trained with forces as the energy gradient.
        energy_scale, energy_shift: scale and shift of the energy of a structure (normalizers).
        force_scale, force_shift: the same for the force head.
        alpha_dropout: dropout on attention weights in training, not in the last layer (alpha_drop).
        feed_forward_dropout: dropout on updates of the feed-forward section in training, of all components of a degree
            and channel together, not in the last layer (proj_drop).
        drop_path: in training a structure misses an update of attention or feed-forward with this probability, except
            in the last layer; updates that are kept are scaled up (drop_path_rate).
    """

    variant: Variant
    channels: int
    lmax: int
    conv_multiplicity: int
    num_layers: int
    num_heads: int
    head_width: int
    num_basis: int
    max_radius: float
    pbc_max_radius: float
    max_neighbors: int
    orders: tuple[Order, ...]
    heads: tuple[str, ...] = ("energy",)
    image_limit: int = 4
    image_atoms: int = 512
    score: Score = "QK_alpha"
    normalization: Normalization = "softmax"
    norm: Norm = "rms_norm_sh"
    basis: Basis = "gaussiansmear"
    feed_forward: tuple[FeedForward, ...] = ("s2",)
    edge_embedding: EdgeEmbedding = "default"
    embedding_layer_norm: bool = True
    encoder: Encoder = "none"
    encoder_channels: int = 128
    encoder_hidden: int = 256
    encoder_heads: int = 8
    encoder_layers: int = 4
    clusters: Clusters = "none"
    force_head: ForceHead = "linear"
    gradient_forces: bool = False
    energy_scale: float = 1.0
    energy_shift: float = 0.0
    force_scale: float = 1.0
    force_shift: float = 0.0
    alpha_dropout: float = 0.1
    feed_forward_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        problems = self._bad_choices()
        if not problems:
            problems = self._bad_combinations() + self._bad_sizes() + self._bad_numbers()
        if problems:
            raise ValueError("E2Former configuration: " + "; ".join(problems))

    def _bad_choices(self) -> list[str]:
        """Fields whose value is not one of the known words."""
        single: dict[str, Any] = {
            "variant": Variant, "score": Score, "normalization": Normalization, "norm": Norm, "basis": Basis,
            "edge_embedding": EdgeEmbedding, "encoder": Encoder, "clusters": Clusters, "force_head": ForceHead,
        }  # fmt: skip
        problems = [
            f"{name} must be {' or '.join(map(repr, get_args(words)))}, got {getattr(self, name)!r}"
            for name, words in single.items()
            if getattr(self, name) not in get_args(words)
        ]
        several: dict[str, Any] = {"orders": Order, "feed_forward": FeedForward}
        for name, words in several.items():
            unknown = [value for value in getattr(self, name) if value not in get_args(words)]
            if unknown:
                problems.append(f"{name} must consist of {' or '.join(map(repr, get_args(words)))}, got {unknown}")
        return problems

    def _bad_combinations(self) -> list[str]:
        encoders = {"modular": ("none", "dit", "transformer"), "microsoft": ("none", "dit")}.get(
            self.variant, ("none",)
        )
        clusters = {"modular": ("none", "kmeans"), "lsr": ("none", "fragments")}.get(self.variant, ("none",))
        checks = [
            (self.encoder in encoders, f"encoder={self.encoder!r} does not exist in variant {self.variant!r}"),
            (self.clusters in clusters, f"clusters={self.clusters!r} do not exist in variant {self.variant!r}"),
            (self.clusters == "none" or (len(set(self.orders)) == 1 and "all" not in self.orders),
             f"with_cluster needs one attention order, zero, first or second, for all layers, got {self.orders}"),
            (self.edge_embedding != "eqv2" or self.variant != "scitix",
             "edge_embedtype 'eqv2' raises an error in the official code of variant 'scitix'"),
            (self.normalization != "smooth_softplus" or self.variant == "lsr",
             f"use_smooth_softplus does not exist in variant {self.variant!r}"),
            (self.variant != "scitix" or self.pbc_max_radius == self.max_radius,
             f"pbc_max_radius ({self.pbc_max_radius}) must equal max_radius ({self.max_radius}) in variant 'scitix'"),
            ("grid" not in self.feed_forward or self.feed_forward == ("grid",),
             "grid_nonlinear replaces every other feed-forward part"),
            (self.gradient_forces or self.force_head != "none",
             "there is no force head, so gradient_forces must be true"),
            (len(self.heads) >= 1, "there is no output head"),
        ]  # fmt: skip
        return [message for passed, message in checks if not passed]

    def _bad_sizes(self) -> list[str]:
        heads, width = self.num_heads, self.head_width
        checks = [
            (1 <= len(self.orders) == self.num_layers,
             f"num_layers must be at least 1 and attn_type must name as many layers, got {self.num_layers} and "
             f"{len(self.orders)}"),
            (0 <= self.lmax <= 10, f"lmax must be 0 ... 10, got {self.lmax}"),
            (self._smallest_lmax() <= self.lmax,
             f"the orders {sorted(set(self.orders))} and feed_forward {self.feed_forward} need lmax >= "
             f"{self._smallest_lmax()}, got {self.lmax}"),
            (self.channels >= 1, f"channels must be at least 1, got {self.channels}"),
            (heads >= 1, f"num_attn_heads must be at least 1, got {heads}"),
            (width >= 1 and (self.score != "QK_alpha" or heads * width % 2 == 0),
             f"num_attn_heads * attn_scalar_head must be even and positive, got {heads} * {width}"),
            (self.conv_multiplicity >= 1,
             f"irreps_head needs a multiplicity of at least 1, got {self.conv_multiplicity}"),
            (self.num_basis >= 2, f"number_of_basis must be at least 2, got {self.num_basis}"),
            (self.score != "dot_alpha_small" or self.num_basis >= 8,
             f"dot_alpha_small needs number_of_basis >= 8, got {self.num_basis}"),
            (self.max_neighbors >= 1, f"max_neighbors must be at least 1, got {self.max_neighbors}"),
            (self.image_limit >= 0,
             f"pbc_expanded_num_cell_per_direction must not be negative, got {self.image_limit}"),
            (self.image_atoms >= 1, f"expanded_token_cutoff must be at least 1, got {self.image_atoms}"),
            (self.encoder_channels >= 1, f"encoder_embed_dim must be at least 1, got {self.encoder_channels}"),
            (self.encoder == "none" or min(self.encoder_hidden, self.encoder_heads, self.encoder_layers) >= 1,
             "ffn_embedding_dim, num_attention_heads and num_encoder_layers must be at least 1"),
            (self.encoder == "none" or self.encoder_channels % max(self.encoder_heads, 1) == 0,
             f"encoder_embed_dim ({self.encoder_channels}) must be a multiple of num_attention_heads "
             f"({self.encoder_heads})"),
        ]  # fmt: skip
        problems = [message for passed, message in checks if not passed]
        return problems + ([] if problems else self._indivisible())

    def _smallest_lmax(self) -> int:
        needed = {"zero": 0, "first": 1, "second": 2, "all": 2}
        return max([needed[order] for order in self.orders] + [2 if "2body" in self.feed_forward else 0])

    def _indivisible(self) -> list[str]:
        """Branches whose channels do not split into heads."""
        parts = {"zero": (1,), "first": (1,), "second": (2,), "all": (1, 2, 4)}
        return [
            f"{order}-order attention works on {self.channels} // {part} channels, which num_attn_heads "
            f"({self.num_heads}) must divide"
            for order in sorted(set(self.orders))
            for part in parts[order]
            if self.channels // part == 0 or (self.channels // part) % self.num_heads
        ]

    def _bad_numbers(self) -> list[str]:
        checks = [
            (0 < self.max_radius < math.inf, f"max_radius must be positive, got {self.max_radius}"),
            (0 < self.pbc_max_radius < math.inf, f"pbc_max_radius must be positive, got {self.pbc_max_radius}"),
            (0 <= self.alpha_dropout < 1, f"alpha_drop must be in [0, 1), got {self.alpha_dropout}"),
            (0 <= self.feed_forward_dropout < 1, f"proj_drop must be in [0, 1), got {self.feed_forward_dropout}"),
            (0 <= self.drop_path < 1, f"drop_path_rate must be in [0, 1), got {self.drop_path}"),
            (0 < self.energy_scale < math.inf, f"energy_scale must be positive, got {self.energy_scale}"),
            (0 < self.force_scale < math.inf, f"force_scale must be positive, got {self.force_scale}"),
            (math.isfinite(self.energy_shift) and math.isfinite(self.force_shift),
             f"energy_shift and force_shift must be finite, got {self.energy_shift} and {self.force_shift}"),
        ]  # fmt: skip
        return [message for passed, message in checks if not passed]

    @property
    def cutoff(self) -> float:
        """Longest edge in Å."""
        return max(self.max_radius, self.pbc_max_radius)

    @property
    def dot_width(self) -> int:
        """Channels that are projected on edge directions in dot_alpha; only one code base has a small form."""
        small = self.score == "dot_alpha_small" and self.variant in ("scitix", "modular")
        return self.num_basis // 8 if small else self.num_basis

    @property
    def uses_charge(self) -> bool:
        """True if total charge and multiplicity are embedded."""
        return self.variant == "modular"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> E2FormerV1Config:
        """Inverse of `to_dict`.

        Raises:
            ValueError: for unknown or missing fields.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration fields {unknown}: the file is from a newer version")
        tuples = ("orders", "heads", "feed_forward")
        stated: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        try:
            return cls(**stated)
        except TypeError as error:
            raise ValueError(f"incomplete configuration: {error}") from None
