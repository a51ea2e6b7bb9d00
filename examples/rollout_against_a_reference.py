"""Two short replicas of the bundled peptide, judged against its GFN2-xTB reference; the report is one page."""

from pathlib import Path

from e2former_calc import E2FormerCalculator
from e2former_calc.rollout import RolloutFolder, RolloutRun, plan_from_dict

plan = plan_from_dict({"replicas": 2, "time_ps": 0.05, "seed": 1})
folder = RolloutFolder(Path("ala3-rollout"))
run = RolloutRun(plan, E2FormerCalculator("ala3-gfn2"), folder, resume=folder.check(resume=True, overwrite=False))

with run.recording() as recording:
    run.advance(recording)
report = run.judge()
page, *_ = run.write(report, {})

print(f"{page}: {' '.join(report.verdict.sentences[:2])}")
