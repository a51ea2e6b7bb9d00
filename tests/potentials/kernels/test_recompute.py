"""Recomputation in the backward pass: same numbers, fewer stored tensors, twice differentiable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.recompute import RECOMPUTE_ABOVE, evaluate

CASES: list[tuple[Implementation, int, bool]] = [
    ("reference", RECOMPUTE_ABOVE, False),
    ("blocked", RECOMPUTE_ABOVE - 1, False),
    ("blocked", RECOMPUTE_ABOVE, True),
]


def _function(x: Tensor, power: int) -> Tensor:
    return (x.sin() * x**power).exp().tanh()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_(True)


@pytest.fixture
def stored(x: Tensor) -> Iterator[list[Tensor]]:
    """Tensors that are kept for the backward pass, other than the input."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor is not x:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize(("implementation", "numbers", "recomputed"), CASES)
def test_only_large_tensors_are_computed_again(
    implementation: Implementation, numbers: int, recomputed: bool, x: Tensor, stored: list[Tensor]
) -> None:
    evaluate(_function, x, 3, numbers=numbers, implementation=implementation)
    assert (len(stored) == 0) == recomputed


@pytest.mark.parametrize(("implementation", "numbers", "recomputed"), CASES)
def test_value_and_derivatives_are_those_of_the_function(
    implementation: Implementation, numbers: int, recomputed: bool, x: Tensor
) -> None:
    def recompute(x: Tensor) -> Tensor:
        return evaluate(_function, x, 3, numbers=numbers, implementation=implementation)

    assert recompute(x).equal(_function(x, 3))
    assert torch.autograd.gradcheck(recompute, x)
    assert torch.autograd.gradgradcheck(recompute, x)


def test_without_gradients_the_function_is_called_once(x: Tensor) -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x * x

    with torch.no_grad():
        result = evaluate(counted, x, numbers=RECOMPUTE_ABOVE, implementation="blocked")
    assert not result.requires_grad
    assert len(calls) == 1


def test_the_random_state_is_left_alone(x: Tensor) -> None:
    before = torch.get_rng_state()
    evaluate(_function, x, 3, numbers=RECOMPUTE_ABOVE, implementation="blocked").sum().backward()
    assert torch.get_rng_state().equal(before)
