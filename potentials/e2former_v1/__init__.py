"""The original E2Former (arXiv:2501.19216), in the forms of its public code bases."""

from e2former_calc.potentials.e2former_v1.cluster_rules import ClusterRule, FixedClusters, KMeansClusters
from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.model import E2FormerV1
from e2former_calc.potentials.e2former_v1.official_kmeans import OfficialKMeans

__all__ = ["ClusterRule", "E2FormerV1", "E2FormerV1Config", "FixedClusters", "KMeansClusters", "OfficialKMeans"]
