"""The noise floor of every number: what rollouts of a perfect model, as long as these, would show."""

from __future__ import annotations

import numpy as np

from e2former_calc.analysis.resampling import MAX_BLOCKS, STRETCHES, Resampling, block_count, resample
from e2former_calc.report.sources import Case

REPETITIONS = 100
"""Pairs of samples of frames."""

COARSER = 1.5
"""Times farther apart than those of the rollouts may frames of the reference be without a remark."""


def lengths(case: Case, n_units: int) -> list[float]:
    """Usable length of each rollout in units of the reference, of which there are `n_units`."""
    return [case.share(run) * n_units for run in case.usable]


def reference_blocks(case: Case) -> int:
    """Blocks that histograms of the reference are kept in: as long as a rollout, or shorter."""
    return block_count(lengths(case, 1), case.settings.n_blocks)


def of_frames(case: Case, n_frames: int) -> Resampling:
    """Stand-ins for rollouts and reference, drawn from equally spaced frames of the reference.

    Raises:
        ValueError: for fewer than two frames.
    """
    rng = np.random.default_rng(case.settings.seed)
    return resample(n_frames, lengths(case, n_frames), rng, repetitions=REPETITIONS)


def convention(case: Case) -> str:
    """How noise floors come about, in words; empty if there is no rollout to compare."""
    if not case.usable:
        return ""
    shares, count = lengths(case, 1), len(case.usable)
    drawn = "a stretch as long as the rollout" if count == 1 else f"{count} separate stretches as long as the rollouts"
    verb = "is" if count == 1 else "are"
    text = (
        "The noise is what a perfect model would show in as many rollouts of this length. Again and again "
        f"{drawn} ({_size(case)}) {verb} cut out of the reference and held against a sample as long as the reference, "
        f"put together from stretches of 1/{STRETCHES} of it; the noise is the mean of the differences, and 1 in 20 "
        "exceeds the 95 % limit."
    )
    if max(shares) * STRETCHES > 1.0:
        text += f" What is longer than 1/{STRETCHES} of the reference is put together from several stretches."
    if min(shares) * MAX_BLOCKS < 1.0:
        text += f" For curves no stretch is shorter than 1/{MAX_BLOCKS} of the reference."
    spacings = [run.spacing_fs for run in case.usable if run.spacing_fs is not None]
    known = case.reference.spacing_fs
    if known is not None and spacings and known > COARSER * min(spacings):
        text += (
            f" Frames of the reference are {known:.3g} fs apart, those of the rollouts {min(spacings):.3g} fs: for "
            "fast motions a stretch holds fewer samples than a rollout, which makes their noise somewhat too high."
        )
    if known is not None and spacings and max(spacings) > COARSER * known:
        text += (
            f" Frames of the rollouts are {max(spacings):.3g} fs apart, those of the reference {known:.3g} fs: for "
            "fast motions a rollout holds fewer samples than a stretch, which makes their noise too low. Write frames "
            "more often (--every-fs)."
        )
    return text


def _size(case: Case) -> str:
    """Lengths of the rollouts in words."""
    known = [run.spacing_fs for run in case.usable]
    if all(known):
        found = [
            1e-3 * max(1, run.usable - 1) * float(spacing or 0.0)
            for run, spacing in zip(case.usable, known, strict=True)
        ]
        unit = "ps"
    else:
        found, unit = [float(run.usable) for run in case.usable], "frames"
    low, high = f"{min(found):.3g}", f"{max(found):.3g}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
