"""Whatever the execution, a simulation goes the same way, stops at the same steps and continues from a restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from torch import Tensor

from e2former_calc.md import static_forces
from e2former_calc.md.captured_replay import Execution, Function, Replay, compiled, traced
from e2former_calc.md.integrators import Bussi, Langevin, NoseHooverChain, VelocityVerlet
from e2former_calc.md.schedules import LinearRamp
from e2former_calc.md.simulation import Observer, Simulation, SimulationOptions
from e2former_calc.md.velocities import InitialVelocities
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.compiled import compiler_available

LANGEVIN = Langevin(0.5, 600.0, 5.0)
RECORDABLE = [VelocityVerlet(0.5), LANGEVIN, Bussi(0.5, 600.0, 50.0)]
HOT = InitialVelocities(600.0)
by_name = pytest.mark.parametrize("integrator", RECORDABLE, ids=lambda i: type(i).__name__)
Start = Callable[..., Simulation]


def like_a_cuda_graph(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """A trace that writes its results to the same places every time."""
    replay = traced(function, inputs)
    places = [tensor.clone() for tensor in replay()]

    def again() -> list[Tensor]:
        for place, values in zip(places, replay(), strict=True):
            place.copy_(values)
        return places

    return again


@pytest.fixture
def graph_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace stands in for a CUDA graph, and the host looks every fourth evaluation."""
    for module in ("captured_step", "static_forces"):
        monkeypatch.setattr(f"e2former_calc.md.{module}.recorder_for", lambda *_: like_a_cuda_graph)
    monkeypatch.setitem(static_forces.CHECK_EVERY, "cpu", 4)


