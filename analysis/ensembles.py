# ruff: noqa: N815 (units in names)
"""Is the right ensemble sampled? Tests of kinetic energies, of two temperatures, and of positions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float

from e2former_calc.analysis.constants import BOLTZMANN_EV_PER_K
from e2former_calc.analysis.statistics import Estimate, bootstrap_errors


@dataclass(frozen=True)
class KineticEnergyTest:
    """Kinetic energies against the gamma distribution of the canonical ensemble.

    Attributes:
        T_mean_K: temperature from the mean, 2 <K> / (n k_B).
        T_width_K: temperature from the width, sqrt(2 / n) std(K) / k_B.
        T_mean_error_K: standard error by bootstrap.
        T_width_error_K: the same for the width.
        deviation_mean: distance of `T_mean_K` from the target in standard errors; above 3 is a failure.
        deviation_width: the same for the width. Berendsen's thermostat passes the first and fails this one.
        ks_p_value: Kolmogorov-Smirnov test against the gamma distribution.
        n_samples: number of decorrelated samples used.
    """

    T_mean_K: float
    T_width_K: float
    T_mean_error_K: float
    T_width_error_K: float
    deviation_mean: float
    deviation_width: float
    ks_p_value: float
    n_samples: int


@dataclass(frozen=True)
class EnsembleCheck:
    """Two runs at different temperatures against the Boltzmann distribution.

    Attributes:
        slope_per_eV: fitted slope of ln[P2(E) / P1(E)].
        slope_error: its standard error by bootstrap.
        expected_slope_per_eV: -(1 / k_B T2 - 1 / k_B T1).
        deviation: distance in standard errors.
    """

    slope_per_eV: float
    slope_error: float
    expected_slope_per_eV: float
    deviation: float


def kinetic_energy_test(
    kinetic_energies_eV: Float[np.ndarray, " samples"],
    n_degrees_of_freedom: int,
    temperature_K: float,
    rng: np.random.Generator,
) -> KineticEnergyTest:
    """Compare the distribution of the kinetic energy with that of the canonical ensemble.

    Args:
        kinetic_energies_eV: decorrelated samples (`statistics.decorrelated`).
        n_degrees_of_freedom: 3 N less constraints and motions at rest.
        temperature_K: target.
        rng: for the bootstrap.

    Raises:
        ValueError: for fewer than two samples, or values that are not positive.
    """
    if n_degrees_of_freedom < 1 or temperature_K <= 0:
        raise ValueError(f"no ensemble with {n_degrees_of_freedom} degrees of freedom at {temperature_K} K")
    mean_error, width_error = bootstrap_errors(kinetic_energies_eV, rng)
    to_mean = 2.0 / (n_degrees_of_freedom * BOLTZMANN_EV_PER_K)
    to_width = float(np.sqrt(2.0 / n_degrees_of_freedom)) / BOLTZMANN_EV_PER_K
    mean = float(np.mean(kinetic_energies_eV)) * to_mean
    width = float(np.std(kinetic_energies_eV)) * to_width
    gamma = scipy.stats.gamma(0.5 * n_degrees_of_freedom, scale=BOLTZMANN_EV_PER_K * temperature_K)
    return KineticEnergyTest(
        T_mean_K=mean,
        T_width_K=width,
        T_mean_error_K=mean_error * to_mean,
        T_width_error_K=width_error * to_width,
        deviation_mean=_in_errors(mean - temperature_K, mean_error * to_mean),
        deviation_width=_in_errors(width - temperature_K, width_error * to_width),
        ks_p_value=float(scipy.stats.kstest(kinetic_energies_eV, gamma.cdf).pvalue),
        n_samples=len(kinetic_energies_eV),
    )


def ensemble_check(
    energies_eV: tuple[Float[np.ndarray, " first"], Float[np.ndarray, " second"]],
    temperatures_K: tuple[float, float],
    rng: np.random.Generator,
    *,
    repetitions: int = 100,
) -> EnsembleCheck:
    """Potential energies of two canonical runs: ln[P2(E) / P1(E)] must be a line with slope -(1/k_B T2 - 1/k_B T1).

    The slope is the maximum-likelihood estimate (logistic regression), which needs no bins.

    Args:
        energies_eV: decorrelated potential energies of the two runs.
        temperatures_K: their temperatures.
        rng: for the bootstrap.
        repetitions: bootstrap samples.

    Raises:
        ValueError: if the temperatures are equal, samples are too few, or the energies do not overlap.
    """
    first, second = energies_eV
    if temperatures_K[0] == temperatures_K[1] or min(len(first), len(second)) < 2:
        raise ValueError(f"two temperatures and samples of each are needed, got {temperatures_K} K")
    if first.max() <= second.min() or second.max() <= first.min():
        raise ValueError("the energies of the two runs do not overlap: choose temperatures closer to each other")
    slope = _logistic_slope(first, second)
    drawn = [
        _logistic_slope(rng.choice(first, len(first)), rng.choice(second, len(second))) for _ in range(repetitions)
    ]
    expected = (1.0 / temperatures_K[0] - 1.0 / temperatures_K[1]) / BOLTZMANN_EV_PER_K
    error = float(np.std(drawn))
    return EnsembleCheck(slope, error, expected, _in_errors(slope - expected, error))


def configurational_temperature(
    forces_eV_per_A: Float[np.ndarray, "frames atoms 3"], laplacians_eV_per_A2: Float[np.ndarray, " frames"]
) -> Estimate:
    """T = <|grad U|^2> / (k_B <laplacian U>) in K, with the error by the jackknife over ten blocks.

    Independent of velocities: it shows the bias of the time step, and forces that are no gradient.

    Raises:
        ValueError: if the numbers of frames differ, or the mean Laplacian is not positive.
    """
    squares = np.einsum("fak,fak->f", forces_eV_per_A, forces_eV_per_A)
    if len(squares) != len(laplacians_eV_per_A2) or laplacians_eV_per_A2.mean() <= 0:
        raise ValueError(
            f"{len(squares)} forces and {len(laplacians_eV_per_A2)} Laplacians with mean "
            f"{laplacians_eV_per_A2.mean():g} eV/Å^2: one for each frame is needed, and a positive mean"
        )
    value = float(squares.mean() / laplacians_eV_per_A2.mean() / BOLTZMANN_EV_PER_K)
    block = np.linspace(0, min(10, len(squares)), len(squares), endpoint=False).astype(int)
    n = int(block.max()) + 1
    left_out = np.array(
        [squares[block != k].mean() / laplacians_eV_per_A2[block != k].mean() for k in range(n)] if n > 1 else [np.nan]
    )
    error = float(np.sqrt((n - 1) * left_out.var()) / BOLTZMANN_EV_PER_K)
    return Estimate(value, error, float(n))


def hutchinson_laplacian(
    forces_of: Callable[[Float[np.ndarray, "atoms 3"]], Float[np.ndarray, "atoms 3"]],
    positions_A: Float[np.ndarray, "atoms 3"],
    rng: np.random.Generator,
    *,
    n_vectors: int = 2,
    step_A: float = 1e-3,
) -> float:
    """Laplacian of the potential energy (eV/Å^2) by random projections, two force evaluations each.

    Args:
        forces_of: forces (eV/Å) at given positions.
        positions_A: where.
        rng: for vectors of random signs.
        n_vectors: number of projections that are averaged.
        step_A: displacement of the central difference.

    Raises:
        ValueError: if `n_vectors` or `step_A` is not positive.
    """
    if n_vectors < 1 or step_A <= 0:
        raise ValueError(f"`n_vectors` and `step_A` must be positive, got {n_vectors} and {step_A}")
    total = 0.0
    for _ in range(n_vectors):
        signs = rng.choice([-1.0, 1.0], size=positions_A.shape)
        change = forces_of(positions_A - step_A * signs) - forces_of(positions_A + step_A * signs)
        total += float(np.sum(signs * change)) / (2.0 * step_A)
    return total / n_vectors


def _in_errors(difference: float, error: float) -> float:
    return abs(difference) / error if error > 0 else (0.0 if difference == 0 else float("inf"))


def _logistic_slope(first: Float[np.ndarray, " first"], second: Float[np.ndarray, " second"]) -> float:
    """Slope of ln[P2 / P1] by Newton's method for the logistic likelihood."""
    energies = np.concatenate([first, second])
    center, scale = energies.mean(), energies.std()
    design = np.stack([np.ones(len(energies)), (energies - center) / scale], axis=1)
    label = np.concatenate([np.zeros(len(first)), np.ones(len(second))])
    weights = np.zeros(2)
    for _ in range(50):
        probability = 1.0 / (1.0 + np.exp(-design @ weights))
        gradient = design.T @ (label - probability)
        curvature = (design * (probability * (1.0 - probability))[:, None]).T @ design
        step = np.linalg.solve(curvature, gradient)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[1] / scale)
