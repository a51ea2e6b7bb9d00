"""Reports: rollouts judged against a reference trajectory, as numbers, tables, figures and one page to read.

>>> import numpy as np
>>> from e2former_calc.analysis.trajectory import Trajectory
>>> def frames(seed):
...     noise = 0.02 * np.random.default_rng(seed).normal(size=(60, 3, 3))
...     water = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
...     return Trajectory(positions=water + noise, numbers=np.array([8, 1, 1]), times_fs=np.arange(60.0))
>>> report = analyze_rollouts([frames(1), frames(2)], frames(3))
>>> report.verdict.stable, report.verdict.closeness
(True, 'within noise')

`write_report(report, folder)` writes it.
"""

from e2former_calc.report.evaluation import Report, Verdict, analyze_rollouts
from e2former_calc.report.section import Drawing, Quantity, Section, Table
from e2former_calc.report.settings import PRESETS, ReportSettings
from e2former_calc.report.sources import Method, Truth
from e2former_calc.report.writing import write_report

__all__ = [
    "PRESETS",
    "Drawing",
    "Method",
    "Quantity",
    "Report",
    "ReportSettings",
    "Section",
    "Table",
    "Truth",
    "Verdict",
    "analyze_rollouts",
    "write_report",
]
