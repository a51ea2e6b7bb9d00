"""Rollouts: replicas of a system are simulated with a model and judged against a reference trajectory.

>>> plan = plan_from_dict({"preset": "md22-dha", "reference": "md22_DHA.npz", "time_ps": 10.0})
>>> plan.temperature_K, round(plan.friction_per_ps, 1), plan.steps, plan.report_settings().r_max_A
(500.0, 49.1, 20000, 15.0)
>>> RolloutRun  # doctest: +ELLIPSIS
<class 'e2former_calc.rollout.run.RolloutRun'>
"""

from e2former_calc.rollout.folder import RolloutFolder
from e2former_calc.rollout.plan import THERMOSTATS, RolloutPlan
from e2former_calc.rollout.presets import PRESETS, Preset, plan_from_dict
from e2former_calc.rollout.run import RolloutRun

__all__ = ["PRESETS", "THERMOSTATS", "Preset", "RolloutFolder", "RolloutPlan", "RolloutRun", "plan_from_dict"]
