"""The official k-means assignment of atoms to clusters, for comparisons with the official code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from jaxtyping import Int
from torch import Tensor

from e2former_calc.potentials.e2former_v1.cluster_rules import cluster_count
from e2former_calc.potentials.system import System


@dataclass(frozen=True)
class OfficialKMeans:
    """scikit-learn's k-means with `random_state=0` on the coordinates of each structure.

    It depends on the order of the atoms and on the version of scikit-learn. The official code also drops clusters in
    batches of structures of different size; that is not repeated here.
    """

    def __call__(self, system: System) -> Int[Tensor, " atoms"]:
        """See `ClusterRule`.

        Raises:
            ImportError: without scikit-learn.
        """
        try:
            cluster = import_module("sklearn.cluster")
        except ImportError:
            raise ImportError("OfficialKMeans needs scikit-learn: pip install scikit-learn") from None
        parts = []
        for positions in system.positions.detach().split(system.sizes.tolist()):
            rule = cluster.KMeans(n_clusters=cluster_count(len(positions)), random_state=0)
            ids = torch.as_tensor(rule.fit(positions.cpu().numpy()).labels_, dtype=torch.int64)
            parts.append(ids.to(positions.device))
        return torch.cat(parts)

    def centres(self, system: System) -> None:
        """See `ClusterRule`."""
