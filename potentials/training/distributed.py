"""Data-parallel training: the processes that torchrun starts share the structures of every step.

Every process holds the whole data set and the same weights. A step computes the gradient of its share of the
batch, divided by the counts of the whole batch; the gradients are then added over the processes, so that all of
them make the same optimiser step as one process with the whole batch would.

`torch.nn.parallel.DistributedDataParallel` is not used. It averages over processes, which is wrong for shares of
unequal size, and its hooks expect one `backward()` per forward, whereas the loss on forces differentiates a
derivative. One sum of all gradients after `torch.autograd.grad` needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from e2former_calc.potentials.training.loss import LossCounts

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables by which torchrun tells a process its place."""


@dataclass(frozen=True)
class Workers:
    """The processes of a run, seen from one of them; every process must make the same calls in the same order.

    With one process nothing is exchanged. With more, the default process group of torch must exist.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes files and messages."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `size`-th item."""
        return items[self.rank :: self.size]

    def collect(self, items: Sequence[T]) -> list[T]:
        """The items of all shares in the order before `share`, in every process."""
        if self.size == 1:
            return list(items)
        shares: list[Sequence[T]] = [()] * self.size
        dist.all_gather_object(shares, items)
        return [shares[k % self.size][k // self.size] for k in range(sum(map(len, shares)))]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, the same bits in all of them."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def sum_counts(self, counts: LossCounts) -> LossCounts:
        """Counts of the whole batch from those of the shares."""
        total = self.sum(torch.tensor([counts.structures, counts.atoms, counts.stresses]))
        return LossCounts(*total.tolist())

    def sum_gradients(self, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Sum of gradients over processes; None where no process has one, as the optimiser leaves those alone."""
        if self.size == 1:
            return list(gradients)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        used = filled[0].new_tensor([float(g is not None) for g in gradients])
        total = self.sum(torch.cat([g.flatten() for g in filled] + [used]))
        *parts, used = total.split([g.numel() for g in filled] + [len(filled)])
        return [
            part.view_as(g).to(g.dtype) if known else None
            for part, g, known in zip(parts, filled, used.tolist(), strict=True)
        ]

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


ALONE = Workers()
"""One process."""


def torchrun_workers() -> Workers:
    """Place of this process among those that torchrun started, not yet connected; `ALONE` without torchrun."""
    if not all(name in os.environ for name in ENVIRONMENT):
        return ALONE
    return Workers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def worker_device(device: torch.device) -> torch.device:
    """Device of this process: with several processes on a machine, each takes one GPU.

    Raises:
        ValueError: if one GPU is asked for by number, or there are fewer GPUs than processes.
    """
    workers = torchrun_workers()
    if workers.size == 1 or device.type != "cuda":
        return device
    if device != torch.device("cuda"):
        raise ValueError(
            f"device {device} was asked for, but there are {workers.size} processes: use device cuda, a GPU for each"
        )
    local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= available:
        raise ValueError(
            f"process {local} of this machine finds {available} GPUs: start at most {available} processes per machine"
        )
    return torch.device("cuda", local)


@contextmanager
def connected(device: torch.device) -> Iterator[Workers]:
    """The processes that torchrun started, connected within this context; `ALONE` without torchrun.

    Gradients on GPUs travel by NCCL, everything on the host by Gloo.

    Args:
        device: of this process, see `worker_device`.
    """
    workers = torchrun_workers()
    if workers.size == 1:
        yield workers
        return
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield workers
    finally:
        dist.destroy_process_group()
