"""Initial velocities from the Maxwell–Boltzmann distribution; rest of the whole, exact temperature on request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from e2former_calc.md.noise import Noise, Purpose
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.schedules import Targets, check_targets
from e2former_calc.md.units import ACCELERATION, BOLTZMANN


@dataclass(frozen=True)
class InitialVelocities:
    """Replaces whatever momenta the structures have.

    Args:
        temperature_K: one number for all replicas or one for each; the first value of a ramp.
        exact: rescale so that every replica starts with just this temperature.

    Raises:
        ValueError: for a negative temperature.
    """

    temperature_K: Targets  # noqa: N815
    exact: bool = False

    def __post_init__(self) -> None:
        check_targets("temperature_K", self.temperature_K, minimum=0.0, unit="K")


def maxwell_boltzmann(
    masses: Float[Tensor, "atoms 1"], replicas: Replicas, noise: Noise, temperature_K: Float[Tensor, " replicas"]
) -> Float[Tensor, "atoms 3"]:
    """Velocities (Å/fs) with variance k T / m in each coordinate; `masses` in amu."""
    variance = ACCELERATION * BOLTZMANN * replicas.spread(temperature_K)[:, None] / masses
    return noise.normals(0, Purpose.VELOCITIES) * variance.sqrt()


def without_translation(
    velocities: Float[Tensor, "atoms 3"], masses: Float[Tensor, "atoms 1"], replicas: Replicas
) -> Float[Tensor, "atoms 3"]:
    """Velocities minus that of the centre of mass of their replica."""
    drift = replicas.sum(velocities * masses) / replicas.sum(masses)
    return velocities - replicas.spread(drift)


def without_rotation(
    velocities: Float[Tensor, "atoms 3"],
    positions: Float[Tensor, "atoms 3"],
    masses: Float[Tensor, "atoms 1"],
    replicas: Replicas,
    *,
    rows: Bool[Tensor, " replicas"],
) -> Float[Tensor, "atoms 3"]:
    """Velocities minus the rigid rotation about the centre of mass, for the replicas `rows`."""
    parts = []
    for atoms, wanted in zip(replicas.slices(), rows.tolist(), strict=True):
        v = velocities[atoms]
        parts.append(v - _rotation(v, positions[atoms], masses[atoms])[0] if wanted else v)
    return torch.cat(parts)


def whole_body_motion(
    velocities: Float[Tensor, "atoms 3"], positions: Float[Tensor, "atoms 3"], masses: Float[Tensor, "atoms 1"]
) -> tuple[float, float, int]:
    """Kinetic energies (eV) of translation and rotation of one replica, and the number of its rotations (0, 2, 3)."""
    total = float(masses.sum())
    momentum = (velocities * masses).sum(0)
    translation = float((momentum * momentum).sum()) / (2.0 * total * ACCELERATION)
    drifting = velocities - momentum / total
    rotation, count = _rotation(drifting, positions, masses)
    return translation, float((rotation * rotation * masses).sum()) / (2.0 * ACCELERATION), count


def _rotation(velocities: Tensor, positions: Tensor, masses: Tensor) -> tuple[Tensor, int]:
    """Velocities of the rigid rotation that has the angular momentum of one replica, and the number of rotations."""
    arm = positions - (positions * masses).sum(0) / masses.sum()
    momentum = torch.linalg.cross(arm, velocities * masses).sum(0)
    unit = torch.eye(3, dtype=arm.dtype, device=arm.device)
    inertia = (masses[:, :, None] * ((arm * arm).sum(1)[:, None, None] * unit - arm[:, :, None] * arm[:, None])).sum(0)
    moments, axes = torch.linalg.eigh(inertia)
    turning = moments > 1e-8 * moments[-1].clamp(min=1e-12)
    rate = torch.where(turning, (momentum @ axes) / torch.where(turning, moments, 1.0), 0.0)
    spin = axes @ rate
    return torch.linalg.cross(spin.expand_as(arm), arm), int(turning.sum())
