"""Moves, sums and checks of a step on the host, each in one pass over the atoms.

What they do is written as operations of torch in `dynamics`, `integrators`, `stopping` and `forces`, which devices and
constraints need; results are equal to the last bit. A step of a small molecule is made of so few numbers that most
of the time of an operation of torch goes into its call. Arrays called `new_...` and those of results are filled.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from e2former_calc.md.native_noise import normals
from e2former_calc.potentials.exact_kernels import exact


@exact
def kick(
    velocities: Float[ndarray, "atoms 3"], forces: Float[ndarray, "atoms 3"], mobility: Float[ndarray, " atoms"],
    duration: float, new_velocities: Float[ndarray, "atoms 3"],
) -> None:  # fmt: skip
    """V + duration F / m."""
    for i in range(len(mobility)):
        push = duration * mobility[i]
        for k in range(3):
            new_velocities[i, k] = velocities[i, k] + forces[i, k] * push


@exact
def drift(
    positions: Float[ndarray, "atoms 3"], velocities: Float[ndarray, "atoms 3"], duration: float,
    new_positions: Float[ndarray, "atoms 3"],
) -> None:  # fmt: skip
    """X + duration v."""
    for i in range(len(positions)):
        for k in range(3):
            new_positions[i, k] = positions[i, k] + duration * velocities[i, k]


@exact
def kick_and_drift(
    positions: Float[ndarray, "atoms 3"], velocities: Float[ndarray, "atoms 3"], forces: Float[ndarray, "atoms 3"],
    mobility: Float[ndarray, " atoms"], kick_duration: float, drift_duration: float,
    new_positions: Float[ndarray, "atoms 3"], new_velocities: Float[ndarray, "atoms 3"],
) -> None:  # fmt: skip
    """One after the other."""
    kick(velocities, forces, mobility, kick_duration, new_velocities)
    drift(positions, new_velocities, drift_duration, new_positions)


@exact
def kinetic_energies(
    velocities: Float[ndarray, "atoms 3"], half_masses: Float[ndarray, " atoms"], bounds: Int[ndarray, " bounds"],
    result: Float[ndarray, " replicas"],
) -> None:  # fmt: skip
    """Sums over the atoms bounds[r] to bounds[r + 1] - 1 of each replica r, in their order."""
    for replica in range(len(result)):
        total = 0.0
        for i in range(bounds[replica], bounds[replica + 1]):
            x, y, z = velocities[i, 0], velocities[i, 1], velocities[i, 2]
            total += (x * x + y * y + z * z) * half_masses[i]
        result[replica] = total


@exact
def renew_velocities(
    velocities: Float[ndarray, "atoms 3"], noise: Float[ndarray, "atoms 3"], speed: Float[ndarray, "atoms 1"],
    keep: float, renew: float, half_masses: Float[ndarray, " atoms"], bounds: Int[ndarray, " bounds"],
    new_velocities: Float[ndarray, "atoms 3"], kinetic: Float[ndarray, " replicas"],
    gain: Float[ndarray, " replicas"],
) -> None:  # fmt: skip
    """Keep v + renew speed noise, the kinetic energies after that, and what they have gained."""
    for i in range(len(velocities)):
        width = speed[i, 0] * renew
        for k in range(3):
            new_velocities[i, k] = keep * velocities[i, k] + noise[i, k] * width
    kinetic_energies(velocities, half_masses, bounds, gain)
    kinetic_energies(new_velocities, half_masses, bounds, kinetic)
    for replica in range(len(gain)):
        gain[replica] = kinetic[replica] - gain[replica]


@exact
def langevin_moves(
    state: tuple[Float[ndarray, "atoms 3"], Float[ndarray, "atoms 3"], Float[ndarray, "atoms 3"]],
    masses: tuple[Float[ndarray, " atoms"], Float[ndarray, " atoms"], Int[ndarray, " bounds"]],
    half: float, counters: tuple[Int[ndarray, " atoms"], Int[ndarray, " atoms"], int, int, tuple[int, int]],
    speed: Float[ndarray, "atoms 1"], keep: float, renew: float, new_positions: Float[ndarray, "atoms 3"],
    new_velocities: Float[ndarray, "atoms 3"], kinetic: Float[ndarray, " replicas"],
    gain: Float[ndarray, " replicas"],
) -> None:  # fmt: skip
    """Kick, drift, new velocities and drift: positions, velocities and forces in `state` move on by a step."""
    positions, velocities, forces = state
    mobility, half_masses, bounds = masses
    index, ids, step, purpose, key = counters
    middle, pushed, noise = np.empty_like(positions), np.empty_like(positions), np.empty_like(positions)
    kick_and_drift(positions, velocities, forces, mobility, half, half, middle, pushed)
    normals(index, ids, step, purpose, key, noise)
    renew_velocities(pushed, noise, speed, keep, renew, half_masses, bounds, new_velocities, kinetic, gain)
    drift(middle, new_velocities, half, new_positions)


@exact
def sums_of_squares(
    values: Float[ndarray, "atoms 3"], bounds: Int[ndarray, " bounds"], counts: Float[ndarray, " replicas"],
    result: Float[ndarray, " replicas"],
) -> None:  # fmt: skip
    """Sum of the squares of the first counts[r] values of each replica."""
    for replica in range(len(result)):
        total, first = 0.0, bounds[replica]
        for i in range(first, bounds[replica + 1]):
            row = 0.0
            for k in range(3):
                if 3 * (i - first) + k < counts[replica]:
                    row += values[i, k] * values[i, k]
            total += row
        result[replica] = total


@exact
def scale_velocities(
    velocities: Float[ndarray, "atoms 3"], factors: Float[ndarray, " replicas"], bounds: Int[ndarray, " bounds"],
    new_velocities: Float[ndarray, "atoms 3"],
) -> None:  # fmt: skip
    """Velocities times the factor of their replica."""
    for replica in range(len(factors)):
        for i in range(bounds[replica], bounds[replica + 1]):
            for k in range(3):
                new_velocities[i, k] = velocities[i, k] * factors[replica]


@exact
def is_sound(
    energy: Float[ndarray, " replicas"], forces: Float[ndarray, "atoms 3"], velocities: Float[ndarray, "atoms 3"],
    squared_bound: Float[ndarray, " atoms"],
) -> bool:  # fmt: skip
    """Whether everything is finite and no squared force larger than its bound."""
    infinity, sound = float("inf"), True
    for value in energy:
        sound &= abs(value) < infinity
    for i in range(len(forces)):
        fx, fy, fz = forces[i, 0], forces[i, 1], forces[i, 2]
        vx, vy, vz = velocities[i, 0], velocities[i, 1], velocities[i, 2]
        force = fx * fx + fy * fy + fz * fz
        # A comparison with NaN is False.
        sound &= force <= squared_bound[i] and force < infinity and vx * vx + vy * vy + vz * vz < infinity
    return sound


@exact
def is_near(positions: Float[ndarray, "atoms 3"], earlier: Float[ndarray, "atoms 3"], squared_distance: float) -> bool:
    """Whether no atom has moved farther; False if a coordinate is NaN."""
    near = True
    for i in range(len(positions)):
        x, y, z = positions[i, 0] - earlier[i, 0], positions[i, 1] - earlier[i, 1], positions[i, 2] - earlier[i, 2]
        near &= x * x + y * y + z * z <= squared_distance
    return near
