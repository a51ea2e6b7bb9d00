"""Operations over edges; one folder each: `reference.py` is the specification in plain torch."""

from typing import Literal

Implementation = Literal["reference", "blocked"]
"""How an operation is carried out: "reference" is plain torch, "blocked" recomputes edge rows in backward."""
