"""Energy and temperature along the rollouts, and the conservation of energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from e2former_calc.analysis.ensembles import kinetic_energy_test
from e2former_calc.analysis.statistics import Estimate, mean_with_error, statistical_inefficiency
from e2former_calc.analysis.thermodynamics import EnergyDrift, energy_drift
from e2former_calc.report.correlations import mean_beside
from e2former_calc.report.figures import Trace, draw_energy_and_temperature, draw_total_energy
from e2former_calc.report.section import Drawing, Quantity, Section, Table, finite
from e2former_calc.report.sources import Case, Run

CONSERVED_SHARE = 0.2
"""Of the fluctuation of the kinetic energy: if the total energy fluctuates less, it is conserved."""

SAME_ZERO = 0.05
"""eV per atom: mean potential energies farther apart than this have different zeros."""

MOVING_FRAMES = 20
"""Frames from which on fluctuations are judged."""

WIDTH_SAMPLES = 50
"""Independent kinetic energies that their distribution is judged from, at least."""


def conserves_energy(run: Run, ensemble: str | None) -> bool:
    """Whether a run is NVE: as told, as its file says, or because its total energy does not fluctuate."""
    if ensemble is not None:
        return ensemble == "nve"
    stated = str(run.attributes.get("ensemble", "")).lower()
    if stated[:3] in ("nve", "nvt", "npt"):
        return stated.startswith("nve")
    total, kinetic = total_energy(run), run.kinetic_eV
    if total is None or kinetic is None or run.usable < MOVING_FRAMES:
        return False
    steps = np.arange(run.usable, dtype=np.float64)
    residuals = total - np.polynomial.Polynomial.fit(steps, total, 1)(steps)
    return bool(residuals.std() < CONSERVED_SHARE * kinetic[: run.usable].std())


def total_energy(run: Run) -> Float[np.ndarray, " frames"] | None:
    """Potential plus kinetic energy (eV) of the usable frames; None if one of them is not stored."""
    if run.energies_eV is None or run.kinetic_eV is None or not run.usable:
        return None
    total = np.asarray(run.energies_eV[: run.usable] + run.kinetic_eV[: run.usable])
    return total if np.isfinite(total).all() else None


def thermal_inefficiency(run: Run) -> float:
    """Frames of a thermostatted run that make one independent kinetic energy, at least 1.

    No fewer than of the total energy: the thermostat changes it slowly, and half of that shows in the kinetic energy,
    where fast vibrations hide it.
    """
    series = [total_energy(run), None if run.kinetic_eV is None else run.kinetic_eV[: run.usable]]
    known = [values for values in series if values is not None and len(values) > 1]
    return max((statistical_inefficiency(values) for values in known), default=1.0)


def independent_kinetic(run: Run) -> Float[np.ndarray, " samples"]:
    """Kinetic energies (eV) of a thermostatted run, far enough apart in time to be independent."""
    if run.kinetic_eV is None:
        return np.zeros(0)
    return np.asarray(run.kinetic_eV[: run.usable : int(np.ceil(thermal_inefficiency(run)))])


def energies_section(case: Case) -> Section:
    """Potential energy and temperature of rollouts and reference."""
    energies, label = _energy_traces(case)
    temperatures = [
        Trace(run.name, _times(run), run.temperatures_K[: run.usable])
        for run in case.usable
        if run.temperatures_K is not None and _timed(run)
    ]
    remarks = []
    if not energies:
        remarks.append("There is no trace of the potential energy: the rollouts store no energies.")
    if not temperatures:
        remarks.append("There is no temperature: the rollouts store neither velocities nor temperatures.")
    quantities = _temperature_quantities(case, remarks)
    if not energies and not temperatures:
        reason = "The rollouts store neither energies nor velocities." if case.usable else "No frame is stable."
        return Section("energies", "Energy and temperature", skipped=reason)
    energy_band, temperature_band = _energy_band(case), _band(case.reference.temperatures_K)
    drawing = Drawing(
        "energy-temperature",
        "Potential energy per atom and kinetic temperature; faint: every frame, thick: running mean over a fiftieth of "
        "the length; grey: mean and two standard deviations of the reference.",
        lambda: draw_energy_and_temperature(
            energies, temperatures, energy_band=energy_band, temperature_band=temperature_band, energy_label=label
        ),
    )
    return Section("energies", "Energy and temperature", tuple(quantities), (_table(case),), (drawing,), tuple(remarks))


def drift_section(case: Case) -> Section:
    """Drift of the total energy of rollouts at constant energy."""
    title = "Conservation of energy"
    chosen = [run for run in case.usable if conserves_energy(run, case.settings.ensemble)]
    if not chosen:
        reason = "The rollouts are thermostatted, or do not say otherwise: there is no drift of an energy to judge."
        return Section("drift", title, skipped=reason)
    known = [(run, total) for run in chosen if _timed(run) and (total := total_energy(run)) is not None]
    known = [(run, total) for run, total in known if len(total) >= MOVING_FRAMES]
    if not known:
        reason = (
            f"A drift needs energies, velocities and {MOVING_FRAMES} stable frames; the rollouts lack some of them."
        )
        return Section("drift", title, skipped=reason)
    drifts = [_drift(run, total, case) for run, total in known]
    traces = [Trace(run.name, _times(run), (total - total[0]) * 1e3 / run.n_atoms) for run, total in known]
    slopes = [drift.slope_meV_per_atom_per_ps for drift in drifts]
    drawing = Drawing(
        "total-energy",
        "Total energy of the rollouts at constant energy, relative to their first frame, with the fitted drift.",
        lambda: draw_total_energy(traces, slopes),
    )
    quantities = [q for (run, _), drift in zip(known, drifts, strict=True) for q in _drift_quantities(run, drift)]
    return Section("drift", title, tuple(quantities), (), (drawing,), _reference_drift(case))


def _drift(run: Run, total: Float[np.ndarray, " frames"], case: Case) -> EnergyDrift:
    return energy_drift(
        1e3 * _times(run), total, run.n_atoms, temperature_K=case.temperature_K, n_degrees_of_freedom=run.degrees
    )


def _drift_quantities(run: Run, drift: EnergyDrift) -> list[Quantity]:
    found = [
        Quantity(
            f"energy drift, {run.name}", drift.slope_meV_per_atom_per_ps, "meV/atom/ps", finite(drift.slope_error),
            note=f"least-squares slope over {drift.length_ps:.4g} ps, with sign",
        ),
        Quantity(
            f"energy fluctuation, {run.name}", drift.fluctuation_meV_per_atom, "meV/atom",
            note="standard deviation about the line; no error is estimated",
        ),
    ]  # fmt: skip
    if drift.slope_kT_per_ns_per_degree is not None:
        note = "the same drift; its relative error is the same"
        found.append(Quantity(f"energy drift, {run.name}", drift.slope_kT_per_ns_per_degree, "kT/ns/degree", note=note))
    return found


def _reference_drift(case: Case) -> tuple[str, ...]:
    run = case.reference
    total = total_energy(run)
    if total is None or not _timed(run) or len(total) < MOVING_FRAMES or not conserves_energy(run, None):
        return ()
    drift = _drift(run, total, case)
    return (
        f"The reference drifts by {drift.slope_meV_per_atom_per_ps:+.3g} meV/atom/ps and fluctuates by "
        f"{drift.fluctuation_meV_per_atom:.3g} meV/atom.",
    )


def _energy_traces(case: Case) -> tuple[list[Trace], str]:
    """Potential energies in meV per atom, relative to the reference if it has the same zero, and the label."""
    chosen = [run for run in case.usable if run.energies_eV is not None and _timed(run)]
    own = [float(np.mean(np.asarray(run.energies_eV)[: run.usable])) / run.n_atoms for run in chosen]
    known = case.reference.energies_eV
    mean = None if known is None else float(known.mean()) / case.reference.n_atoms
    shared = mean is not None and all(abs(value - mean) < SAME_ZERO for value in own)
    zeros = [mean if shared and mean is not None else value for value in own]
    traces = [
        Trace(run.name, _times(run), 1e3 * (np.asarray(run.energies_eV)[: run.usable] / run.n_atoms - zero))
        for run, zero in zip(chosen, zeros, strict=True)
    ]
    return traces, f"E − mean of {'reference' if shared else 'rollout'}\n[meV/atom]"


def _energy_band(case: Case) -> tuple[float, float] | None:
    """Around the mean of the reference, in meV per atom."""
    known = case.reference.energies_eV
    if known is None:
        return None
    return 0.0, 1e3 * float(known.std()) / case.reference.n_atoms


def _band(values: Float[np.ndarray, " frames"] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values.mean()), float(values.std()))


def _temperature_quantities(case: Case, remarks: list[str]) -> list[Quantity]:
    reference = None if case.reference.temperatures_K is None else _mean(case.reference.temperatures_K)
    target = "" if reference is not None or case.temperature_K is None else f"; the target is {case.temperature_K:g} K"
    found = []
    for run in case.usable:
        if run.temperatures_K is None or run.usable < 2:
            continue
        mean, samples = _mean_of(run, case)
        found.append(
            Quantity(
                f"mean temperature, {run.name}", mean.value, "K", finite(mean.error),
                reference=None if reference is None else reference.value,
                reference_error=None if reference is None else finite(reference.error),
                note=f"{run.degrees} degrees of freedom, {samples}{target}",
            )
        )  # fmt: skip
        found += _kinetic_test(run, case)
    if found:
        remarks.append(
            "Degrees of freedom: three per atom, less three each for translation and rotation where these are at rest."
        )
    return found


def _kinetic_test(run: Run, case: Case) -> list[Quantity]:
    """Width of the distribution of the kinetic energy, which tells a good thermostat from a bad one."""
    target = case.temperature_K
    if target is None or run.kinetic_eV is None or conserves_energy(run, case.settings.ensemble):
        return []
    samples = independent_kinetic(run)
    if len(samples) < WIDTH_SAMPLES:
        return []
    test = kinetic_energy_test(samples, run.degrees, target, np.random.default_rng(case.settings.seed))
    return [
        Quantity(
            f"temperature from the width, {run.name}", finite(test.T_width_K), "K", finite(test.T_width_error_K),
            note=f"of the distribution of the kinetic energy; the target is {target:g} K, {test.n_samples} samples",
        )
    ]  # fmt: skip


def _mean_of(run: Run, case: Case) -> tuple[Estimate, str]:
    """Mean temperature of a rollout, and how many independent samples are behind it."""
    values, known = np.asarray(run.temperatures_K)[: run.usable], case.reference.temperatures_K
    if known is None or len(known) < MOVING_FRAMES or not (np.isfinite(values).all() and np.isfinite(known).all()):
        mean = _mean(values)
    else:
        mean, samples = mean_beside(values, run, known, case.reference)
        if mean.n_independent <= 1.0:
            return mean, samples
    most = len(values) if conserves_energy(run, case.settings.ensemble) else len(values) / thermal_inefficiency(run)
    if most < mean.n_independent:
        mean = Estimate(mean.value, mean.error * float(np.sqrt(mean.n_independent / most)), most)
    return mean, f"{mean.n_independent:.3g} independent samples"


def _mean(values: Float[np.ndarray, " frames"]) -> Estimate:
    return mean_with_error(values[np.isfinite(values)]) if np.isfinite(values).sum() > 1 else Estimate(0.0, 0.0, 0.0)


def _timed(run: Run) -> bool:
    return run.times_ps is not None


def _times(run: Run) -> Float[np.ndarray, " frames"]:
    return np.asarray(run.times_ps)[: run.usable]


def _table(case: Case) -> Table:
    runs = case.usable
    columns: dict[str, Sequence[object]] = {
        "rollout": [run.name for run in runs for _ in range(run.usable)],
        "frame": [frame for run in runs for frame in range(run.usable)],
    }
    series = (
        ("time [ps]", [run.times_ps for run in runs]),
        ("potential energy [eV]", [run.energies_eV for run in runs]),
        ("kinetic energy [eV]", [run.kinetic_eV for run in runs]),
        ("temperature [K]", [run.temperatures_K for run in runs]),
    )
    for header, values in series:
        if any(value is not None for value in values):
            columns[header] = [
                item
                for run, value in zip(runs, values, strict=True)
                for item in ([None] * run.usable if value is None else value[: run.usable].tolist())
            ]
    return Table("energies", columns)
