"""The examination: all checks of one potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from e2former_calc.doctor.check import Check, judged, skipped
from e2former_calc.doctor.composition import batch_check, extensivity_checks, net_force_checks, repeat_check
from e2former_calc.doctor.derivatives import force_checks, stress_check
from e2former_calc.doctor.sample import Sample, Structure, default_structures, predict
from e2former_calc.doctor.smoothness import cap_checks, cutoff_checks
from e2former_calc.doctor.symmetry import mirror_check, symmetry_checks
from e2former_calc.potentials.interface import Potential

PRECISION_ROUNDING = 1e3
"""Rounding units of the lower precision by which energies (per atom) and forces may differ from float64."""


def examine(
    potential: Potential,
    structure: Structure | None = None,
    *,
    lower_precision: Potential | None = None,
    seed: int = 0,
) -> list[Check]:
    """Measure symmetries, derivatives, smoothness and precision of a potential.

    Limits follow from the precision of `potential`: give it in float64. Every check runs, whatever
    the others say; a check that raises counts as failed.

    Args:
        potential: what is examined.
        structure: takes the place of the built-in molecule, or of the built-in crystal if it is periodic.
        lower_precision: the same potential in float32, to be compared.
        seed: of random rotations, orders and directions.

    Raises:
        ValueError: if the potential cannot evaluate the structures at all.
    """
    samples = [Sample(potential, s) for s in structures_for(potential, structure)]
    for sample in samples:
        _check_finite(sample)
    groups: list[tuple[str, Callable[[], list[Check]]]] = [
        ("repeated calls", lambda: [repeat_check(samples)]),
        ("symmetry", lambda: symmetry_checks(samples, seed)),
        ("batch independence", lambda: [batch_check(samples)]),
        ("extensivity", lambda: extensivity_checks(samples)),
        ("forces against differences", lambda: force_checks(samples, seed)),
        ("stress against differences", lambda: [stress_check(samples)]),
        ("net force", lambda: net_force_checks(samples)),
        ("cutoff jump", lambda: cutoff_checks(samples)),
        ("neighbour cap", lambda: cap_checks(samples)),
        ("precision", lambda: precision_checks(samples, lower_precision)),
        ("mirror image", lambda: [mirror_check(samples)]),
    ]
    return [check for name, group in groups for check in _guarded(name, group)]


def structures_for(potential: Potential, structure: Structure | None) -> tuple[Structure, Structure]:
    """A molecule and a periodic structure, one of them `structure` if it is given."""
    molecule, crystal = default_structures(potential.elements)
    if structure is None:
        return molecule, crystal
    return (molecule, structure) if structure.periodic else (structure, crystal)


def precision_checks(samples: Sequence[Sample], lower_precision: Potential | None) -> list[Check]:
    """Energies and forces in lower precision against those of the samples."""
    names = (("precision, energy", "eV/atom"), ("precision, forces", "eV/Å"))
    if lower_precision is None:
        return [skipped(name, unit, "no potential in lower precision to compare with") for name, unit in names]
    eps = torch.finfo(lower_precision.dtype).eps
    errors, limits = [], []
    for sample in samples:
        rough = predict(lower_precision, sample.system)
        energy = float((rough.energy - sample.prediction.energy).abs()[0]) / sample.n_atoms
        force = float("nan") if rough.forces is None else float((rough.forces - sample.forces).abs().max())
        errors.append((energy, force))
        limits.append(PRECISION_ROUNDING * eps * sample.force_scale)
    how = f"{lower_precision.dtype} against {samples[0].potential.dtype}".replace("torch.", "")
    failed = "the network amplifies rounding: use dtype='float64' for optimisation, vibrations and NVE"
    checks = []
    for index, (name, unit) in enumerate(names):
        worst = max(range(len(samples)), key=lambda k: errors[k][index] / limits[k])
        where = f"{how}, {samples[worst].name}"
        checks.append(judged(name, errors[worst][index], unit, limit=limits[worst], passed=where, failed=failed))
    return checks


def _check_finite(sample: Sample) -> None:
    if not (bool(torch.isfinite(sample.prediction.energy).all()) and bool(torch.isfinite(sample.forces).all())):
        raise ValueError(
            f"the potential returns NaN or infinity for {sample.name}: its weights are damaged or do not fit"
        )


def _guarded(name: str, group: Callable[[], list[Check]]) -> list[Check]:
    try:
        return group()
    except Exception as error:
        return [Check(name, None, "", None, "fail", f"could not be carried out: {type(error).__name__}: {error}")]
