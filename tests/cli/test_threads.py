"""Threads follow the request, then the environment, then the size of the task."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from e2former_calc.cli.threads import choose_threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n_atoms", "expected"), [(9, 1), (42, 1), (127, 1), (128, 2), (10_000, 2)])
def test_small_tasks_use_one_thread(n_atoms: int, expected: int) -> None:
    assert choose_threads(None, n_atoms) == expected


def test_request_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(1, 10_000) == 1


def test_environment_wins_over_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(None, 9) == 2
