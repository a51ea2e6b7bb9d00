"""What is wrong, or looks wrong, with a data set; run before training, because training hides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from ase.data import chemical_symbols, covalent_radii
from ase.units import Hartree
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.neighbors import OVERLAP_DISTANCE, check_geometry, neighbor_list, squared_length
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import MAX_ATOMIC_NUMBER, Dataset
from e2former_calc.potentials.training.reference import least_squares_reference

LARGE_FORCE, SMALL_FORCE = 10.0, 0.05
"""Typical force components (eV/Å) of thermal structures lie between these."""

NET_FORCE = 0.01
"""Net force per atom (eV/Å) above which forces are not those of an isolated or periodic system."""

DUPLICATE_TOLERANCE = 1e-6
"""Largest difference (Å) of any coordinate between structures that count as the same."""

OUTLIER_DEVIATIONS = 12.0
"""Robust standard deviations from the median beyond which a label is an outlier."""

MIN_ENERGY_OUTLIER, MIN_FORCE_OUTLIER = 0.02, 2.0
"""Deviations below these (eV per atom, eV/Å) are never outliers, however narrow the distribution."""

CLOSE_CONTACT = 0.5
"""Atoms closer than this fraction of the sum of their covalent radii are suspicious."""

MIN_ELEMENT_FRAMES = 10
_CHUNK = 512


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
        severity: "error" if training is pointless until it is repaired, else "warning".
        message: what was found, with the remedy.
        frames: indices of the structures concerned; empty if it is the whole set.
    """

    severity: Literal["error", "warning"]
    message: str
    frames: tuple[int, ...]


def check_dataset(dataset: Dataset) -> list[Finding]:
    """Look for labels that are not finite, wrong units, net forces, duplicates, outliers, overlaps and more.

    Frames with labels or geometries that are no numbers are reported and left out of the other checks.
    Memory beyond the data set: one copy of the structures of one composition.

    Returns:
        Errors first, then warnings; empty if nothing was found.
    """
    if not len(dataset):
        return [Finding("error", f"{dataset.source} holds no structures: add data", ())]
    broken, findings = _broken_frames(dataset)
    good = [frame for frame in range(len(dataset)) if frame not in broken]
    if good:
        checks: tuple[Callable[[Dataset], list[Finding]], ...] = (
            _overlaps,
            _energy_unit,
            _force_labels,
            _constant_energy,
            _energy_outliers,
            _duplicates,
            _element_coverage,
        )
        sound = dataset.subset(good)
        for check in checks:
            findings += [replace(f, frames=tuple(good[k] for k in f.frames)) for f in check(sound)]
    return sorted(findings, key=lambda finding: finding.severity)


def _broken_frames(dataset: Dataset) -> tuple[set[int], list[Finding]]:
    """Frames that no other check can look at, and what to say about them."""
    not_finite, geometry, reasons = [], [], []
    for frame, system in enumerate(dataset.systems):
        stress = dataset.stress[frame]
        labels = (dataset.energy[frame], dataset.forces[frame], *(() if stress is None else (stress,)))
        if not all(bool(torch.isfinite(label).all()) for label in labels):
            not_finite.append(frame)
            continue
        reason = _geometry_error(system)
        if reason:
            geometry.append(frame)
            reasons.append(reason)
    findings = []
    if not_finite:
        message = f"labels are not finite (NaN or infinite) in {_name(not_finite)}: remove or recompute these frames"
        findings.append(Finding("error", message, tuple(not_finite)))
    if geometry:
        message = f"geometries cannot be used in {_name(geometry)}; the first: {reasons[0]}"
        findings.append(Finding("error", message, tuple(geometry)))
    return {*not_finite, *geometry}, findings


def _geometry_error(system: System) -> str:
    if system.n_atoms == 0:
        return "there are no atoms"
    low, high = int(system.numbers.min()), int(system.numbers.max())
    if low < 1 or high > MAX_ATOMIC_NUMBER:
        return f"atomic numbers must be 1 ... {MAX_ATOMIC_NUMBER}, got {low if low < 1 else high}"
    try:
        check_geometry(system)
    except ValueError as error:
        return str(error)
    return ""


def _overlaps(dataset: Dataset) -> list[Finding]:
    radii = torch.from_numpy(covalent_radii)
    overlapping: dict[int, str] = {}
    close: list[int] = []
    cutoff = max(2 * CLOSE_CONTACT * float(radii[sorted(dataset.elements)].max()), OVERLAP_DISTANCE)
    for start in range(0, len(dataset), _CHUNK):
        systems = dataset.systems[start : start + _CHUNK]
        try:
            close += [start + k for k in _close_contacts(System.stack(systems), cutoff, radii)]
        except ValueError:
            for frame, system in enumerate(systems, start):
                try:
                    close += [frame] * len(_close_contacts(system, cutoff, radii))
                except ValueError as error:
                    overlapping[frame] = str(error)
    findings = []
    if overlapping:
        frame, reason = next(iter(overlapping.items()))
        message = f"geometries cannot be used in {_name(list(overlapping))}; frame {frame}: {reason}"
        findings.append(Finding("error", message, tuple(overlapping)))
    if close:
        message = (
            f"atoms are closer than {CLOSE_CONTACT:g} of the sum of their covalent radii in {_name(close)}: "
            "check that positions are in Å, and the cell"
        )
        findings.append(Finding("warning", message, tuple(close)))
    return findings


