"""Torsions about the bonds of molecules that turn, and angles between neighbours in periodic systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Int

from e2former_calc.analysis.angles import Triple, angle_distribution
from e2former_calc.analysis.histograms import BlockedHistogram
from e2former_calc.analysis.internal_coordinates import dihedral_distributions, rotatable_dihedrals
from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.rdf import first_shell_A, radial_distributions
from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.trajectory import FrameSource, TrajectoryError, at_most
from e2former_calc.report.curves import MAX_PAIRS, NO_FRAME, CurveKind, blocked_sources, compared_section
from e2former_calc.report.noise import reference_blocks
from e2former_calc.report.section import Section, reason_of
from e2former_calc.report.sources import Case

MAX_TORSIONS = MAX_PAIRS + 2
"""Bonds that are shown; those between heavy atoms with heavy neighbours first."""

ANGLE_FRAMES = 400
"""Equally spaced frames of each trajectory that angles between neighbours are taken from."""

SHELL_FRAMES = 40
"""The same for the distance at which the first shell of neighbours ends."""

OXYGEN_SHELL_A = 3.5
"""End of the first shell of water."""

TORSIONS = CurveKind(
    "torsions", "Torsions", "1", "density [1/°]", "Δdensity [1/°]",
    "half the integral of |Δ|: the share of frames that would have to be elsewhere, 0 to 1; error by the jackknife "
    "over rollouts or blocks of them",
    x_label="dihedral angle [°]", number="distributions differ", limits=(-180.0, 180.0),
    caption="Distribution of the dihedral angle about each bond that can turn, numbered as the atoms from 0 on; the "
    "grey band around the two curves is as wide as sampling alone makes their difference.",
)  # fmt: skip
ANGLES = CurveKind(
    "angles", "Angles between neighbours (ADF)", "1", "density [1/°]", "Δdensity [1/°]",
    "integral of |Δ| over the angle, 0 to 2; error by the jackknife over rollouts or blocks of them",
    x_label="angle [°]", number="distributions differ", limits=(0.0, 180.0),
    caption="Distribution of the angles between an atom and two of its neighbours; the grey band around the two curves "
    "is as wide as sampling alone makes their difference.",
)  # fmt: skip


def torsions_section(case: Case) -> Section:
    """Distribution of the dihedral angle about each bond that can turn."""
    kind, reference = TORSIONS, case.reference.source
    if not case.usable:
        return Section(kind.name, kind.title, skipped=NO_FRAME)
    try:
        bonds = bond_reference(reference).bonds
    except TrajectoryError as error:
        return Section(kind.name, kind.title, skipped=f"No bonds: {reason_of(error)}.")
    numbers = np.asarray(reference.numbers)
    found = rotatable_dihedrals(numbers, bonds)
    if not len(found):
        return Section(kind.name, kind.title, skipped="No bond can turn: all are in rings or at the ends of molecules.")
    chosen = found[:MAX_TORSIONS]
    left = len(found) - len(chosen)
    remarks = [f"{left} more bonds that can turn are left out."] if left else []
    labels = [_torsion_label(atoms, numbers) for atoms in chosen]
    known, *curves = (
        dict(zip(labels, dihedral_distributions(source, chosen, stop=stop, n_blocks=n_blocks), strict=True))
        for source, stop, n_blocks in blocked_sources(case)
    )
    return compared_section(kind, curves, known, case, remarks=remarks)


def angles_section(case: Case) -> Section:
    """Angles between neighbours in periodic systems."""
    kind = ANGLES
    if not case.reference.pbc[1]:
        reason = (
            "The angles of a molecule are those between its bonds, see there; this section is for periodic systems."
        )
        return Section(kind.name, kind.title, skipped=reason)
    if not case.usable:
        return Section(kind.name, kind.title, skipped=NO_FRAME)
    triples = _triples(case)
    curves = [_angle_curves(run.good, triples, case.settings.n_blocks) for run in case.usable]
    known = _angle_curves(case.reference.source, triples, reference_blocks(case))
    seen = [label for label, curve in known.items() if curve.denominators.all()]
    if not seen:
        return Section(kind.name, kind.title, skipped="No atom of the reference has two neighbours in its first shell.")
    parts = [{label: part[label] for label in seen} for part in (*curves, known)]
    cutoffs = "; ".join(f"{label}: {_legs(triples[label])}" for label in seen)
    remarks = (
        f"Neighbours are those within the first shell of the reference's g(r): {cutoffs}. At most {ANGLE_FRAMES} "
        "equally spaced frames of each trajectory are used.",
    )
    return compared_section(kind, parts[:-1], parts[-1], case, remarks=remarks)


def _torsion_label(atoms: Int[np.ndarray, "4"], numbers: Int[np.ndarray, " atoms"]) -> str:
    return "-".join(f"{chemical_symbols[numbers[atom]]}{atom}" for atom in atoms.tolist())


def _angle_curves(source: FrameSource, triples: Mapping[str, Triple], n_blocks: int) -> dict[str, BlockedHistogram]:
    frames = at_most(source, ANGLE_FRAMES)
    return {
        label: angle_distribution(frames, triple, n_bins=60, n_blocks=n_blocks) for label, triple in triples.items()
    }


def _triples(case: Case) -> dict[str, Triple]:
    """Angles to look at: those of the hydrogen bonds in water, elsewhere those in the first shell of each element."""
    numbers = np.asarray(case.reference.source.numbers)
    symbols = [chemical_symbols[z] for z in np.unique(numbers)[::-1]]
    if set(symbols) == {"H", "O"}:
        return {
            "O-O-O": Triple.neighbours("O", "O", "O", OXYGEN_SHELL_A),
            "O-H···O": Triple.hydrogen_bond(),
            "H-O-H": Triple.neighbours("H", "O", "H", 1.3),
        }
    found: dict[str, Triple] = {}
    for center, end in product(symbols, symbols):
        cutoff = _shell(case, center, end)
        if cutoff is not None and len(found) < MAX_PAIRS:
            found[f"{end}-{center}-{end}"] = Triple.neighbours(end, center, end, cutoff)
    return found


def _shell(case: Case, center: str, end: str) -> float | None:
    numbers = np.asarray(case.reference.source.numbers)
    symbols: Sequence[str] = [chemical_symbols[z] for z in numbers]
    if center == end and symbols.count(center) < 2:
        return None
    (partial,) = radial_distributions(
        at_most(case.reference.source, SHELL_FRAMES), [(center, end)], RdfSettings(case.settings.rdf_r_max_A, 120)
    )
    return first_shell_A(partial.g)


def _legs(triple: Triple) -> str:
    legs = dict.fromkeys((triple.first, triple.second))
    return " and ".join(f"{end} {low:g} to {high:.2f} Å" for end, low, high in legs)
