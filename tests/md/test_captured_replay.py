"""A replay reads its inputs anew, and what depends on values seen by the host cannot be recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from e2former_calc.md.captured_replay import (
    CannotRecordError,
    Recorder,
    check_execution,
    compiled,
    compiled_or_traced,
    cuda_graph,
    plain,
    recorder_for,
    traced,
)
from e2former_calc.potentials.training.compiled import compiler_available

CPU = torch.device("cpu")
WEIGHT = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)


def energy_and_gradient(x: Tensor, shift: Tensor) -> list[Tensor]:
    """A function that differentiates inside, like forces."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        energy = (WEIGHT * torch.tanh(leaf + shift)).square().sum()
        (gradient,) = torch.autograd.grad(energy, leaf)
    return [energy.detach(), gradient]


def assert_follows_inputs(recorder: Recorder, device: torch.device = CPU) -> None:
    inputs = [torch.linspace(0.0, 1.0, 3, dtype=torch.float64, device=device) for _ in "ab"]
    replay = recorder(energy_and_gradient, inputs)
    for value in (0.3, -2.0):
        inputs[0].fill_(value)
        for got, want in zip(replay(), energy_and_gradient(*inputs), strict=True):
            assert torch.allclose(got, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("recorder", [plain, traced])
def test_a_replay_follows_its_inputs(recorder: Recorder) -> None:
    assert_follows_inputs(recorder)


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(CPU), reason="there is no C++ compiler")
def test_a_compiled_function_follows_its_inputs() -> None:
    assert_follows_inputs(compiled)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_graph_follows_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WEIGHT", WEIGHT.cuda())
    assert_follows_inputs(cuda_graph, torch.device("cuda"))


@pytest.mark.parametrize(
    "look", [lambda x: x * float(x.sum()), lambda x: x if bool(x.any()) else -x, lambda x: x * max(x.tolist())]
)
def test_functions_that_look_at_values_are_refused(look: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CannotRecordError, match="a value of a tensor is needed on the host"):
        traced(lambda x: [look(x)], [torch.ones(3)])


def test_numbers_of_python_are_those_of_the_recording() -> None:
    step = [1]
    x = torch.zeros(2)
    replay = traced(lambda y: [y + step[0]], [x])
    step[0] = 5
    assert replay()[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("cuda-graph", "needs a model on a CUDA device, this one is on 'cpu': load it with device='cuda'"),
        ("fast", r"unknown execution 'fast': choose from \['eager', 'static', 'compiled', 'cuda-graph'\]"),
    ],
)
def test_what_cannot_be_run_here_is_refused(execution: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recorder_for(execution, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("execution", ["eager", "static", "compiled", "cuda-graph"])
def test_known_executions_pass(execution: str) -> None:
    check_execution(execution)


def test_without_a_compiler_a_trace_is_used_and_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2former_calc.potentials.training.compiled.compiler_available", lambda device: False)
    with pytest.warns(UserWarning, match=r"not compiled, .*: compiling for cpu needs a C\+\+ compiler") as found:
        assert_follows_inputs(compiled_or_traced)
    assert len(found) == 1


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> Callable[..., None]:
        def call(*_: object) -> None:
            raise torch._dynamo.exc.TorchDynamoException("no space left")

        return call

    monkeypatch.setattr("e2former_calc.potentials.training.compiled.compiler_available", lambda device: True)
    monkeypatch.setattr(torch, "compile", breaks)
    with pytest.warns(UserWarning, match="not compiled, .*: the compiler failed: no space left"):
        assert_follows_inputs(compiled_or_traced)


def test_recording_leaves_warning_filters_alone() -> None:
    before = list(warnings.filters)
    traced(energy_and_gradient, [torch.zeros(3, dtype=torch.float64)] * 2)
    assert list(warnings.filters) == before
