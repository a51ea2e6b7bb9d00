"""Kinetic energy: its distribution, its share among elements and motions, and what common motions should be at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.ensembles import configurational_temperature, hutchinson_laplacian, kinetic_energy_test
from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.statistics import Estimate, decorrelated
from e2former_calc.analysis.thermodynamics import (
    angular_momenta,
    mean_degrees_by_atom,
    momenta,
    temperature_by_element,
    temperature_by_motion,
)
from e2former_calc.analysis.topology import molecules, whole_molecules
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError, at_most
from e2former_calc.report.energies import MOVING_FRAMES, WIDTH_SAMPLES, conserves_energy, independent_kinetic
from e2former_calc.report.motion_figures import KineticSample, draw_kinetics
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Method, Run

TITLE = "Kinetic energy and equipartition"
A_PER_FS_IN_A_PER_PS = 1000.0
MAX_ELEMENTS = 6
LEAST_LAPLACIANS = 5
"""Frames that a configurational temperature is taken from, at least."""

_FEW_LAPLACIANS = (
    f"The configurational temperature needs {LEAST_LAPLACIANS} frames or more of a rollout (--truth-samples), and "
    "curvatures that are positive on average."
)


def kinetics_section(case: Case) -> Section:
    """Tests that need velocities, and the configurational temperature where the model is at hand."""
    runs = [run for run in case.usable if run.kinetic_eV is not None and run.usable >= MOVING_FRAMES]
    if not runs:
        reason = f"The rollouts store no velocities, or fewer than {MOVING_FRAMES} stable frames."
        return Section("kinetics", TITLE, skipped=reason if case.usable else "No frame of any rollout is stable.")
    known = [case.reference] if case.reference.kinetic_eV is not None and _long(case.reference) else []
    limit = case.settings.max_frames
    found = _averaged([_by_element(run, limit) for run in runs])
    reference = _averaged([_by_element(run, limit) for run in known])
    quantities = _temperatures("temperature of", found, reference, "equal for all elements in equilibrium")
    quantities += _motions(runs, known, case)
    quantities += _distribution(runs, case)
    quantities += _common_motions(runs, known)
    configurational, remarks = _configurational(runs, case)
    quantities += configurational
    samples = [_sample(runs, case, found), _sample(known, case, reference) if known else None]
    drawing = Drawing(
        "kinetics",
        "Left: distribution of the kinetic energy in independent frames, beside that of the canonical ensemble at the "
        "target temperature. Right: mean temperature of the atoms of each element with its standard error.",
        lambda: draw_kinetics(_only(samples[0]), samples[1], temperature_K=case.temperature_K),
    )
    return Section("kinetics", TITLE, tuple(quantities), (_table(runs, limit),), (drawing,), tuple(remarks))


def _only(sample: KineticSample | None) -> KineticSample:
    if sample is None:
        raise TrajectoryError("the rollouts have no kinetic energy")
    return sample


def _long(run: Run) -> bool:
    return run.usable >= MOVING_FRAMES


def _frames(run: Run, limit: int) -> Trajectory:
    source: FrameSource = at_most(run.good, limit)
    return source.read(0, len(source))


def _by_element(run: Run, limit: int) -> dict[str, Estimate]:
    frames = _frames(run, limit)
    translation, rotation = run.at_rest
    degrees = mean_degrees_by_atom(frames, translation_at_rest=translation, rotation_at_rest=rotation)
    return temperature_by_element(frames, degrees)


def _averaged(parts: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Means over trajectories of equal weight."""
    if not parts:
        return {}
    return {name: _mean([part[name] for part in parts]) for name in parts[0]}


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """With the larger one of the errors within the trajectories and of the scatter between them."""
    values, errors = (np.array([getattr(estimate, name) for estimate in estimates]) for name in ("value", "error"))
    within = float(np.sqrt((errors**2).sum())) / len(errors)
    between = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), max(within, between), sum(estimate.n_independent for estimate in estimates))


def _temperatures(
    what: str, found: Mapping[str, Estimate], reference: Mapping[str, Estimate], definition: str
) -> list[Quantity]:
    if len(found) < 2:
        return []
    quantities = []
    for name, estimate in list(found.items())[:MAX_ELEMENTS]:
        known = reference.get(name)
        quantities.append(
            Quantity(
                f"{what} {name}", finite(estimate.value), "K", finite(estimate.error),
                None if known is None else finite(known.value), None if known is None else finite(known.error),
                note=f"{definition}; {estimate.n_independent:.3g} independent samples",
            )
        )  # fmt: skip
    return quantities


def _motions(runs: Sequence[Run], known: Sequence[Run], case: Case) -> list[Quantity]:
    """Translation, rotation and inner motion of the molecules of a liquid."""
    try:
        bonds = bond_reference(case.reference.source).bonds
    except TrajectoryError:
        return []
    molecule_of = molecules(case.reference.n_atoms, bonds)
    if molecule_of.max() == 0:
        return []

    def of(run: Run) -> dict[str, Estimate]:
        frames = _frames(run, case.settings.max_frames)
        whole = Trajectory(
            whole_molecules(frames, bonds), frames.numbers, masses=frames.masses, velocities=frames.velocities
        )
        by_motion = temperature_by_motion(whole, molecule_of)
        return {f"{name} motion" if name == "internal" else name: found for name, found in by_motion.items()}

    found, reference = (_averaged([of(run) for run in part]) for part in (runs, known))
    definition = "of the molecules; equal for all motions in equilibrium"
    return _temperatures("temperature of molecular", found, reference, definition)


