"""Langevin dynamics at constant hydrostatic pressure by stochastic cell rescaling of the whole cell.

V. Del Tatto, P. Raiteri, M. Bernetti, G. Bussi, Appl. Sci. 12, 1139 (2022). With h the matrix of lattice vectors
(there as columns), the target pressure P_0 and the internal pressure tensor P = sum m v v / V - stress:

dh = -(beta / 3 tau) (P_0 - P - k T / V) h dt + sqrt(2 beta k T / 3 V tau) dW h.

It samples exp(-(E + P_0 V) / k T) V^-2 dh = exp(-(E + P_0 V) / k T) dV dh_0, h_0 = h / V^(1/3): the volume is
distributed as with a cell of fixed shape, and all shapes of a volume have the weight of the invariant measure of
matrices of determinant 1 (G. J. Martyna, D. J. Tobias, M. L. Klein, J. Chem. Phys. 101, 4177 (1994)).

A step of this equation is made of two. The volume moves as in `cell_rescaling`, whose equation follows for ln det h.
Then, at the new volume, h is multiplied by the exponential of the symmetric matrix

A = (beta / 3 tau V) G dt + sqrt(2 beta k T / 3 tau V) dS, G = V P without its trace,

where dS is the symmetric traceless part of dW. No further drift is due: random factors whose directions are
equally likely, as likely as their inverses, leave the invariant measure as it is, at any length of the step. Positions
are multiplied by the same matrices, velocities by their inverses. The antisymmetric part of dW would only rotate; all
is turned instead so that the first lattice vector keeps its direction and the second its half-plane, as in a
triangular matrix. The effective energy gains (G : A + G' : A') / 2 + (beta dt / 12 tau V) (G'^2 - G^2) in this move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.integrators.cell_rescaling import (
    BAROSTAT_ENERGY,
    check_rescaling,
    first_variables,
    total_virial,
    volume_move,
    with_barostat_energy,
)
from e2former_calc.md.integrators.langevin import HALF_STEP_KINETIC_ENERGY, HEAT, ornstein_uhlenbeck
from e2former_calc.md.noise import Purpose
from e2former_calc.md.schedules import Targets
from e2former_calc.md.state import State
from e2former_calc.md.units import ACCELERATION

_HALVINGS = 3
"""Of a strain before its exponential is approximated; the result is squared as often."""

Matrices = Float[Tensor, "replicas 3 3"]


@dataclass(frozen=True)
class AnisotropicCellRescaling:
    """Constant temperature and hydrostatic pressure, lengths and angles of the cell free; needs the stress.

    For crystals. Nothing holds the shape of a liquid's cell, which becomes ever flatter: use
    `StochasticCellRescaling` for liquids.

    Args:
        timestep_fs: length of a step.
        temperature_K: of the bath: a number, a `LinearRamp`, or a tuple with one of them for each replica.
        pressure_bar: target pressure, given in the same ways.
        friction_per_ps: of the Langevin thermostat, in 1/ps.
        pressure_relaxation_time_fs: tau.
        compressibility_per_bar: beta, a rough value; that of water is 4.5e-5.
        keep_angles: only the lengths of a cell change, whose vectors must lie along x, y and z.

    Raises:
        ValueError: for numbers out of range.
    """

    timestep_fs: float
    temperature_K: Targets  # noqa: N815
    pressure_bar: Targets
    friction_per_ps: float = 1.0
    pressure_relaxation_time_fs: float = 1000.0
    compressibility_per_bar: float = 4.5e-5
    keep_angles: bool = False

    needs_stress = True
    conserves_momentum = False
    changes_cell = True

    def __post_init__(self) -> None:
        check_rescaling(self)

    @property
    def target_temperature(self) -> Targets:
        """Temperature of the bath."""
        return self.temperature_K

    def start(self, state: State, dynamics: Dynamics) -> Mapping[str, Tensor]:
        """No heat and no work yet; the kinetic energy of the first velocities.

        Raises:
            ValueError: if angles shall be kept and the vectors of a cell do not lie along x, y and z.
        """
        if self.keep_angles:
            skew = (state.cell - state.cell.diagonal(dim1=1, dim2=2).diag_embed()).abs().amax((1, 2)) > 0.0
            if bool(skew.any()):
                index = int(skew.nonzero()[0])
                raise ValueError(
                    f"`keep_angles` needs lattice vectors along x, y and z, replica {index} has "
                    f"{state.cell[index].tolist()} Å: give such a cell, or let the angles change"
                )
        return first_variables(self, state, dynamics)

    def step(self, state: State, dynamics: Dynamics) -> State:
        """One step."""
        half = 0.5 * self.timestep_fs
        state = dynamics.kick_and_drift(state, half, half)
        state = ornstein_uhlenbeck(
            state, dynamics, self.temperature_K, friction_per_ps=self.friction_per_ps, duration_fs=self.timestep_fs
        )
        normals = self._normals(state.step, dynamics)
        trace = (normals[:, 0, 0] + normals[:, 1, 1] + normals[:, 2, 2]) / 3.0
        kinetic = state.extended[HALF_STEP_KINETIC_ENERGY]
        volume = volume_move(self, state, dynamics, kinetic_energy=kinetic, random=3.0**0.5 * trace)
        force = self._shape_force(state, dynamics)
        # 2 pace / 3 V is (beta / 3 tau V) dt.
        pace = (2.0 / 3.0) * volume.pace / (volume.new_root * volume.new_root)
        random = without_trace(normals) * (2.0 * volume.thermal_energy * pace).sqrt()[:, None, None]
        strain = pace[:, None, None] * force + random
        state, rotation = deformed(state, dynamics, strain, scale=volume.scale)
        state = dynamics.evaluate(dynamics.drift(state, half))

        new_force = self._shape_force(state, dynamics)
        turned = product(product(rotation.mT, strain), rotation)
        work = 0.5 * (contraction(force, strain) + contraction(new_force, turned))
        squares = contraction(new_force, new_force) - contraction(force, force)
        virial = total_virial(state, dynamics, dynamics.kinetic_energy(state.velocities))
        gain = volume.effective_energy(virial) + work + 0.25 * pace * squares
        return dynamics.kick(with_barostat_energy(state, gain), half).changed(step=state.step + 1)

    def kinetic_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """In the middle of the last step."""
        del dynamics
        return state.extended[HALF_STEP_KINETIC_ENERGY]

    def bath_energy(self, state: State, dynamics: Dynamics) -> Float[Tensor, " replicas"]:
        """What makes the sum the effective energy: minus the heat taken up and the work done by the cell."""
        del dynamics
        return state.extended[BAROSTAT_ENERGY] - state.extended[HEAT]

    def _normals(self, step: int, dynamics: Dynamics) -> Matrices:
        """Symmetric part of a matrix of normal numbers: variance 1 on the diagonal, 1/2 beside it.

        A step has three numbers for each replica; two steps of the generator make one here.
        """
        x, y, z = dynamics.noise.replica_normals(2 * step, Purpose.BAROSTAT).unbind(1)
        others = dynamics.noise.replica_normals(2 * step + 1, Purpose.BAROSTAT) * (
            0.0 if self.keep_angles else 0.5**0.5
        )
        yz, xz, xy = others.unbind(1)
        return torch.stack([x, xy, xz, xy, y, yz, xz, yz, z], 1).reshape(-1, 3, 3)

    def _shape_force(self, state: State, dynamics: Dynamics) -> Matrices:
        """G = sum m v v - V stress without its trace, eV; its diagonal if angles are kept."""
        velocities = state.velocities
        flow = velocities[:, :, None] * (velocities * (dynamics.masses / ACCELERATION))[:, None, :]
        virial = dynamics.replicas.sum(flow) - dynamics.volume(state.cell)[:, None, None] * state.stress
        virial = 0.5 * (virial + virial.mT)
        return without_trace(virial.diagonal(dim1=1, dim2=2).diag_embed() if self.keep_angles else virial)


def deformed(
    state: State, dynamics: Dynamics, strain: Matrices, *, scale: Float[Tensor, " replicas"]
) -> tuple[State, Matrices]:
    """Cell, positions and velocities after a change of shape and size, turned back; and the rotation.

    Args:
        state: where from.
        dynamics: masses.
        strain: symmetric, without trace: logarithm of the change of shape.
        scale: factor on lengths.

    Returns:
        State with cell h' = s h exp(A) R, positions x' = s x exp(A) R about the centre of mass and velocities
        v' = v exp(-A) R / s, and R.
    """
    factor = exponential(strain)
    stretched = product(state.cell, factor)
    old, new = frame(state.cell), frame(stretched)
    rotation = product(new.mT, old)
    triangle = product(stretched, new.mT).tril()
    cell = product(triangle, old) * scale[:, None, None]
    forward = product(factor, rotation)
    backward = cofactors(forward) / scale[:, None, None]
    forward = forward * scale[:, None, None]

    spread = dynamics.replicas.spread
    middle = spread(dynamics.center_of_mass(state.positions))
    positions = middle + transformed(state.positions - middle, spread(forward))
    state = state.changed(positions=positions, cell=cell)
    return dynamics.with_velocities(state, transformed(state.velocities, spread(backward))), rotation


def exponential(strain: Matrices) -> Matrices:
    """Exp of small symmetric matrices without trace, to third order; its determinant is 1 to rounding.

    The approximation ((1 + A/2n) / (1 - A/2n))^n is symmetric, and that of -A is its inverse, exactly.
    """
    unit = torch.eye(3, dtype=strain.dtype, device=strain.device)
    difference = unit - strain * 0.5 ** (_HALVINGS + 1)
    # The matrix is symmetric, and so is its inverse; (1 + B) / (1 - B) = 2 / (1 - B) - 1.
    factor = 2.0 * cofactors(difference) / determinant(difference)[:, None, None] - unit
    for _ in range(_HALVINGS):
        factor = product(factor, factor)
    result: Matrices = factor * (determinant(factor).log() / -3.0).exp()[:, None, None]
    return result


def frame(cell: Matrices) -> Matrices:
    """Orthonormal rows: along the first vector, in the plane of the first two, normal to it; right-handed."""
    first = _unit(cell[:, 0])
    normal = _unit(torch.linalg.cross(cell[:, 0], cell[:, 1], dim=-1))
    return torch.stack([first, torch.linalg.cross(normal, first, dim=-1), normal], 1)


def product(a: Matrices, b: Matrices) -> Matrices:
    """Matrix product element by element: the same bits in a batch of any size."""
    return a[:, :, 0:1] * b[:, 0:1] + a[:, :, 1:2] * b[:, 1:2] + a[:, :, 2:3] * b[:, 2:3]


def transformed(vectors: Float[Tensor, "atoms 3"], matrices: Float[Tensor, "#atoms 3 3"]) -> Float[Tensor, "atoms 3"]:
    """Row vectors times matrices."""
    x, y, z = vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
    return x * matrices[:, 0] + y * matrices[:, 1] + z * matrices[:, 2]


def contraction(a: Matrices, b: Matrices) -> Float[Tensor, " replicas"]:
    """A : B, the sum of products of elements, in a fixed order."""
    rows = (a * b).flatten(1).unbind(1)
    total = rows[0]
    for element in rows[1:]:
        total = total + element
    return total


def cofactors(matrix: Matrices) -> Matrices:
    """Determinant times the transposed inverse."""
    found: Matrices = torch.linalg.cross(matrix.roll(-1, 1), matrix.roll(-2, 1), dim=-1)
    return found


def determinant(matrix: Matrices) -> Float[Tensor, " replicas"]:
    """By the first row and its cofactors."""
    terms = matrix[:, 0] * torch.linalg.cross(matrix[:, 1], matrix[:, 2], dim=-1)
    total: Tensor = terms[:, 0] + terms[:, 1] + terms[:, 2]
    return total


def without_trace(matrix: Matrices) -> Matrices:
    """Minus a third of the trace times the unit matrix."""
    third = (matrix[:, 0, 0] + matrix[:, 1, 1] + matrix[:, 2, 2]) / 3.0
    return matrix - third[:, None, None] * torch.eye(3, dtype=matrix.dtype, device=matrix.device)


def _unit(vectors: Float[Tensor, "replicas 3"]) -> Float[Tensor, "replicas 3"]:
    squares = vectors * vectors
    return vectors / (squares[:, 0:1] + squares[:, 1:2] + squares[:, 2:3]).sqrt()