def _close_contacts(system: System, cutoff: float, radii: Float[Tensor, " elements"]) -> list[int]:
    """Structures of `system` with two atoms closer than `CLOSE_CONTACT` of their radii; raises for overlaps."""
    edges = neighbor_list(system, cutoff)
    squared = squared_length(edges.vectors(system.positions, system.cell, system.batch))
    sum_of_radii = radii[system.numbers[edges.center]] + radii[system.numbers[edges.source]]
    too_close = squared < (CLOSE_CONTACT * sum_of_radii).square()
    found: list[int] = system.batch[edges.center[too_close]].unique().tolist()
    return found


def _energy_unit(dataset: Dataset) -> list[Finding]:
    """Compare total energies with the Scott-Schwinger energy of the free atoms (all electrons)."""
    elements, counts = dataset.compositions
    Z = elements.double()
    atoms = -Hartree * (0.768745 * Z ** (7 / 3) - 0.5 * Z**2 + 0.2699 * Z ** (5 / 3))
    ratio = float((dataset.energy / (counts.double() @ atoms)).median())
    per_atom = float((dataset.energy / counts.sum(1)).median())
    said = f"typical energy {per_atom:.4g} eV per atom is"
    if ratio > 5.0:
        message = (
            f"{said} {ratio:.3g} times that of the free atoms with all electrons: is the energy in kcal/mol or kJ/mol?"
        )
        return [Finding("warning", f"{message} Convert it to eV", ())]
    if abs(ratio * Hartree - 1.0) < 0.1:
        message = f"{said} that of the free atoms with all electrons if the unit is Hartree: convert the energy to eV"
        return [Finding("warning", message, ())]
    return []


def _force_labels(dataset: Dataset) -> list[Finding]:
    size = torch.tensor([system.n_atoms for system in dataset.systems], dtype=torch.float64)
    square, largest, net = _force_statistics(dataset)
    findings = []
    many = size > 1
    zero = many & (largest == 0)
    findings += _warn(zero, "all forces are exactly zero in {}: these look like placeholders, leave the frames out")
    rms = float((square / (3 * size)).sqrt()[many & ~zero].median()) if bool((many & ~zero).any()) else 1.0
    if rms > LARGE_FORCE:
        message = f"typical force component {rms:.3g} eV/Å is very large: are the forces in kcal/mol/Å? Convert to eV/Å"
        findings.append(Finding("warning", message, ()))
    elif rms < SMALL_FORCE:
        message = (
            f"typical force component {rms:.3g} eV/Å is very small: are the forces in Hartree/Bohr (convert to eV/Å), "
            "or all structures relaxed?"
        )
        findings.append(Finding("warning", message, ()))
    threshold = NET_FORCE * max(1.0, rms)
    findings += _warn(
        many & (net / size > threshold),
        f"forces add up to more than {threshold:.2g} eV/Å per atom in {{}}: they are noisy, constrained, or there is "
        "an external field; the forces of a potential always add up to zero",
    )
    findings += _warn(
        (_deviations(largest) > OUTLIER_DEVIATIONS) & (largest - largest.median() > MIN_FORCE_OUTLIER),
        f"largest force is an outlier (typical {float(largest.median()):.3g}, largest {float(largest.max()):.3g} eV/Å) "
        "in {}: check that the calculation converged",
    )
    return findings


