"""Numbers beside their noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from e2former_calc.analysis.comparison import compare_distances, compare_radial_distributions
from e2former_calc.analysis.pair_counts import RdfSettings
from e2former_calc.analysis.trajectory import Trajectory, TrajectoryError


def test_independent_halves_differ_by_noise(ethanol: Trajectory, rng: np.random.Generator) -> None:
    total = compare_distances(ethanol.read(0, 20), ethanol.read(20, 40), rng, n_bins=100)[0]
    assert total.label == "h(r)"
    assert total.in_units_of_noise == pytest.approx(1.0, abs=0.4)


def test_other_geometry_stands_out(ethanol: Trajectory, rng: np.random.Generator) -> None:
    larger = replace(ethanol, positions=1.05 * ethanol.positions)
    curves = compare_distances(larger, ethanol, rng, n_bins=100)
    assert all((curve.in_units_of_noise or 0.0) > 2 for curve in curves)


def test_lattices_agree_within_noise(rng: np.random.Generator) -> None:
    sites = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 2.5
    rollout, reference = (
        Trajectory(sites + 0.15 * rng.normal(size=(60, 64, 3)), np.full(64, 18), cell=10.0 * np.eye(3))
        for _ in range(2)
    )
    settings = RdfSettings(r_max_A=4.5, n_bins=45)
    (curve,) = compare_radial_distributions(rollout, reference, [("Ar", "Ar")], rng, settings=settings)
    assert curve.label == "g(r) Ar-Ar"
    assert curve.in_units_of_noise == pytest.approx(1.0, abs=0.4)


def test_short_rollouts_have_a_higher_floor(ethanol: Trajectory, rng: np.random.Generator) -> None:
    floors = [compare_distances(ethanol, ethanol, rng, stop=stop)[0].floor for stop in (4, 40)]
    assert floors[0] is not None
    assert floors[1] is not None
    assert floors[0].mean > 1.5 * floors[1].mean


def test_single_reference_frame_has_no_floor(ethanol: Trajectory, rng: np.random.Generator) -> None:
    curve = compare_distances(ethanol, ethanol.read(0, 1), rng)[0]
    assert (curve.floor, curve.in_units_of_noise) == (None, None)


def test_rollout_without_a_stable_frame_is_refused(ethanol: Trajectory, rng: np.random.Generator) -> None:
    with pytest.raises(TrajectoryError, match="no frame of the rollout is stable"):
        compare_distances(ethanol, ethanol, rng, stop=0)


def test_other_atoms_are_refused(ethanol: Trajectory, gas: Trajectory, rng: np.random.Generator) -> None:
    with pytest.raises(TrajectoryError, match="the rollout has 30 atoms, the reference has 9"):
        compare_distances(gas, ethanol, rng)
