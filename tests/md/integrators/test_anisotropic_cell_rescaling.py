"""Laws of anisotropic cell rescaling: exact distributions of cells, orientation, bookkeeping."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from e2former_calc.md.integrators.anisotropic_cell_rescaling import AnisotropicCellRescaling, deformed, exponential
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.units import BOLTZMANN
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.system import Prediction, System

T, N = 300.0, 8
THERMAL = BOLTZMANN * T
SIDE = 6.0
RESCALING = AnisotropicCellRescaling(
    4.0, T, 0.0, friction_per_ps=50.0, pressure_relaxation_time_fs=150.0, compressibility_per_bar=1e-3
)
ARGON = AnisotropicCellRescaling(2.0, 50.0, 100.0, friction_per_ps=5.0, pressure_relaxation_time_fs=200.0)


@dataclass(frozen=True)
class CellSprings:
    """Free atoms in a cell whose vectors are springs: E = sum_i k_i |a_i|^2 / 2, or of (ln |a_i| / l)^2.

    With h = L Q, L lower triangular, the ensemble V^(N - 2) exp(-E / k T) dh makes all elements of L independent:
    normal ones beside the diagonal, chi distributions on it (the decomposition of M. S. Bartlett).
    """

    stiffness: tuple[float, float, float]
    logarithmic: bool = False
    cutoff: float = 0.0
    elements: frozenset[int] = frozenset({18})
    conservative: bool = True
    uses_charge: bool = False
    uses_spin: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def __call__(self, system: System, *, properties: Any, neighbors: Any = None) -> Prediction:
        zero = torch.zeros_like(system.positions)
        stiffness = torch.tensor(self.stiffness, dtype=torch.float64)[:, None]
        cell = system.cell
        if self.logarithmic:
            stretch = (cell.diagonal(dim1=1, dim2=2) / SIDE).log()
            energy, virial = 0.5 * (stiffness[:, 0] * stretch**2).sum(1), (stiffness[:, 0] * stretch).diag_embed()
        else:
            energy, virial = 0.5 * (stiffness * cell**2).sum((1, 2)), cell.mT @ (stiffness * cell)
        volume = torch.linalg.det(cell)[:, None, None]
        return Prediction(energy, zero[:, 0], zero, virial / volume)


def cells(potential: Any, integrator: Any, *, replicas: int, warm: int, steps: int) -> Tensor:
    """Samples of the cell of 8 free atoms, in one row."""
    positions = np.random.default_rng(1).random((N, 3)) * SIDE
    atoms = Atoms("Ar" * N, positions=positions, cell=[SIDE] * 3, pbc=True)
    simulation = Simulation([atoms] * replicas, potential, integrator, seed=9)
    found: list[Tensor] = []
    simulation.run(warm)
    simulation.run(steps, observers=[Observer(lambda s: found.append(s.state.cell), every=25)])
    return torch.cat(found)


def check_triangular_moments(*, replicas: int, warm: int, steps: int, timestep_fs: float, tolerance: float) -> None:
    stiffness = tuple(k * N * THERMAL / SIDE**2 for k in (0.7, 1.0, 1.4))
    integrator = replace(RESCALING, timestep_fs=timestep_fs)
    found = cells(CellSprings(stiffness), integrator, replicas=replicas, warm=warm, steps=steps)
    unit = torch.tensor(stiffness, dtype=torch.float64)[:, None] / THERMAL
    degrees = torch.tensor([[N + 1, 0, 0], [1, N, 0], [1, 1, N - 1]], dtype=torch.float64)
    ratio = ((found**2).mean(0) * unit).tril() / degrees.clamp(min=1.0)
    assert ratio.numpy() == pytest.approx(np.tri(3), abs=tolerance)
    diagonal = found.diagonal(dim1=1, dim2=2)
    variances = torch.cov(diagonal.T**2) * unit * unit.T / (2.0 * degrees.diagonal())
    assert variances.numpy() == pytest.approx(np.eye(3), abs=3.0 * tolerance)


def test_flexible_cells_follow_the_wishart_distribution() -> None:
    check_triangular_moments(replicas=800, warm=250, steps=600, timestep_fs=4.0, tolerance=0.08)


@pytest.mark.physics
def test_flexible_cells_follow_the_wishart_distribution_closely() -> None:
    check_triangular_moments(replicas=1000, warm=600, steps=3000, timestep_fs=2.0, tolerance=0.04)


def check_lengths(*, replicas: int, steps: int, timestep_fs: float, tolerance: float) -> None:
    stiffness = (20.0 * THERMAL, 40.0 * THERMAL, 80.0 * THERMAL)
    integrator = replace(RESCALING, keep_angles=True, timestep_fs=timestep_fs)
    potential = CellSprings(stiffness, logarithmic=True)
    found = cells(potential, integrator, replicas=replicas, warm=round(1500.0 / timestep_fs), steps=steps)
    assert not (found - found.diagonal(dim1=1, dim2=2).diag_embed()).any()
    logarithms = (found.diagonal(dim1=1, dim2=2) / SIDE).log().numpy()
    mean, spread = logarithms.mean(0), logarithms.std(0)
    unit = np.sqrt(THERMAL / np.array(stiffness))
    assert (mean - (N + 1) * unit**2) / unit == pytest.approx(np.zeros(3), abs=tolerance)
    assert spread / unit == pytest.approx(np.ones(3), abs=tolerance)


def test_lengths_of_a_box_follow_their_normal_distribution() -> None:
    check_lengths(replicas=600, steps=500, timestep_fs=2.0, tolerance=0.06)


@pytest.mark.physics
def test_lengths_of_a_box_follow_their_normal_distribution_closely() -> None:
    check_lengths(replicas=600, steps=3000, timestep_fs=0.5, tolerance=0.04)


def test_every_component_of_the_pressure_of_argon_reaches_its_target(potentials: Any, argon: Atoms) -> None:
    argon.set_cell(argon.cell.array @ np.diag([1.03, 0.98, 1.0]) + [[0, 0, 0], [0.3, 0, 0], [0, -0.2, 0]], True)
    integrator = replace(ARGON, timestep_fs=4.0, temperature_K=40.0, pressure_bar=500.0)
    simulation = Simulation([argon] * 4, potentials.LennardJones(), integrator, seed=3)
    found: list[Tensor] = []

    def pressure(s: Simulation) -> None:
        gas = len(argon) * BOLTZMANN * 40.0 / s.observables().volume
        found.append(gas[:, None, None] * torch.eye(3) - s.state.stress)

    simulation.run(250)
    simulation.run(500, observers=[Observer(pressure, every=4)])
    mean = torch.cat(found).mean(0) / (1e5 * 6.241509e-12)
    assert mean.numpy() == pytest.approx(500.0 * np.eye(3), abs=120.0)


def test_a_cell_keeps_its_orientation(potentials: Any) -> None:
    atoms = bulk("Ar", "fcc", a=5.4).repeat(2)
    atoms.rotate(40.0, (1.0, 2.0, 3.0), rotate_cell=True)
    simulation = Simulation(atoms, potentials.LennardJones(), ARGON, seed=1)
    simulation.run(200)
    (a, b, _), (a0, b0, _) = simulation.atoms().cell.array, atoms.cell.array
    assert np.abs(simulation.atoms().cell.angles() - atoms.cell.angles()).max() > 0.1
    assert np.linalg.norm(np.cross(a, a0)) < 1e-11
    assert np.linalg.norm(np.cross(np.cross(a, b), np.cross(a0, b0))) < 1e-9
    assert min(a @ a0, np.cross(a, b) @ np.cross(a0, b0)) > 0


def test_triangular_cells_stay_triangular_and_left_handed_ones_left_handed(potentials: Any, argon: Atoms) -> None:
    argon.set_cell(argon.cell.array * [1, 1, -1], scale_atoms=True)
    simulation = Simulation(argon, potentials.LennardJones(), ARGON, seed=1)
    simulation.run(50)
    cell = simulation.atoms().cell.array
    assert not np.triu(cell, 1).any()
    assert cell[np.tril_indices(3)].all()
    assert np.linalg.det(cell) < 0


def test_a_deformation_keeps_fractional_coordinates_and_turns_velocities_with_the_cell(
    potentials: Any, argon: Atoms
) -> None:
    simulation = Simulation(argon, potentials.LennardJones(), ARGON, seed=1)
    before = simulation.state
    strain = torch.tensor([[[0.02, 0.03, -0.01], [0.03, -0.05, 0.04], [-0.01, 0.04, 0.03]]], dtype=torch.float64)
    after, rotation = deformed(before, simulation.dynamics, strain, scale=torch.tensor([1.1], dtype=torch.float64))
    factor = 1.1 * exponential(strain)[0] @ rotation[0]
    middle = simulation.dynamics.center_of_mass(before.positions)
    assert torch.allclose(after.cell[0], before.cell[0] @ factor, rtol=0, atol=1e-12)
    assert torch.allclose(after.positions - middle, (before.positions - middle) @ factor, rtol=0, atol=1e-12)
    assert torch.allclose(after.velocities @ factor.T, before.velocities, rtol=0, atol=1e-15)
    assert torch.allclose(rotation[0] @ rotation[0].T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_exponential_has_determinant_1_and_its_inverse_is_that_of_minus_the_strain() -> None:
    strain = 0.1 * torch.randn(20, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    strain = 0.5 * (strain + strain.mT)
    strain = strain - strain.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(3)
    found = exponential(strain)
    assert torch.allclose(torch.linalg.det(found), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(found @ exponential(-strain), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(found, torch.matrix_exp(strain), rtol=0, atol=strain.norm(dim=(1, 2)).max() ** 3 / 500)


@pytest.mark.parametrize("keep_angles", [False, True])
def test_trajectory_is_the_same_alone_in_a_batch_and_after_a_restart(
    potentials: Any, argon: Atoms, tmp_path: Path, keep_angles: bool
) -> None:
    integrator = replace(ARGON, keep_angles=keep_angles)

    def fresh(images: list[Atoms], ids: tuple[int, ...]) -> Simulation:
        options = SimulationOptions(replica_ids=ids)
        velocities = InitialVelocities(60.0)
        return Simulation(images, potentials.LennardJones(), integrator, seed=3, velocities=velocities, options=options)

    batch, first, second = fresh([argon[:-1], argon, argon], (4, 1, 9)), fresh([argon], (1,)), fresh([argon], (1,))
    batch.run(60)
    first.run(25)
    first.save(tmp_path / "a.restart")
    second.restore(tmp_path / "a.restart")
    second.run(35)
    assert np.array_equal(second.frame().positions, batch.frame(1).positions)
    assert np.array_equal(second.frame().cell, batch.frame(1).cell)
    assert second.observables().conserved_energy[0] == batch.observables().conserved_energy[1]


def test_a_broken_replica_stops_and_the_others_go_on(potentials: Any, argon: Atoms) -> None:
    failing = potentials.Failing(inner=potentials.LennardJones(), row=1, after=10, calls=([],))
    simulation = Simulation([argon] * 2, replace(failing, cutoff=6.5), ARGON, seed=1)
    assert simulation.run(40) == 40
    assert simulation.stops()[0] is None
    assert simulation.stops()[1] is not None
    assert np.isfinite(simulation.frame(1).cell).all()


def test_kept_angles_need_vectors_along_the_axes(potentials: Any) -> None:
    simulation = Simulation(
        [bulk("Ar", cubic=True), bulk("Ar")], potentials.Free(), replace(ARGON, keep_angles=True), seed=1
    )
    with pytest.raises(ValueError, match="`keep_angles` needs lattice vectors along x, y and z, replica 1 has"):
        simulation.run(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep_fs": 0.0}, "`timestep_fs` must be positive and finite, got 0.0 fs"),
        ({"compressibility_per_bar": -1.0}, "`compressibility_per_bar` must be positive and finite, got -1.0 1/bar"),
        ({"pressure_bar": math.nan}, "`pressure_bar` must be at least -inf bar and finite, got nan"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ARGON, **options)
