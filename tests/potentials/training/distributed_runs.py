"""Runs of one and of two processes; a program of its own, because pytest's process must not be forked.

Usage: distributed_runs.py FOLDER. Each process of each run leaves FOLDER/RUN-SIZE-RANK.pt there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.distributed import Workers, connected
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Trainer

CONFIG = E2FormerV2Config(
    heads=("used", "unused"), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=4, head_width=2,
    num_basis=8, max_radius=3.0, orders=("first",), normalization="softplus", avg_degree=3.0, alpha_dropout=0.0,
)  # fmt: skip
SETTINGS = TrainingSettings(
    steps=5, batch_size=5, warmup_steps=2, validate_every=2, energy_weight=1.0, stress_weight=10.0
)


def dataset() -> Dataset:
    """Nine periodic structures of one to four atoms with random labels, some of them with stress."""
    generator = torch.Generator().manual_seed(5)
    sites = torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [0, 1.3, 0.2], [1.1, 1.4, 1.0]], dtype=torch.float64)
    sizes = [1 + k % 4 for k in range(9)]
    cell = 4.5 * torch.eye(3, dtype=torch.float64)
    draw = [torch.randn(n + 4, 3, generator=generator, dtype=torch.float64) for n in sizes]
    return Dataset(
        systems=tuple(
            System.single(sites[:n] + 0.1 * d[:n], [8, 1, 1, 8][:n], cell=cell, pbc=True)
            for n, d in zip(sizes, draw, strict=True)
        ),
        energy=torch.stack([d[-1, 0] for d in draw]),
        forces=tuple(d[:n] for n, d in zip(sizes, draw, strict=True)),
        stress=tuple(0.1 * d[-3:] if k % 3 == 0 else None for k, d in enumerate(draw)),
        source="random labels",
    )


def trainer(workers: Workers) -> Trainer:
    """Float64 network; the processes start from different weights on purpose."""
    torch.manual_seed(workers.rank)
    references = {"used": torch.zeros(119)}
    potential = EnergyPotential(
        E2FormerV2(CONFIG), head="used", reference_energies=references, elements=frozenset({1, 8}),
        force_mode="gradient", neighbor_cap="none",
    ).double()  # fmt: skip
    data = dataset()
    training, validation = Batches(data.subset(range(7)), 3.0), Batches(data.subset(range(7, 9)), 3.0)
    return Trainer(potential, training, validation, SETTINGS, workers=workers)


def result(trained: Trainer) -> dict[str, object]:
    """Everything that must agree, as plain tensors."""
    moments = trained._optimizer.state_dict()["state"]
    return {
        "weights": {name: p.detach() for name, p in trained.network.named_parameters()},
        "moments": {f"{k} {name}": v for k, state in moments.items() for name, v in state.items()},
        "averaged": trained._averaged,
        "best": trained.best[0],
        "step": trained.step,
    }


def whole(workers: Workers, folder: Path) -> dict[str, object]:
    whole = trainer(workers)
    losses: list[float] = []
    whole.run(report=lambda progress: losses.append(progress.loss), report_every=1)
    return result(whole) | {"losses": losses, "force_mae": whole.evaluate(whole.training).forces.mae}


def killed(workers: Workers, folder: Path) -> dict[str, object]:
    """Saved at step 3, killed at step 4."""
    first = trainer(workers)

    def stop() -> bool:
        if first.step == 3:
            first.save(folder / "state.pt")
        if first.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    first.run(stop=stop)
    raise RuntimeError("the process should be dead")


def resumed(workers: Workers, folder: Path) -> dict[str, object]:
    second = trainer(workers)
    second.load(folder / "state.pt")
    second.run()
    return result(second)


def stopped(workers: Workers, folder: Path) -> dict[str, object]:
    """Only the last process is asked to stop."""
    stopping = trainer(workers)
    stopping.run(stop=lambda: workers.rank == workers.size - 1 and stopping.step == 2)
    return {"step": stopping.step}


def broken(workers: Workers, folder: Path) -> dict[str, object]:
    """A weight of the last process is NaN."""
    breaking = trainer(workers)
    if not workers.first:
        with torch.no_grad():
            next(breaking.network.parameters()).fill_(torch.nan)
    try:
        breaking.run()
    except FloatingPointError as error:
        return {"message": str(error), "step": breaking.step}
    return {}


def gradients(workers: Workers, folder: Path) -> dict[str, object]:
    """The first is known to all, the second to the first process, the third to none."""
    parameters = [torch.zeros(2), torch.zeros(1, 3), torch.zeros(4)]
    second = torch.full((1, 3), 5.0) if workers.first else None
    return {"sums": workers.sum_gradients([torch.full((2,), 1.0 + workers.rank), second, None], parameters)}


def mismatched(workers: Workers, folder: Path) -> dict[str, object]:
    """Each process reads a state of its own."""
    own = trainer(workers)
    own.step = workers.rank
    leader = Trainer(own.potential, own.training, None, SETTINGS)
    leader.step = workers.rank
    leader.save(folder / f"state-{workers.rank}.pt")
    try:
        own.load(folder / f"state-{workers.rank}.pt")
    except ValueError as error:
        return {"message": str(error)}
    return {}


def process(runs: tuple[str, ...], size: int, rank: int, port: int, folder: Path) -> None:
    """One process, with the environment that torchrun would give it; leaves the group by an error."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    with suppress(InterruptedError), connected(torch.device("cpu")) as workers:
        for run in runs:
            torch.save(globals()[run](workers, folder), folder / f"{run}-{size}-{rank}.pt")
        raise InterruptedError
    torch.save({"open": dist.is_initialized()}, folder / f"left-{size}-{rank}.pt")


def launch(runs: tuple[str, ...], size: int, folder: Path) -> None:
    """All runs, one after the other, in the same processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    places = [(runs, size, rank, port, folder) for rank in range(size)]
    processes = [fork.Process(target=process, args=place, daemon=True) for place in places]
    for started in processes:
        started.start()
    for started in processes:
        started.join(60)


if __name__ == "__main__":
    launch(("whole",), 1, Path(sys.argv[1]))
    launch(("killed",), 2, Path(sys.argv[1]))
    launch(("whole", "resumed", "stopped", "gradients", "mismatched", "broken"), 2, Path(sys.argv[1]))
