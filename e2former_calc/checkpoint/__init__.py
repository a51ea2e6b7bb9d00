"""Reading and writing model files: official layouts in, one safe self-describing format out."""

from e2former_calc.checkpoint.card import ModelCard
from e2former_calc.checkpoint.errors import CheckpointError
from e2former_calc.checkpoint.loading import LoadedModel, load_model, load_potential
from e2former_calc.checkpoint.native import write_native

__all__ = ["CheckpointError", "LoadedModel", "ModelCard", "load_model", "load_potential", "write_native"]