def _distribution(runs: Sequence[Run], case: Case) -> list[Quantity]:
    """Kolmogorov-Smirnov test of the kinetic energies of all thermostatted rollouts of equal degrees of freedom."""
    target = case.temperature_K
    chosen = [run for run in runs if not conserves_energy(run, case.settings.ensemble)]
    if target is None or not chosen or len({run.degrees for run in chosen}) > 1:
        return []
    samples = np.concatenate([independent_kinetic(run) for run in chosen])
    if len(samples) < WIDTH_SAMPLES:
        return []
    test = kinetic_energy_test(samples, chosen[0].degrees, target, np.random.default_rng(case.settings.seed))
    return [
        Quantity(
            "kinetic energy, p value of the canonical distribution", test.ks_p_value, "1",
            note=f"Kolmogorov-Smirnov, {test.n_samples} independent samples at {target:g} K; below 0.01 is a failure; "
            "a probability has no error",
        )
    ]  # fmt: skip


def _common_motions(runs: Sequence[Run], known: Sequence[Run]) -> list[Quantity]:
    measures: dict[str, tuple[Callable[[Run], float], str]] = {"centre of mass, largest speed": (_speed, "Å/ps")}
    if not runs[0].pbc[0]:
        measures["angular momentum, largest"] = (_spin, "amu Å²/fs")
    note = "an extreme value over the frames, no error is estimated; 0 if the motion was removed"
    return [
        Quantity(
            name, finite(max(measure(run) for run in runs)), unit,
            reference=finite(max((measure(run) for run in known), default=float("nan"))), note=note,
        )
        for name, (measure, unit) in measures.items()
    ]  # fmt: skip


def _speed(run: Run) -> float:
    frames = _frames(run, 1000)
    total = np.linalg.norm(momenta(frames), axis=1).max() / np.asarray(frames.masses).sum()
    return float(total) * A_PER_FS_IN_A_PER_PS


def _spin(run: Run) -> float:
    return float(np.linalg.norm(angular_momenta(_frames(run, 1000)), axis=1).max())


def _configurational(runs: Sequence[Run], case: Case) -> tuple[list[Quantity], list[str]]:
    """Temperature from positions alone; curvatures come from the model, a pair of forces for each frame."""
    remark = (
        "Degrees of freedom of an element: three per atom, less its share in translation and rotation where these are "
        "at rest."
    )
    if case.model is None:
        return [], [remark, "The configurational temperature needs the model that made the rollouts (--model)."]
    estimates = []
    for run in runs:
        estimate = _from_positions(run, case.model, case)
        if estimate is not None:
            estimates.append(estimate)
    if not estimates:
        return [], [remark, _FEW_LAPLACIANS]
    mean = _mean(estimates)
    note = f"<|F|²> / k<∇²U> with forces and curvatures of {case.model.name}; independent of the velocities"
    return [Quantity("configurational temperature", finite(mean.value), "K", finite(mean.error), note=note)], [remark]


def _from_positions(run: Run, model: Method, case: Case) -> Estimate | None:
    source = run.good
    frames = np.unique(np.linspace(0, len(source) - 1, case.settings.truth_samples).round().astype(int))
    if len(frames) < LEAST_LAPLACIANS:
        return None
    rng = np.random.default_rng(case.settings.seed)
    forces, laplacians = [], []
    for frame in frames.tolist():
        atoms = source.read(frame, frame + 1).to_atoms(0)
        atoms.calc = model.calculator

        def forces_at(positions: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
            atoms.positions = positions  # noqa: B023 (called within this turn of the loop)
            return np.asarray(atoms.get_forces(apply_constraint=False), dtype=np.float64)  # noqa: B023

        start = atoms.positions.copy()
        forces.append(forces_at(start))
        laplacians.append(hutchinson_laplacian(forces_at, start, rng, n_vectors=1))
    try:
        return configurational_temperature(np.array(forces), np.array(laplacians))
    except ValueError:
        return None


def _shown_kinetic(run: Run, case: Case) -> Float[np.ndarray, " samples"]:
    """Of a run at constant energy only the kinetic energy itself tells which frames are independent."""
    if conserves_energy(run, None if run is case.reference else case.settings.ensemble):
        return decorrelated(np.asarray(run.kinetic_eV)[: run.usable])
    return independent_kinetic(run)


def _sample(runs: Sequence[Run], case: Case, by_element: Mapping[str, Estimate]) -> KineticSample:
    return KineticSample(np.concatenate([_shown_kinetic(run, case) for run in runs]), runs[0].degrees, by_element)


def _table(runs: Sequence[Run], limit: int) -> Table:
    columns: dict[str, list[object]] = {"rollout": [], "element": [], "temperature [K]": [], "error [K]": []}
    for run in runs:
        for symbol, estimate in _by_element(run, limit).items():
            row = (run.name, symbol, estimate.value, finite(estimate.error))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return Table("temperature-by-element", columns)
