"""Shape of molecules: bonds, angles and dihedrals, the backbone of peptides, the radius of gyration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from e2former_calc.analysis.free_energy import MapDistance, RamachandranMap, compare_maps, ramachandran_map
from e2former_calc.analysis.geometry import radii_of_gyration
from e2former_calc.analysis.internal_coordinates import (
    Backbone,
    InternalCoordinates,
    backbone,
    basin_fractions,
    bond_angles,
    compare_coordinates,
    dihedral_angles,
    ramachandran_angles,
)
from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.statistics import DistributionDistance, distribution_distance, mean_with_error
from e2former_calc.analysis.topology import bond_lengths
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError, iterate_chunks
from e2former_calc.report import noise
from e2former_calc.report.correlations import mean_beside
from e2former_calc.report.figures import Trace, draw_coordinates, draw_ramachandran, draw_sizes
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite, reason_of
from e2former_calc.report.sources import Case, Run

COORDINATES, BACKBONE, SIZE = "Bonds, angles and dihedrals", "Backbone of the peptide", "Radius of gyration"
MAP_BINS = 36
LEAST_FRAMES = 20
"""Of rollouts and of reference, for distributions."""

W1 = "mean Wasserstein-1 distance of their distributions; no error is estimated"
Measure = Callable[[Trajectory, Int[np.ndarray, "terms size"]], Float[np.ndarray, "frames terms"]]


def coordinates_section(case: Case) -> Section:
    """Distributions of every bond, angle and dihedral."""
    if few := _too_few(case):
        return Section("coordinates", COORDINATES, skipped=few)
    try:
        terms = InternalCoordinates.from_bonds(bond_reference(case.reference.source).bonds, case.reference.n_atoms)
    except TrajectoryError as error:
        return Section("coordinates", COORDINATES, skipped=f"No bonds: {reason_of(error)}.")
    measures: Mapping[str, tuple[Measure, Int[np.ndarray, "terms size"], str]] = {
        "bonds": (bond_lengths, terms.bonds, "Å"),
        "angles": (bond_angles, terms.angles, "°"),
        "dihedrals": (dihedral_angles, terms.dihedrals, "°"),
    }
    groups: dict[str, tuple[Sequence[DistributionDistance], str]] = {}
    rows: dict[str, list[object]] = {
        name: [] for name in ("kind", "atoms", "unit", "W1", "W1 noise floor", "KS", "KS noise floor")
    }
    for name, (measure, atoms, unit) in measures.items():
        if len(atoms):
            distances = _distances(case, measure, atoms, periodic=name == "dihedrals")
            groups[name] = (distances, unit)
            _add_rows(rows, name, atoms, distances, unit)
    drawing = Drawing(
        "coordinates",
        "Every bond, angle and dihedral as one point: how far its distribution in the rollouts is from that in the "
        "reference, against how far sampling alone would take it. In the grey triangle the rollouts are as close to "
        "the reference as a perfect model would be on average.",
        lambda: draw_coordinates(groups),
    )
    return Section(
        "coordinates", COORDINATES, tuple(_coordinate_quantities(groups)), (Table("coordinates", rows),), (drawing,)
    )


def backbone_section(case: Case) -> Section:
    """Ramachandran maps of peptides."""
    if few := _too_few(case):
        return Section("backbone", BACKBONE, skipped=few)
    try:
        residues = backbone(np.asarray(case.reference.source.numbers), bond_reference(case.reference.source).bonds)
    except ValueError:
        reason = "This is not a peptide: no residue with both φ and ψ was found."
        return Section("backbone", BACKBONE, skipped=reason)
    return _backbone(case, residues)


def size_section(case: Case) -> Section:
    """Radius of gyration of molecules."""
    if case.reference.pbc[0]:
        return Section("size", SIZE, skipped="The system is periodic: it has no radius of gyration.")
    if few := _too_few(case):
        return Section("size", SIZE, skipped=few)
    reference = radii_of_gyration(case.reference.source)
    found = [radii_of_gyration(run.source, stop=run.usable) for run in case.usable]
    pooled = np.concatenate(found)
    quantities = [_size_distance(pooled, reference, case)]
    known = mean_with_error(reference)
    for run, values in zip(case.usable, found, strict=True):
        if len(values) > 1:
            mean, samples = mean_beside(values, run, reference, case.reference)
            quantities.append(
                Quantity(
                    f"mean radius of gyration, {run.name}", mean.value, "Å", finite(mean.error), known.value,
                    finite(known.error), note=samples,
                )
            )  # fmt: skip
    traces = [Trace(run.name, _times(run), values) for run, values in zip(case.usable, found, strict=True)]
    drawing = Drawing(
        "size",
        "Radius of gyration along the rollouts (left), and its distribution beside that of the reference (right).",
        lambda: draw_sizes(traces, reference),
    )
    table = Table(
        "size",
        {
            "rollout": [trace.name for trace in traces for _ in trace.values],
            "time [ps]": np.concatenate([trace.times_ps for trace in traces]).tolist(),
            "radius of gyration [Å]": pooled.tolist(),
        },
    )
    return Section("size", SIZE, tuple(quantities), (table,), (drawing,))


def _size_distance(
    pooled: Float[np.ndarray, " frames"], reference: Float[np.ndarray, " reference_frames"], case: Case
) -> Quantity:
    thin = reference[:: -(-len(reference) // case.settings.max_frames)]
    distance = distribution_distance(pooled, thin, noise.of_frames(case, len(thin)))
    return Quantity(
        "radius of gyration, distance of distributions", distance.wasserstein, "Å",
        noise_floor=distance.noise_wasserstein, noise_upper_95=_upper_95(distance.noise),
        note="Wasserstein-1 distance; no error is estimated",
    )  # fmt: skip


def _upper_95(noise_samples: Float[np.ndarray, " repetitions"]) -> float:
    return float(np.quantile(noise_samples, 0.95))


def _too_few(case: Case) -> str | None:
    frames, known = sum(run.usable for run in case.usable), len(case.reference.source)
    if min(frames, known) >= LEAST_FRAMES:
        return None
    return f"Too few frames, {frames} stable ones of rollouts and {known} of the reference; {LEAST_FRAMES} are needed."


def _times(run: Run) -> Float[np.ndarray, " frames"]:
    """Times in ps, or numbers of frames where there are none."""
    times = np.arange(run.usable, dtype=np.float64) if run.times_ps is None else run.times_ps
    return times[: run.usable]


def _distances(
    case: Case, measure: Measure, atoms: Int[np.ndarray, "terms size"], *, periodic: bool
) -> list[DistributionDistance]:
    limit = case.settings.max_frames
    total = sum(run.usable for run in case.usable)
    step = -(-total // limit)
    rollouts = np.concatenate([_measured(run.source, measure, atoms, step, run.usable) for run in case.usable])
    frames = len(case.reference.source)
    reference = _measured(case.reference.source, measure, atoms, -(-frames // limit), frames)
    return compare_coordinates(rollouts, reference, periodic=periodic, resampling=noise.of_frames(case, len(reference)))


def _measured(
    source: FrameSource, measure: Measure, atoms: Int[np.ndarray, "terms size"], step: int, stop: int
) -> Float[np.ndarray, "frames terms"]:
    """Values in every `step`-th frame."""
    parts, seen = [], 0
    for chunk in iterate_chunks(source, stop=stop):
        first = -seen % step
        if first < len(chunk):
            parts.append(measure(chunk.read(first, len(chunk)).every(step), atoms))
        seen += len(chunk)
    return np.concatenate(parts)


def _add_rows(
    rows: dict[str, list[object]],
    name: str,
    atoms: Int[np.ndarray, "terms size"],
    distances: Sequence[DistributionDistance],
    unit: str,
) -> None:
    for term, distance in zip(atoms.tolist(), distances, strict=True):
        values = (
            name.removesuffix("s"), "-".join(map(str, term)), unit, distance.wasserstein, distance.noise_wasserstein,
            distance.ks_statistic, distance.noise_ks,
        )  # fmt: skip
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)


def _coordinate_quantities(groups: Mapping[str, tuple[Sequence[DistributionDistance], str]]) -> list[Quantity]:
    return [
        Quantity(
            f"{name}, mean distance of distributions",
            float(np.mean([distance.wasserstein for distance in distances])),
            unit,
            noise_floor=float(np.mean([distance.noise_wasserstein for distance in distances])),
            noise_upper_95=_upper_95(np.mean([distance.noise for distance in distances], axis=0)),
            note=W1,
        )
        for name, (distances, unit) in groups.items()
    ]


def _backbone(case: Case, residues: Backbone) -> Section:
    reference = ramachandran_angles(case.reference.source, residues)
    parts = [ramachandran_angles(run.source, residues, stop=run.usable) for run in case.usable]
    rollouts = np.concatenate([phi for phi, _ in parts]), np.concatenate([psi for _, psi in parts])
    count = residues.phi.shape[0]
    drawn = noise.of_frames(case, min(len(reference[0]), case.settings.max_frames))
    distances = [
        compare_maps(
            (rollouts[0][:, k], rollouts[1][:, k]), (reference[0][:, k], reference[1][:, k]), n_bins=MAP_BINS,
            resampling=drawn,
        )
        for k in range(count)
    ]  # fmt: skip
    maps = [
        [ramachandran_map(phi[:, k], psi[:, k], n_bins=MAP_BINS) for k in range(count)]
        for phi, psi in (reference, rollouts)
    ]
    drawing = Drawing(
        "ramachandran",
        "Ramachandran maps of each residue, from the N terminus on; reference above, rollouts below; white: no frame.",
        lambda: draw_ramachandran(maps[0], maps[1]),
    )
    tables = (_basin_table(reference, rollouts), _map_table(maps))
    quantities = tuple(map(_map_quantity, distances, range(count)))
    return Section("backbone", BACKBONE, quantities, tables, (drawing,))


def _map_quantity(distance: MapDistance, residue: int) -> Quantity:
    return Quantity(
        f"Ramachandran map of residue {residue + 1}, divergence",
        distance.divergence,
        "1",
        finite(distance.error),
        noise_floor=float(distance.noise.mean()),
        noise_upper_95=_upper_95(distance.noise),
        note="Jensen-Shannon, base 2, 0 to 1; error: jackknife over blocks of the rollouts",
    )


def _basin_table(
    reference: tuple[Float[np.ndarray, "frames residues"], Float[np.ndarray, "frames residues"]],
    rollouts: tuple[Float[np.ndarray, "frames residues"], Float[np.ndarray, "frames residues"]],
) -> Table:
    columns: dict[str, list[object]] = {"residue": [], "basin": [], "rollouts [%]": [], "reference [%]": []}
    for k in range(reference[0].shape[1]):
        found, known = (basin_fractions(phi[:, k], psi[:, k]) for phi, psi in (rollouts, reference))
        for basin, share in known.items():
            for header, value in zip(columns, (k + 1, basin, 100.0 * found[basin], 100.0 * share), strict=True):
                columns[header].append(value)
    return Table("basins", columns, shown=True, caption="Share of the frames in each basin of the Ramachandran map.")


def _map_table(maps: Sequence[Sequence[RamachandranMap]]) -> Table:
    edges = maps[0][0].edges_degrees
    centers = 0.5 * (edges[1:] + edges[:-1])
    psi, phi = np.meshgrid(centers, centers, indexing="ij")
    columns: dict[str, list[float]] = {"phi [°]": phi.ravel().tolist(), "psi [°]": psi.ravel().tolist()}
    for name, parts in zip(("reference", "rollouts"), maps, strict=True):
        for k, part in enumerate(parts):
            columns[f"residue {k + 1} {name}"] = part.probability.ravel().tolist()
    return Table("ramachandran", columns)