def _force_statistics(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of squares, largest norm, and norm of the sum of the forces of each frame."""
    parts = []
    for frames in _chunks(len(dataset)):
        forces = torch.cat([dataset.forces[k] for k in frames]).double()
        sizes = torch.tensor([dataset.systems[k].n_atoms for k in frames])
        frame = torch.repeat_interleave(torch.arange(len(frames)), sizes)
        square = squared_length(forces)
        total = forces.new_zeros(len(frames))
        net = forces.new_zeros(len(frames), 3).index_add_(0, frame, forces)
        largest = total.scatter_reduce(0, frame, square, "amax")
        parts.append((total.index_add(0, frame, square), largest.sqrt(), squared_length(net).sqrt()))
    square, largest, net = (torch.cat(column) for column in zip(*parts, strict=True))
    return square, largest, net


def _constant_energy(dataset: Dataset) -> list[Finding]:
    if len(dataset) > 1 and bool((dataset.energy == dataset.energy[0]).all()):
        message = f"every structure has the same energy, {float(dataset.energy[0]):.6g} eV: the label is a placeholder"
        return [Finding("warning", message, ())]
    return []


def _energy_outliers(dataset: Dataset) -> list[Finding]:
    _, counts = dataset.compositions
    reference = least_squares_reference(dataset)[sorted(dataset.elements)]
    per_atom = (dataset.energy - counts.double() @ reference) / counts.sum(1)
    deviation = (per_atom - per_atom.median()).abs()
    return _warn(
        (_deviations(per_atom) > OUTLIER_DEVIATIONS) & (deviation > MIN_ENERGY_OUTLIER),
        f"energy per atom is an outlier (up to {float(deviation.max()):.3g} eV from the median after the reference "
        "energies) in {}: check that the calculation converged to the right state",
    )


def _duplicates(dataset: Dataset) -> list[Finding]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for frame, system in enumerate(dataset.systems):
        key = (system.numbers.numpy().tobytes(), *system.pbc[0].tolist(), int(system.charge), int(system.spin))
        groups.setdefault(key, []).append(frame)
    found = [frame for members in groups.values() if len(members) > 1 for frame in _repeated(dataset, members)]
    if not found:
        return []
    message = f"{_name(sorted(found))} repeat the structure of another frame: remove them, or validation is no test"
    return [Finding("warning", message, tuple(sorted(found)))]


def _repeated(dataset: Dataset, members: list[int]) -> list[int]:
    """The frames of `members` (same atoms in the same order) that another one before them equals.

    Equal structures have equal projections on any direction; only neighbours in the order of one
    random projection are compared.
    """
    rows = [torch.cat([dataset.systems[k].positions, dataset.systems[k].cell[0]]).flatten() for k in members]
    table = torch.stack(rows)
    direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projection = table @ (direction / direction.norm())
    order = torch.argsort(projection, stable=True)
    reach = DUPLICATE_TOLERANCE * table.shape[1] ** 0.5 + 1e-12 * float(projection.abs().max())
    later = torch.zeros(len(members), dtype=torch.bool)
    lag = 1
    while lag < len(order):
        near = projection[order[lag:]] - projection[order[:-lag]] <= reach
        if not bool(near.any()):
            break
        one, two = order[:-lag][near], order[lag:][near]
        same = torch.cat([_equal(table, a, b) for a, b in zip(one.split(_CHUNK), two.split(_CHUNK), strict=True)])
        later[torch.maximum(one[same], two[same])] = True
        # A repeated structure is done with; its first occurrence stays to be compared with the rest.
        order = order[~later[order]]
        lag = 1 if bool(same.any()) else lag + 1
    return [members[k] for k in later.nonzero()[:, 0].tolist()]


def _equal(
    table: Float[Tensor, "frames numbers"], one: Int[Tensor, " pairs"], two: Int[Tensor, " pairs"]
) -> Bool[Tensor, " pairs"]:
    return (table[one] - table[two]).abs().amax(1) <= DUPLICATE_TOLERANCE


def _element_coverage(dataset: Dataset) -> list[Finding]:
    elements, counts = dataset.compositions
    frames = (counts > 0).sum(0)
    rare = frames < MIN_ELEMENT_FRAMES
    if not bool(rare.any()):
        return []
    pairs = zip(elements[rare].tolist(), frames[rare].tolist(), strict=True)
    said = ", ".join(f"{chemical_symbols[number]} ({count} frames)" for number, count in pairs)
    concerned = (counts[:, rare] > 0).any(1).nonzero()[:, 0].tolist()
    message = f"too few structures to learn an element from: {said}; have at least {MIN_ELEMENT_FRAMES} frames of each"
    return [Finding("warning", message, tuple(concerned))]


def _deviations(values: Float[Tensor, " frames"]) -> Float[Tensor, " frames"]:
    """Distance from the median in robust standard deviations."""
    distance = (values - values.median()).abs()
    spread = 1.4826 * distance.median()
    return distance / spread.clamp_min(torch.finfo(values.dtype).tiny)


def _warn(concerned: Bool[Tensor, " frames"], message: str) -> list[Finding]:
    """A warning if any frame is concerned; "{}" in the message becomes their names."""
    frames = concerned.nonzero()[:, 0].tolist()
    return [Finding("warning", message.format(_name(frames)), tuple(frames))] if frames else []


def _name(frames: list[int]) -> str:
    """The first few frames in words."""
    if len(frames) == 1:
        return f"frame {frames[0]}"
    shown = ", ".join(str(frame) for frame in frames[:5])
    return f"{len(frames)} frames ({shown}{', ...' if len(frames) > 5 else ''})"


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
