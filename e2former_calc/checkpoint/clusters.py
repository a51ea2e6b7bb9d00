"""Clusters of atoms that a user gives to an original E2Former, as plain numbers or by name."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import nn

from e2former_calc.potentials.e2former_v1 import E2FormerV1, FixedClusters, OfficialKMeans

OFFICIAL = "official"


def plain_clusters(clusters: Sequence[int] | str | None) -> list[int] | str | None:
    """Clusters in a form that JSON can hold.

    Raises:
        ValueError: for anything but integers, "official" and None.
    """
    if clusters is None:
        return None
    try:
        if not isinstance(clusters, str):
            return [operator.index(number) for number in clusters]
    except TypeError:
        pass
    else:
        if clusters == OFFICIAL:
            return clusters
    raise ValueError(f"`clusters` must be one integer for each atom, or {OFFICIAL!r}, got {clusters!r}")


def assign_clusters(model: nn.Module, clusters: Sequence[int] | str | None) -> None:
    """Make a model use these clusters; None leaves what it does by itself.

    Args:
        model: changed in place.
        clusters: as in `load_potential`.

    Raises:
        ValueError: if the model has no clusters, or the numbers have gaps.
    """
    chosen = plain_clusters(clusters)
    if chosen is None:
        return
    kind = model.config.clusters if isinstance(model, E2FormerV1) else "none"
    if not isinstance(model, E2FormerV1) or kind == "none":
        raise ValueError("`clusters` were given, but this model has none: leave them out")
    if not isinstance(chosen, str):
        model.cluster_rule = FixedClusters(tuple(chosen))
    elif kind == "kmeans":
        model.cluster_rule = OfficialKMeans()
    else:
        raise ValueError(
            f"clusters={OFFICIAL!r} is k-means, and this model was trained with fragments: give the fragment of each "
            "atom"
        )
