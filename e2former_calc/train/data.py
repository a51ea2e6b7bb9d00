"""The data sets of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from e2former_calc.potentials.training.data_check import Finding, check_dataset
from e2former_calc.potentials.training.dataset import Dataset, split
from e2former_calc.potentials.training.readers import read_dataset
from e2former_calc.train.plan import DataFile, TrainingPlan


@dataclass(frozen=True)
class TrainingData:
    """The data sets of a run, checked.

    Attributes:
        training, validation, test: frames; validation and test may be None.
        findings: what the data check noticed.
        kept_aside: numbers of the validation frames among all frames, if they were split off.
    """

    training: Dataset
    validation: Dataset | None
    test: Dataset | None
    findings: list[Finding]
    kept_aside: tuple[int, ...] = ()


def read_data(plan: TrainingPlan) -> TrainingData:
    """Read, check and split the data.

    Raises:
        ValueError: for unreadable files and for data that the check refuses.
    """
    everything = Dataset.join([_read(file) for file in plan.training])
    findings = check_dataset(everything)
    refused = [finding.message for finding in findings if finding.severity == "error"]
    if refused:
        raise ValueError("the training data cannot be used: " + "; ".join(refused))
    test = None if plan.test is None else _read(plan.test)
    if isinstance(plan.validation, DataFile):
        return TrainingData(everything, _read(plan.validation), test, findings)
    if plan.validation == 0:
        return TrainingData(everything, None, test, findings)
    chosen, kept_aside = split(everything, plan.validation, plan.settings.seed)
    return TrainingData(everything.subset(chosen), everything.subset(kept_aside), test, findings, tuple(kept_aside))


def _read(file: DataFile) -> Dataset:
    return read_dataset(file.path, index=file.index)
