"""Two processes train like one, stop together and fail together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
import yaml
from ase import Atoms

from e2former_calc.checkpoint import load_model
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.distributed import ALONE, Workers, torchrun_workers, worker_device
from e2former_calc.potentials.training.settings import TrainingSettings
from e2former_calc.potentials.training.trainer import Trainer
from e2former_calc.train import TrainingRun, read_plan

TOLERANCE = 1e6 * torch.finfo(torch.float64).eps
"""Of float64 networks after five steps, in which Adam divides by small gradients."""

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process of each run left behind."""
    folder = tmp_path_factory.mktemp("runs")
    program = Path(__file__).with_name("distributed_runs.py")
    subprocess.run([sys.executable, str(program), str(folder)], check=True, timeout=240)
    found: Results = {}
    for path in sorted(folder.glob("*-?-?.pt")):
        found.setdefault(path.stem[:-2], []).append(torch.load(path, weights_only=True))
    return found


@pytest.mark.parametrize("what", ["weights", "moments", "averaged"])
def test_two_processes_equal_one(results, what):
    (alone,) = results["whole-1"]
    for process in results["whole-2"]:
        assert process[what].keys() == alone[what].keys()
        for name, expected in alone[what].items():
            scale = float(expected.abs().max())
            assert torch.allclose(process[what][name], expected, rtol=0.0, atol=TOLERANCE * scale), name


def test_losses_and_errors_are_those_of_the_whole_batch(results):
    (alone,) = results["whole-1"]
    for process in results["whole-2"]:
        assert process["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        assert process["force_mae"] == pytest.approx(alone["force_mae"], rel=TOLERANCE)
        assert process["best"] == pytest.approx(alone["best"], rel=TOLERANCE)


def test_all_processes_hold_the_same_bits(results):
    first, second = results["whole-2"]
    for what in ("weights", "moments", "averaged"):
        assert all(torch.equal(first[what][name], second[what][name]) for name in first[what])
    assert first["best"] == second["best"]


@pytest.mark.parametrize("what", ["weights", "moments", "averaged"])
def test_killed_processes_are_resumed_bit_for_bit(results, what):
    assert "killed-2" not in results
    for whole, resumed in zip(results["whole-2"], results["resumed-2"], strict=True):
        assert all(torch.equal(whole[what][name], resumed[what][name]) for name in whole[what])
        assert whole["best"] == resumed["best"]


def test_one_process_stops_all(results):
    assert [process["step"] for process in results["stopped-2"]] == [2, 2]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(results):
    for process in results["broken-2"]:
        assert process["message"].startswith("the loss or its gradient is nan at step 0: lower learning_rate")
        assert process["step"] == 0


def test_gradients_are_added_and_stay_absent_where_no_process_has_one(results):
    for process in results["gradients-2"]:
        both, one, none = process["sums"]
        assert both.tolist() == [3.0, 3.0]
        assert one.tolist() == [[5.0, 5.0, 5.0]]
        assert none is None


def test_different_state_files_are_refused(results):
    for process in results["mismatched-2"]:
        assert "read files of the steps [0, 1], which must be the same file" in process["message"]


def test_no_process_group_is_left(results):
    assert [process["open"] for process in results["left-2"]] == [False, False]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_shares_are_disjoint_and_complete(size):
    shares = [Workers(rank, size).share(range(7)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_structures_are_refused(potential, dataset):
    with pytest.raises(ValueError, match="batch_size is 2, but 3 processes share it"):
        Trainer(potential, Batches(dataset, 4.0), None, TrainingSettings(batch_size=2), workers=Workers(0, 3))


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives to the second of two processes."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
def test_the_place_comes_from_the_environment():
    assert torchrun_workers() == Workers(1, 2)


def test_without_torchrun_a_process_is_alone():
    assert torchrun_workers() is ALONE


@pytest.mark.usefixtures("second_of_two")
def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert worker_device(torch.device("cuda")) == torch.device("cuda:1")
    assert worker_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    ("device", "message"), [("cuda:0", "use device cuda, a GPU for each"), ("cuda", "finds 1 GPUs: start at most 1")]
)
def test_gpus_that_are_not_there_are_refused(device, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=message):
        worker_device(torch.device(device))


@pytest.mark.slow
def test_torchrun_writes_the_model_of_one_process(labelled_water: list[Atoms], tmp_path: Path):
    ase.io.write(tmp_path / "frames.extxyz", labelled_water[:12])
    network = {"channels": 8, "lmax": 1, "num_layers": 1, "num_heads": 4, "head_width": 2, "num_basis": 8}
    training = {"steps": 4, "batch_size": 3, "warmup_steps": 0}
    content = {"data": {"training": "frames.extxyz", "validation": 4}, "model": network, "training": training}
    (tmp_path / "water.yaml").write_text(yaml.safe_dump(content))
    command = "torch.distributed.run --standalone --nproc-per-node 2 -m e2former_calc train water.yaml --device cpu"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all steps done") == 1
    alone = TrainingRun(read_plan(tmp_path / "water.yaml"), tmp_path / "alone", device=torch.device("cpu"))
    alone.run(report=lambda _: None)
    alone.finish()
    together, expected = (load_model(tmp_path / f"{name}.safetensors").card.errors for name in ("water", "alone"))
    assert "forces MAE" in expected
    assert together == expected
