"""Fixtures for the numerical core."""

from __future__ import annotations

import pytest

from e2former_calc.potentials.system import System


@pytest.fixture
def _untyped(pytestconfig: pytest.Config) -> None:
    """For tests that pass wrong types on purpose: skip them where a type checker would refuse the call first."""
    if pytestconfig.getoption("jaxtyping_packages", default=None):
        pytest.skip("the arguments are refused by the type checker already")


@pytest.fixture(scope="session")
def methanol() -> System:
    """A rattled molecule."""
    positions = [
        [-0.05, 0.66, 0.03],
        [0.02, -0.76, -0.06],
        [-1.09, 0.97, 0.11],
        [0.87, -1.05, 0.08],
        [0.46, 1.07, 0.87],
        [0.40, 1.06, -0.93],
    ]
    return System.single(positions, [6, 8, 1, 1, 1, 1])