@pytest.fixture(scope="module")
def network() -> EnergyPotential:
    """Random weights in float64."""
    config = E2FormerV2Config(
        heads=("test",), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=4, head_width=4, num_basis=8,
        max_radius=4.0, orders=("first",), max_neighbors=4, avg_degree=1.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = E2FormerV2(config)
    return EnergyPotential(
        model.eval(), head="test", reference_energies={"test": torch.zeros(119)}, elements=frozenset({1, 6, 8}),
        force_mode="gradient", uses_charge=False, uses_spin=False,
    ).double()  # fmt: skip


@pytest.fixture
def start(network: EnergyPotential) -> Start:
    """Replicas of a hot molecule with little skin."""

    def build(execution: Execution, integrator: Any, *, ids: tuple[int, ...] = (0, 1), **options: Any) -> Simulation:
        chosen = SimulationOptions(execution=execution, replica_ids=ids, **{"skin": 0.3, **options})
        images = [molecule("CH3OH")] * len(ids)
        return Simulation(images, network, integrator, seed=5, velocities=HOT, options=chosen)

    return build


def identical(one: Simulation, other: Simulation) -> bool:
    """Whether two simulations are in the same state to the last bit."""
    pairs = [(one.state.tensors()[name], other.state.tensors()[name]) for name in one.state.tensors()]
    return one.step == other.step and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def distance(one: Simulation, other: Simulation) -> float:
    return float((one.state.positions - other.state.positions).abs().max())


@by_name
@pytest.mark.usefixtures("graph_on_cpu")
def test_recorded_steps_have_the_bits_of_plain_ones(start: Start, integrator: Any) -> None:
    eager, static, recorded = (start(name, integrator) for name in ("eager", "static", "cuda-graph"))
    for simulation in (eager, static, recorded):
        simulation.run(40)
    assert distance(eager, static) < 1e-11
    assert identical(static, recorded)
    assert recorded._stepper.recordings == 1
    assert eager.list_rebuilds > 1


@pytest.mark.usefixtures("graph_on_cpu")
def test_steps_with_a_list_that_did_not_hold_are_made_again(start: Start) -> None:
    settled: list[bool] = []
    one, other = start("static", LANGEVIN, skin=0.02), start("cuda-graph", LANGEVIN, skin=0.02)
    settle = other._stepper.settle
    other._stepper.settle = lambda dynamics: settled.append(settle(dynamics)) or settled[-1]  # type: ignore[method-assign]
    for simulation in (one, other):
        simulation.run(30)
    assert settled.count(False) > 2
    assert identical(one, other)


@pytest.mark.parametrize("execution", ["static", "cuda-graph"])
@pytest.mark.usefixtures("graph_on_cpu")
def test_two_runs_with_a_restart_equal_one(start: Start, execution: Execution, tmp_path: Path) -> None:
    whole, first, second = (start(execution, LANGEVIN) for _ in "abc")
    whole.run(34)
    first.run(17)
    first.save(tmp_path / "a.restart")
    second.restore(tmp_path / "a.restart")
    second.run(17)
    assert identical(whole, second)


@pytest.mark.physics
@pytest.mark.parametrize("execution", ["static", "cuda-graph"])
@pytest.mark.usefixtures("graph_on_cpu")
def test_500_and_500_steps_equal_1000(start: Start, execution: Execution, tmp_path: Path) -> None:
    whole, first, second = (start(execution, LANGEVIN) for _ in "abc")
    whole.run(1000)
    first.run(500)
    first.save(tmp_path / "a.restart")
    second.restore(tmp_path / "a.restart")
    second.run(500)
    assert identical(whole, second)


@pytest.mark.parametrize("execution", ["static", "cuda-graph"])
@pytest.mark.usefixtures("graph_on_cpu")
def test_a_replica_alone_goes_the_way_it_goes_in_a_batch(start: Start, execution: Execution) -> None:
    batch, alone = start(execution, LANGEVIN, ids=(4, 2, 9)), start(execution, LANGEVIN, ids=(9,))
    batch.run(20)
    alone.run(20)
    assert np.allclose(batch.frame(2).positions, alone.frame(0).positions, rtol=0, atol=1e-11)


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiled_forces_lead_the_same_way_and_continue(start: Start, tmp_path: Path) -> None:
    eager, whole, first, second = (start(name, LANGEVIN) for name in ("eager", "compiled", "compiled", "compiled"))
    for simulation, steps in ((eager, 34), (whole, 34), (first, 17)):
        simulation.run(steps)
    first.save(tmp_path / "a.restart")
    second.restore(tmp_path / "a.restart")
    second.run(17)
    assert distance(eager, whole) < 1e-10
    assert identical(whole, second)


@pytest.mark.compiler
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.usefixtures("graph_on_cpu")
def test_a_compiled_step_goes_the_way_of_a_plain_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2former_calc.md.captured_step.recorder_for", lambda execution, device: compiled)
    eager, recorded = start("eager", LANGEVIN), start("cuda-graph", LANGEVIN)
    for simulation in (eager, recorded):
        simulation.run(20)
    assert distance(eager, recorded) < 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("integrator", [*RECORDABLE, NoseHooverChain(0.5, 600.0)], ids=lambda i: type(i).__name__)
def test_a_cuda_graph_of_the_step_goes_the_way_of_a_plain_one(network: EnergyPotential, integrator: Any) -> None:
    runs, potential = [], deepcopy(network).cuda()
    for execution in ("eager", "cuda-graph"):
        options = SimulationOptions(execution=execution, skin=0.3)  # type: ignore[arg-type]
        images = [molecule("CH3OH")] * 2
        runs.append(Simulation(images, potential, integrator, seed=5, velocities=HOT, options=options))
        runs[-1].run(40)
    assert distance(*runs) < 1e-10
    assert runs[1]._stepper.recordings == 1


@pytest.mark.parametrize(
    "integrator", [Langevin(0.5, LinearRamp(500.0, 700.0, 10), 5.0), Bussi(0.5, (500.0, LinearRamp(1.0, 700.0, 9)))]
)
@pytest.mark.usefixtures("graph_on_cpu")
def test_of_steps_with_ramps_only_the_forces_are_recorded(start: Start, integrator: Any) -> None:
    eager, recorded = start("eager", integrator), start("cuda-graph", integrator)
    for simulation in (eager, recorded):
        simulation.run(16)
    assert recorded._stepper.recordings == 0
    assert distance(eager, recorded) < 1e-11


@pytest.mark.usefixtures("graph_on_cpu")
def test_of_steps_that_look_at_values_only_the_forces_are_recorded(start: Start) -> None:
    integrator = NoseHooverChain(0.5, 600.0)
    eager, recorded = start("eager", integrator), start("cuda-graph", integrator)
    eager.run(16)
    with pytest.warns(UserWarning, match="of NoseHooverChain only the forces are recorded: .* needed on the host"):
        recorded.run(16)
    assert distance(eager, recorded) < 1e-11


@pytest.mark.usefixtures("graph_on_cpu")
def test_observers_see_every_step_they_ask_for(start: Start) -> None:
    seen: dict[str, list[Any]] = {"eager": [], "cuda-graph": []}
    for name, rows in seen.items():
        simulation = start(name, LANGEVIN)  # type: ignore[arg-type]
        watch = [Observer(lambda s, rows=rows: rows.append((s.step, s.frame().energy)), every=3)]
        assert simulation.run(11, observers=watch) == 11
    assert [step for step, _ in seen["cuda-graph"]] == [0, 3, 6, 9]
    assert np.allclose(seen["eager"], seen["cuda-graph"], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("graph_on_cpu")
def test_a_replica_that_breaks_is_stopped_and_the_others_go_on(start: Start) -> None:
    runs = [start("eager", LANGEVIN), start("cuda-graph", LANGEVIN)]
    for simulation in runs:
        simulation.run(5)
        velocities = simulation.state.velocities.clone()
        velocities[0] = torch.inf
        simulation._state = replace(simulation.state, velocities=velocities)
        simulation.run(12)
    assert runs[0].state.stop_step.tolist() == runs[1].state.stop_step.tolist() == [6, -1]
    assert "not finite" in runs[1].stops()[0].message  # type: ignore[union-attr]
    assert distance(*runs) < 1e-11


def test_ase_calculators_are_refused() -> None:
    with pytest.raises(ValueError, match="EMT is an ASE calculator, which works on the host: use execution='eager'"):
        Simulation(Atoms("H"), EMT(), LANGEVIN, seed=1, options=SimulationOptions(execution="static"))


def test_a_cuda_graph_is_refused_on_the_host(start: Start) -> None:
    with pytest.raises(ValueError, match="needs a model on a CUDA device, this one is on 'cpu'"):
        start("cuda-graph", LANGEVIN)


def test_unknown_executions_are_refused(start: Start) -> None:
    with pytest.raises(ValueError, match="unknown execution 'quick'"):
        start("quick", LANGEVIN)  # type: ignore[arg-type]
