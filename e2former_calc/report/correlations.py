"""Whether reference and rollouts are long enough for what is read from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float

from e2former_calc.analysis.geometry import radii_of_gyration
from e2former_calc.analysis.internal_coordinates import InternalCoordinates, dihedral_angles
from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.statistics import Estimate, mean_with_error, statistical_inefficiency
from e2former_calc.analysis.trajectory import TrajectoryError, iterate_chunks
from e2former_calc.report.sources import Case, Run

LEAST_FRAMES = 10
"""For an estimate of correlations."""

LEAST_SAMPLES = 10.0
"""Independent samples of the slowest motion from which on a rollout counts as long."""


def noise_caveats(case: Case) -> list[str]:
    """What to say if reference or rollouts are short against the slow motions; nothing if they are long.

    Judged by slow observables of the reference: radius of gyration and dihedrals of molecules, potential energy of
    periodic systems.
    """
    reference = case.reference
    if reference.times_ps is None or len(reference.source) < LEAST_FRAMES:
        return []
    found = [(statistical_inefficiency(series), name) for name, series in _slow(case)]
    if not found:
        return []
    frames, name = max(found)
    caveats = []
    independent = len(reference.source) / frames
    if independent < 2 * case.settings.n_blocks:
        caveats.append(
            f"The reference is short: of its slowest motion looked at, {name}, it holds about "
            f"{max(independent, 1.0):.0f} independent samples. The noise stated here is a lower limit, and an excess "
            "over it may be sampling, too."
        )
    lengths = [length for run in case.usable if (length := _length_fs(run)) is not None]
    if reference.spacing_fs is not None and lengths:
        caveats += _short_rollouts(max(lengths), frames * reference.spacing_fs, name)
    return caveats


def mean_beside(
    series: Float[np.ndarray, " frames"],
    run: Run,
    known: Float[np.ndarray, " reference_frames"],
    reference: Run,
) -> tuple[Estimate, str]:
    """Mean of a rollout with an error that knows of correlations longer than the rollout.

    A short rollout cannot show its slow motions. The number of its independent samples is no larger than its length
    over the correlation time of the reference; where that is less, the spread is at least that of the reference.

    Args:
        series: of the usable frames of the rollout.
        run: the rollout.
        known: the same observable in every frame of the reference.
        reference: the reference.

    Returns:
        The estimate, and the number of samples in words.

    Raises:
        ValueError: for fewer than two frames.
    """
    own = mean_with_error(series)
    length_fs, spacing_fs = _length_fs(run), reference.spacing_fs
    if length_fs is None or spacing_fs is None or len(known) < LEAST_FRAMES:
        return own, f"{own.n_independent:.3g} independent samples"
    correlation_fs = statistical_inefficiency(known) * spacing_fs
    samples = length_fs / correlation_fs
    if samples >= own.n_independent:
        return own, f"{own.n_independent:.3g} independent samples"
    spread = max(float(np.std(series, ddof=1)), float(np.std(known, ddof=1)))
    counted = "less than one independent sample" if samples < 1.0 else f"{samples:.3g} independent samples"
    note = f"{counted}: in the reference one takes {1e-3 * correlation_fs:.3g} ps"
    return Estimate(own.value, spread / float(np.sqrt(max(samples, 1.0))), max(samples, 1.0)), note


def _length_fs(run: Run) -> float | None:
    return None if run.spacing_fs is None else max(1, run.usable - 1) * run.spacing_fs


def _short_rollouts(length_fs: float, correlation_fs: float, name: str) -> list[str]:
    samples = length_fs / correlation_fs
    if samples >= LEAST_SAMPLES:
        return []
    held = "less than one independent sample" if samples < 1.0 else f"about {samples:.0f} independent samples"
    return [
        f"The rollouts are short: {1e-3 * length_fs:.3g} ps hold {held} of {name}, the slowest motion looked at, which "
        f"takes {1e-3 * correlation_fs:.3g} ps in the reference. What moves so slowly is not tested: it shows where "
        "the rollouts started."
    ]


def _slow(case: Case) -> Iterator[tuple[str, Float[np.ndarray, " frames"]]]:
    reference = case.reference
    if reference.pbc[0]:
        if reference.energies_eV is not None:
            yield "the potential energy", reference.energies_eV
        return
    yield "the radius of gyration", radii_of_gyration(reference.source)
    try:
        terms = InternalCoordinates.from_bonds(bond_reference(reference.source).bonds, reference.n_atoms)
    except TrajectoryError:
        return
    symbols = [chemical_symbols[z] for z in np.asarray(reference.source.numbers)]
    one_per_axis = {tuple(sorted(atoms[1:3])): atoms for atoms in terms.dihedrals.tolist()}
    if not one_per_axis:
        return
    chosen = np.array(list(one_per_axis.values()))
    angles = np.radians(np.concatenate([dihedral_angles(c, chosen) for c in iterate_chunks(reference.source)]))
    for k, atoms in enumerate(chosen.tolist()):
        for part in (np.cos(angles[:, k]), np.sin(angles[:, k])):
            yield f"the dihedral {'-'.join(f'{symbols[atom]}{atom}' for atom in atoms)}", part
