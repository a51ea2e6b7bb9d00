"""Native checks see what is broken."""

from __future__ import annotations

import numpy as np
import pytest

from e2former_calc.md.native_kernels import is_near, is_sound

BOUND = np.array([1.0, np.inf, 1.0])


def look(**broken: tuple[tuple[int, ...], float]) -> bool:
    arrays = {"energy": np.ones(2), "forces": np.full((3, 3), 0.5), "velocities": np.full((3, 3), 2.0)}
    for name, (index, value) in broken.items():
        arrays[name][index] = value
    return is_sound(*arrays.values(), BOUND)


def test_a_sound_state_is_sound() -> None:
    assert look()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "index"), [("energy", (1,)), ("forces", (1, 2)), ("velocities", (2, 0))])
def test_one_number_that_is_not_finite_is_seen(name: str, index: tuple[int, ...], value: float) -> None:
    assert not look(**{name: (index, value)})


def test_a_speed_whose_square_overflows_is_seen() -> None:
    assert not look(velocities=((0, 1), 1e200))


def test_only_forces_beyond_their_own_bound_are_seen() -> None:
    assert not look(forces=((2, 0), 0.8))
    assert look(forces=((1, 0), 0.8))


@pytest.mark.parametrize(("moved", "near"), [(0.29, True), (0.31, False), (np.nan, False)])
def test_displacements_are_compared_with_the_distance(moved: float, near: bool) -> None:
    earlier = np.random.default_rng(0).normal(size=(5, 3))
    positions = earlier.copy()
    positions[4] += [0.0, 0.4, moved]
    assert is_near(positions, earlier, 0.25) == near
