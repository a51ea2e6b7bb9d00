"""Whether the reference is long enough for the noise that is read from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.geometry import radii_of_gyration
from e2former_calc.analysis.internal_coordinates import InternalCoordinates, dihedral_angles
from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.statistics import statistical_inefficiency
from e2former_calc.analysis.trajectory import TrajectoryError, iterate_chunks
from e2former_calc.report.sources import Case

LEAST_FRAMES = 10
"""For an estimate of correlations."""


def noise_caveat(case: Case) -> str | None:
    """What to say if the blocks of the reference are not long against its correlations; None if they are.

    Judged by slow observables: radius of gyration and dihedrals of molecules, potential energy of periodic systems.
    """
    if case.reference.times_ps is None or len(case.reference.source) < LEAST_FRAMES:
        return None
    found = [(len(series) / statistical_inefficiency(series), name) for name, series in _slow(case)]
    if not found:
        return None
    independent, name = min(found)
    if independent >= 2 * case.settings.n_blocks:
        return None
    return (
        f"The reference is short: of its slowest motion looked at, {name}, it holds about {max(independent, 1.0):.0f} "
        "independent samples. The noise stated here is a lower limit, and an excess over it may be sampling, too."
    )


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
    one_per_axis = {tuple(sorted(atoms[1:3])): atoms for atoms in terms.dihedrals.tolist()}
    if not one_per_axis:
        return
    chosen = np.array(list(one_per_axis.values()))
    angles = np.radians(np.concatenate([dihedral_angles(c, chosen) for c in iterate_chunks(reference.source)]))
    for k, atoms in enumerate(chosen.tolist()):
        for part in (np.cos(angles[:, k]), np.sin(angles[:, k])):
            yield f"the dihedral {'-'.join(map(str, atoms))}", part
