"""From a configuration file to a trained model file."""

from e2former_calc.train.plan import TrainingPlan, read_plan
from e2former_calc.train.run import TrainingRun

__all__ = ["TrainingPlan", "TrainingRun", "read_plan"]
