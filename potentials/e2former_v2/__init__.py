"""E2Former-V2 (arXiv:2601.16622; the network of UBio-MolFM V1 and V1.5)."""

from e2former_calc.potentials.e2former_v2.config import E2FormerV2Config
from e2former_calc.potentials.e2former_v2.model import E2FormerV2

__all__ = ["E2FormerV2", "E2FormerV2Config"]
