# ruff: noqa: N815 (units in names)
"""What a report judges by: thresholds, ranges and what is known of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

ENSEMBLES: Final = ("nve", "nvt", "npt")


@dataclass(frozen=True)
class ReportSettings:
    """Thresholds, ranges, and facts that the files may not state.

    Attributes:
        temperature_K: target; None: as the reference or the rollout states it, else temperatures are not judged.
        ensemble: "nve", "nvt" or "npt"; None: as the rollout states it, else from the conservation of its energy.
        expected_ps: length of a complete rollout; None: rollouts count as complete however long they are.
        frame_spacing_fs: time between frames of the rollouts, for files without times or with unequal ones.
        bond_threshold_A: a bond may deviate this much from its mean length in the reference.
        r_max_A: end of the range of h(r); published: 10 (MD17), 15 (MD22).
        n_bins: bins of h(r) and of g(r).
        rdf_r_max_A: end of the range of g(r).
        rdf_threshold_A: g(r) of a window may deviate this much; None: 3 for water, 1 for everything else.
        window_ps: length of that window.
        n_blocks: blocks of each trajectory, for errors and noise floors; should be longer than correlations.
        max_frames: frames used for bonds, angles and dihedrals, equally spaced.
        truth_samples: frames of each trajectory that are recalculated with the ground truth.
        seed: of the bootstrap.

    Raises:
        ValueError: for values that make no sense.
    """

    temperature_K: float | None = None
    ensemble: str | None = None
    expected_ps: float | None = None
    frame_spacing_fs: float | None = None
    bond_threshold_A: float = 0.5
    r_max_A: float = 10.0
    n_bins: int = 500
    rdf_r_max_A: float = 6.0
    rdf_threshold_A: float | None = None
    window_ps: float = 1.0
    n_blocks: int = 10
    max_frames: int = 5000
    truth_samples: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ensemble is not None and self.ensemble not in ENSEMBLES:
            raise ValueError(f"`ensemble` must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        for name in (
            "temperature_K", "expected_ps", "frame_spacing_fs", "bond_threshold_A", "r_max_A", "rdf_r_max_A",
            "rdf_threshold_A", "window_ps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be positive, got {value}")
        for name, least in (("n_bins", 1), ("n_blocks", 2), ("max_frames", 10), ("truth_samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")


PRESETS: Final[Mapping[str, ReportSettings]] = {
    "md17": ReportSettings(temperature_K=500.0),
    "md22": ReportSettings(temperature_K=500.0, r_max_A=15.0),
    "water": ReportSettings(temperature_K=300.0, rdf_threshold_A=3.0),
    "lips": ReportSettings(temperature_K=520.0, rdf_threshold_A=1.0),
}
"""Temperatures, thresholds and ranges that the tables of the field were made with."""
