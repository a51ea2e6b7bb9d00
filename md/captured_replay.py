"""Ways to run a function of fixed shapes again and again: as it is, as a trace, compiled, or as a CUDA graph.

A recorder gets a function and the tensors that are its inputs, and gives back a replay. A replay reads the inputs
where they lie, so whoever wants other results writes other numbers into them. Its outputs may be overwritten by the
next replay. Everything else the function uses, numbers of Python included, is that of the moment of recording.

`plain` calls the function, whatever it does. All others record the operations once: `traced` replays them one by
one on any device and is what the other two start from, so that it stands in for a CUDA graph where there is no such
device. The trace is made with tensors that have no values: a function that looks at a value on the host is refused,
where one that is traced with numbers would silently repeat those of the recording. CUDA graphs themselves have not
been run on a GPU yet; their tests carry the marker `gpu`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor

Execution = Literal["eager", "static", "compiled", "cuda-graph"]
"""How forces are evaluated; see `SimulationOptions`."""

Function = Callable[..., list[Tensor]]
Replay = Callable[[], list[Tensor]]

_WARM_UP_CALLS = 3
"""Calls before the capture, in which libraries choose algorithms and reserve memory."""


class CannotRecordError(RuntimeError):
    """A function that cannot be recorded, with the reason."""


@runtime_checkable
class Recorder(Protocol):
    """Makes a replay of a function of tensors."""

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Replay:
        """Record `function(*inputs)`.

        Raises:
            CannotRecordError: naming the reason.
        """
        ...


def recorder_for(execution: Execution, device: torch.device) -> Recorder:
    """The recorder of an execution other than "eager".

    Raises:
        ValueError: for a name that is none of `Execution`, and for "cuda-graph" elsewhere than on a CUDA device.
    """
    check_execution(execution)
    if execution == "cuda-graph" and device.type != "cuda":
        raise ValueError(
            f"execution='cuda-graph' needs a model on a CUDA device, this one is on {device.type!r}: load it with "
            "device='cuda', or use execution='compiled' or 'static'"
        )
    recorders: dict[str, Recorder] = {"static": plain, "compiled": compiled_or_traced, "cuda-graph": cuda_graph}
    return recorders[execution]


def check_execution(execution: str) -> None:
    """Refuse unknown names.

    Raises:
        ValueError: with the names there are.
    """
    if execution not in get_args(Execution):
        raise ValueError(f"unknown execution {execution!r}: choose from {list(get_args(Execution))}")


def plain(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """The function itself."""
    return partial(function, *inputs)


def traced(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """The operations of the function, gradients included, one by one."""
    graph = _trace(function, inputs)

    def replay() -> list[Tensor]:
        with torch.no_grad():
            return cast(list[Tensor], graph(*inputs))

    return replay


def compiled(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """The operations of the function fused by Inductor; takes about a minute."""
    graph = _trace(function, inputs)
    with warnings.catch_warnings():
        # The compiler's own deprecations are not the user's.
        warnings.simplefilter("ignore")
        fused: Callable[..., list[Tensor]] = torch.compile(graph, dynamic=False, fullgraph=True)
        try:
            with torch.no_grad():
                fused(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CannotRecordError(f"the compiler failed: {_first_line(error)}") from error

    def replay() -> list[Tensor]:
        with torch.no_grad():
            return fused(*inputs)

    return replay


def compiled_or_traced(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """`compiled`, or with a warning `traced` where there is no working compiler."""
    try:
        _check_compiler(inputs[0].device)
        return compiled(function, inputs)
    except CannotRecordError as error:
        replay = traced(function, inputs)
        warnings.warn(f"evaluation is not compiled, which only makes it slower: {error}", UserWarning, stacklevel=2)
        return replay


def cuda_graph(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """All kernels of the function as one launch."""
    graph = _trace(function, inputs)
    captured = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                graph(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(captured):
                outputs: list[Tensor] = graph(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotRecordError(f"capturing the CUDA graph failed: {_first_line(error)}") from error

    def replay() -> list[Tensor]:
        captured.replay()
        return outputs

    return replay


def _trace(function: Function, inputs: Sequence[Tensor]) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds, which only a run that records should pay

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Tensors without values stand in for the inputs, so that nothing can depend on a value unnoticed. A method has
        # one argument more than the tracer counts.
        tracer = make_fx(partial(function), tracing_mode="fake", _allow_non_fake_inputs=True)
        try:
            return tracer(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotRecordError(f"a value of a tensor is needed on the host ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check_compiler(device: torch.device) -> None:
    from e2former_calc.potentials.training.compiled import compiler_available

    if not compiler_available(device):
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        raise CannotRecordError(f"compiling for {device.type} needs {needed}, which was not found")
