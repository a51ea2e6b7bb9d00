"""Fixtures for the numerical core."""

from __future__ import annotations

import pytest


@pytest.fixture
def _untyped(pytestconfig: pytest.Config) -> None:
    """For tests that pass wrong types on purpose: skip them where a type checker would refuse the call first."""
    if pytestconfig.getoption("jaxtyping_packages", default=None):
        pytest.skip("the arguments are refused by the type checker already")
