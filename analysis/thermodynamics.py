# ruff: noqa: N815 (units in names)
"""Energies, temperatures and momenta: conservation of energy, and the warmth of every kind of motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from e2former_calc.analysis.constants import AMU_A2_PER_FS2_EV, BOLTZMANN_EV_PER_K
from e2former_calc.analysis.statistics import Estimate, mean_with_error, statistical_inefficiency
from e2former_calc.analysis.trajectory import Trajectory

MEV_PER_EV: Final = 1000.0


@dataclass(frozen=True)
class EnergyDrift:
    """How well an energy that should be conserved is conserved.

    Attributes:
        slope_meV_per_atom_per_ps: least-squares slope, with sign.
        slope_error: its standard error, in the same unit, with the correlation of the residuals accounted for.
        slope_kT_per_ns_per_degree: the same slope in k_B T per ns and degree of freedom; None without a temperature.
        fluctuation_meV_per_atom: standard deviation about the line.
        n_atoms: number of atoms.
        length_ps: length of the series.
    """

    slope_meV_per_atom_per_ps: float
    slope_error: float
    slope_kT_per_ns_per_degree: float | None
    fluctuation_meV_per_atom: float
    n_atoms: int
    length_ps: float


@dataclass(frozen=True)
class IntegratorConvergence:
    """Whether the fluctuation of the conserved energy falls with the square of the time step.

    Attributes:
        timesteps_fs: descending.
        fluctuations_eV: standard deviation of the conserved energy at each time step.
        max_deviation: largest |1 - (s_k / s_k+1) / (dt_k / dt_k+1)^2|; 0 for a perfect symplectic integrator.
    """

    timesteps_fs: Float[np.ndarray, " steps"]
    fluctuations_eV: Float[np.ndarray, " steps"]
    max_deviation: float


def kinetic_energies(trajectory: Trajectory) -> Float[np.ndarray, " frames"]:
    """Kinetic energy of each frame (eV).

    Raises:
        TrajectoryError: without velocities.
    """
    return np.asarray(kinetic_energies_by_atom(trajectory).sum(axis=1))


def kinetic_energies_by_atom(trajectory: Trajectory) -> Float[np.ndarray, "frames atoms"]:
    """Kinetic energy of each atom (eV).

    Raises:
        TrajectoryError: without velocities.
    """
    trajectory.require("velocities")
    velocities = np.asarray(trajectory.velocities)
    squared = np.einsum("fak,fak->fa", velocities, velocities)
    return np.asarray(0.5 * AMU_A2_PER_FS2_EV * np.asarray(trajectory.masses) * squared)


def temperatures(trajectory: Trajectory, n_degrees_of_freedom: int) -> Float[np.ndarray, " frames"]:
    """Kinetic temperature (K) of each frame.

    Args:
        trajectory: with velocities.
        n_degrees_of_freedom: 3 N less constraints and conserved motions that are at rest.

    Raises:
        TrajectoryError: without velocities.
        ValueError: if there is no degree of freedom.
    """
    if n_degrees_of_freedom < 1:
        raise ValueError(f"`n_degrees_of_freedom` must be positive, got {n_degrees_of_freedom}")
    return kinetic_energies(trajectory) * (2.0 / (n_degrees_of_freedom * BOLTZMANN_EV_PER_K))


def total_energies(trajectory: Trajectory) -> Float[np.ndarray, " frames"]:
    """Potential plus kinetic energy (eV).

    Raises:
        TrajectoryError: without energies or velocities.
    """
    trajectory.require("energies", "velocities")
    return np.asarray(np.asarray(trajectory.energies) + kinetic_energies(trajectory))


def energy_drift(
    times_fs: Float[np.ndarray, " frames"],
    energies_eV: Float[np.ndarray, " frames"],
    n_atoms: int,
    *,
    temperature_K: float | None = None,
    n_degrees_of_freedom: int | None = None,
) -> EnergyDrift:
    """Drift and fluctuation of a conserved energy: the total energy in NVE, the extended one with a thermostat.

    Args:
        times_fs: time of each frame.
        energies_eV: conserved energy of the whole system.
        n_atoms: number of atoms.
        temperature_K: for the drift in units of k_B T.
        n_degrees_of_freedom: for the same; default 3 per atom.

    Raises:
        ValueError: for fewer than three frames, or values that are not finite.
    """
    if len(times_fs) < 3 or len(times_fs) != len(energies_eV):
        raise ValueError(f"a drift needs three times and energies or more, got {len(times_fs)} and {len(energies_eV)}")
    if not (np.isfinite(energies_eV).all() and np.isfinite(times_fs).all()):
        raise ValueError("times and energies must be finite: cut the series before the run explodes")
    times_ps = (times_fs - times_fs[0]) * 1e-3
    fit = scipy.stats.linregress(times_ps, energies_eV - energies_eV[0])
    residuals = energies_eV - energies_eV[0] - fit.intercept - fit.slope * times_ps
    scale = MEV_PER_EV / n_atoms
    in_kT = None
    if temperature_K is not None:
        degrees = n_degrees_of_freedom or 3 * n_atoms
        in_kT = float(fit.slope) * 1e3 / (degrees * BOLTZMANN_EV_PER_K * temperature_K)
    return EnergyDrift(
        slope_meV_per_atom_per_ps=float(fit.slope) * scale,
        slope_error=float(fit.stderr) * scale * float(np.sqrt(statistical_inefficiency(residuals))),
        slope_kT_per_ns_per_degree=in_kT,
        fluctuation_meV_per_atom=float(residuals.std(ddof=2)) * scale,
        n_atoms=n_atoms,
        length_ps=float(times_ps[-1]),
    )


def integrator_convergence(conserved_eV: Mapping[float, Float[np.ndarray, " frames"]]) -> IntegratorConvergence:
    """Order of the integrator from runs of equal length with different time steps.

    Args:
        conserved_eV: conserved energy of each run, by its time step in fs.

    Raises:
        ValueError: for fewer than two time steps.
    """
    if len(conserved_eV) < 2:
        raise ValueError(f"two time steps or more are needed, got {sorted(conserved_eV)}")
    steps = np.array(sorted(conserved_eV, reverse=True), dtype=np.float64)
    sigma = np.array([np.std(conserved_eV[step]) for step in sorted(conserved_eV, reverse=True)])
    ratio = (sigma[:-1] / sigma[1:]) / (steps[:-1] / steps[1:]) ** 2
    return IntegratorConvergence(steps, sigma, float(np.abs(1.0 - ratio).max()))


def temperature_by_element(
    trajectory: Trajectory, degrees_by_atom: Float[np.ndarray, " atoms"] | None = None
) -> dict[str, Estimate]:
    """Mean kinetic temperature (K) of the atoms of each element, with errors.

    Equal within errors in equilibrium; light atoms run hot first when the time step is too large.

    Args:
        trajectory: with velocities.
        degrees_by_atom: degrees of freedom that each atom has (`mean_degrees_by_atom`); default 3 each.

    Raises:
        TrajectoryError: without velocities.
        ValueError: for fewer than two frames.
    """
    energies = kinetic_energies_by_atom(trajectory)
    degrees = np.full(trajectory.n_atoms, 3.0) if degrees_by_atom is None else degrees_by_atom
    result = {}
    for number in np.unique(trajectory.numbers):
        mine = trajectory.numbers == number
        total = float(degrees[mine].sum())
        if total > 0:
            series = energies[:, mine].sum(axis=1) * (2.0 / (total * BOLTZMANN_EV_PER_K))
            result[chemical_symbols[number]] = mean_with_error(series)
    return result


def mean_degrees_by_atom(
    trajectory: Trajectory, *, translation_at_rest: bool, rotation_at_rest: bool
) -> Float[np.ndarray, " atoms"]:
    """Share of the degrees of freedom that each atom has when common motions are at rest, mean over the frames.

    Atom i has 3 less the squares of its components in the unit vectors of the common motions, in mass-weighted
    coordinates: 3 m_i / M for translation, m_i tr(X_i^T I^-1 X_i) for rotation, with X_i the cross-product matrix of
    its position relative to the centre of mass and I the tensor of inertia. The sum is 3 N less 3 for each.
    """
    masses = np.asarray(trajectory.masses)
    degrees = np.full(trajectory.n_atoms, 3.0)
    if translation_at_rest:
        degrees -= 3.0 * masses / masses.sum()
    if rotation_at_rest:
        x = trajectory.positions - np.einsum("a,fak->fk", masses / masses.sum(), trajectory.positions)[:, None]
        inverse = np.linalg.pinv(_inertia(masses, x), rcond=1e-6, hermitian=True)
        squares = np.einsum("fak,fak->fa", x, x)
        # tr(X^T A X) = |x|^2 tr(A) - x.A.x for a symmetric A
        projected = squares * np.trace(inverse, axis1=1, axis2=2)[:, None] - np.einsum("fai,fij,faj->fa", x, inverse, x)
        degrees -= masses * projected.mean(axis=0)
    return degrees


def temperature_by_motion(trajectory: Trajectory, molecule_of: Int[np.ndarray, " atoms"]) -> dict[str, Estimate]:
    """Mean temperature (K) of "translation", "rotation" and "internal" motion of the molecules, with errors.

    Each molecule has 3 translations, 3 rotations (2 if linear, 0 for an atom), the rest is internal. Motions that no
    molecule has are left out. Molecules must not be cut by the cell boundary (unwrapped positions).

    Args:
        trajectory: with velocities.
        molecule_of: number of the molecule of each atom (`topology.molecules`).

    Raises:
        TrajectoryError: without velocities.
        ValueError: for fewer than two frames.
    """
    energies = kinetic_energies_by_atom(trajectory).sum(axis=1)
    translation, rotation, degrees_rotation = np.zeros(len(trajectory)), np.zeros(len(trajectory)), 0
    n_molecules = int(molecule_of.max()) + 1
    for molecule in range(n_molecules):
        atoms = np.flatnonzero(molecule_of == molecule)
        moving, spinning, degrees = _rigid_motion(trajectory, atoms)
        translation += moving
        rotation += spinning
        degrees_rotation += degrees
    degrees_internal = 3 * trajectory.n_atoms - 3 * n_molecules - degrees_rotation
    parts = {
        "translation": (translation, 3 * n_molecules),
        "rotation": (rotation, degrees_rotation),
        "internal": (energies - translation - rotation, degrees_internal),
    }
    return {
        name: mean_with_error(series * (2.0 / (degrees * BOLTZMANN_EV_PER_K)))
        for name, (series, degrees) in parts.items()
        if degrees > 0
    }


def momenta(trajectory: Trajectory) -> Float[np.ndarray, "frames 3"]:
    """Total momentum of each frame (amu Å/fs).

    Raises:
        TrajectoryError: without velocities.
    """
    trajectory.require("velocities")
    return np.asarray(np.einsum("a,fak->fk", np.asarray(trajectory.masses), np.asarray(trajectory.velocities)))


def angular_momenta(trajectory: Trajectory) -> Float[np.ndarray, "frames 3"]:
    """Angular momentum about the centre of mass (amu Å^2/fs), meaningful without periodicity.

    Raises:
        TrajectoryError: without velocities.
    """
    trajectory.require("velocities")
    masses = np.asarray(trajectory.masses)
    relative = trajectory.positions - np.einsum("a,fak->fk", masses / masses.sum(), trajectory.positions)[:, None]
    return np.asarray(np.einsum("a,fak->fk", masses, np.cross(relative, np.asarray(trajectory.velocities))))


def _rigid_motion(
    trajectory: Trajectory, atoms: Int[np.ndarray, " mine"]
) -> tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " frames"], int]:
    """Translational and rotational energy (eV) of a molecule, and the number of its rotations."""
    masses = np.asarray(trajectory.masses)[atoms]
    share = masses / masses.sum()
    x, v = trajectory.positions[:, atoms], np.asarray(trajectory.velocities)[:, atoms]
    center_v = np.einsum("a,fak->fk", share, v)
    moving = 0.5 * AMU_A2_PER_FS2_EV * masses.sum() * np.einsum("fk,fk->f", center_v, center_v)
    if len(atoms) == 1:
        return moving, np.zeros(len(x)), 0
    x = x - np.einsum("a,fak->fk", share, x)[:, None]
    spin = np.einsum("a,fak->fk", masses, np.cross(x, v - center_v[:, None]))
    inertia = _inertia(masses, x)
    inverse = np.linalg.pinv(inertia, rcond=1e-6, hermitian=True)
    spinning = 0.5 * AMU_A2_PER_FS2_EV * np.einsum("fi,fij,fj->f", spin, inverse, spin)
    moments = np.linalg.eigvalsh(inertia[0])
    return moving, spinning, 3 if moments[0] > 1e-6 * moments[-1] else 2


def _inertia(
    masses: Float[np.ndarray, " atoms"], relative_A: Float[np.ndarray, "frames atoms 3"]
) -> Float[np.ndarray, "frames 3 3"]:
    """Tensor of inertia (amu Å^2) of positions relative to the centre of mass."""
    squares = np.einsum("a,fak,fak->f", masses, relative_A, relative_A)
    products = np.einsum("a,fai,faj->fij", masses, relative_A, relative_A)
    return np.asarray(squares[:, None, None] * np.eye(3) - products)
