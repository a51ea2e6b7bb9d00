"""How many degrees of freedom carry the temperature: 3 N - constraints - conserved motions at rest.

Integrators that conserve momentum never warm up a centre of mass that starts at rest; nor, in vacuum, the
rotation of the whole. These motions do not count then. Langevin noise moves them, so there they count.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from e2former_calc.md.constraints import Constraints
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.units import ACCELERATION
from e2former_calc.md.velocities import whole_body_motion

_REST = 1e-10
"""A motion with less than this share of the kinetic energy is at rest."""
_COLD = 1e-6
"""Kinetic energy (eV per atom) below which the share is taken of this value: 0.01 K."""


def degrees_of_freedom(
    replicas: Replicas,
    constraints: Constraints,
    *,
    resting: Float[Tensor, " replicas"],
) -> Float[Tensor, " replicas"]:
    """3 N - constraints - `resting` motions, of each replica.

    Raises:
        ValueError: if nothing is left.
    """
    number = (3 * replicas.sizes - constraints.removed).to(torch.float64) - resting
    if bool((number < 1).any()):
        index = int((number < 1).nonzero()[0])
        raise ValueError(
            f"replica {index} has no degrees of freedom left: {int(replicas.sizes[index])} atoms, "
            f"{int(constraints.removed[index])} taken by constraints, {int(resting[index])} at rest and conserved; "
            "remove constraints, or set external_field=True if the forces depend on absolute positions"
        )
    return number


def resting_motions(
    positions: Float[Tensor, "atoms 3"],
    velocities: Float[Tensor, "atoms 3"],
    masses: Float[Tensor, "atoms 1"],
    replicas: Replicas,
    *,
    rotations: Bool[Tensor, " replicas"],
    constraints: Constraints,
) -> Float[Tensor, " replicas"]:
    """Number of conserved motions of each replica that are at rest, for an integrator that conserves momentum.

    `rotations` are the replicas without periodicity, whose rotation is conserved. Fixed atoms take up momentum, so
    that nothing is conserved; a fixed centre of mass is counted as a constraint already.
    """
    counts = []
    free, counted = constraints.keeps_momentum.tolist(), constraints.fixed_com.tolist()
    for index, (atoms, rotates) in enumerate(zip(replicas.slices(), rotations.tolist(), strict=True)):
        x, v, m = positions[atoms], velocities[atoms], masses[atoms]
        threshold = _REST * (float((v * v * m).sum()) / (2.0 * ACCELERATION) + _COLD * len(x))
        translation, rotation, number = whole_body_motion(v, x, m)
        resting = 3 if translation <= threshold and not counted[index] else 0
        if rotates and rotation <= threshold:
            resting += number
        counts.append(resting if free[index] else 0)
    return torch.tensor(counts, dtype=torch.float64, device=masses.device)
