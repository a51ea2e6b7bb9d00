"""Packages in environments of their own: the protocol, what can go wrong, and rounds together with ours."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT

from e2former_calc.benchmark import (
    Case,
    ComparisonCase,
    ComparisonResult,
    ModelSpec,
    peer_worker,
    run_comparison_in_subprocess,
)
from e2former_calc.benchmark import comparison as comparison_module
from e2former_calc.benchmark import peer as peer_module
from e2former_calc.benchmark.comparison import measure_comparison
from e2former_calc.benchmark.implementations import Contestant, contestant
from e2former_calc.benchmark.peer import PEER_NAMES, Peer, PeerError, PeerSpec
from e2former_calc.benchmark.peer_worker import Built, answers

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="fake interpreters are scripts with a first line for a shell"
)

WATER = molecule("H2O")
TINY = ModelSpec({"device": "cpu", "charge": 0, "spin": 1}, shape="8x1")

START = 'say({"version": "1.2", "description": "fake of " + first["peer"]})'
CALL = 'say({"seconds": 0.25, "forces": positions})'
FAKE = """#!{python}
import json, os, sys, time
def say(answer): print(json.dumps(answer), flush=True)
first = json.loads(sys.stdin.readline())
{start}
for count, line in enumerate(sys.stdin):
    positions = json.loads(line)["positions"]
    {call}
"""

Fake = Callable[..., PeerSpec]


def fake_peer(folder: Path, name: str = "mace", *, start: str = START, call: str = CALL) -> PeerSpec:
    """A peer whose interpreter is a script, which does not look at the worker."""
    path = folder / f"python-{name}"
    path.write_text(FAKE.format(python=sys.executable, start=start, call=call))
    path.chmod(0o755)
    return PeerSpec(name, str(path))


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return partial(fake_peer, tmp_path)


@pytest.fixture
def water_peer(fake: Fake) -> Callable[..., Peer]:
    return lambda **parts: Peer(fake(**parts), WATER, threads=3)


def case(**timing: Any) -> Case:
    return Case.of("water", WATER, TINY, **timing)


def test_a_peer_says_what_it_is_and_times_itself(water_peer: Callable[..., Peer]) -> None:
    with water_peer() as peer:
        assert (peer.version, peer.description) == ("1.2", "fake of mace")
        elapsed, forces = peer.energy_forces(WATER.positions)
    assert elapsed == 250.0
    assert np.array_equal(forces, WATER.positions)


def test_threads_are_those_asked_for(water_peer: Callable[..., Peer]) -> None:
    start = 'say({"version": first["threads"], "description": os.environ["OMP_NUM_THREADS"]})'
    with water_peer(start=start) as peer:
        assert (peer.version, peer.description) == ("3", "3")


def test_the_structure_reaches_the_peer(fake: Fake) -> None:
    start = 'say({"version": first["device"], "description": json.dumps(first["atoms"])})'
    with Peer(fake(start=start), WATER, threads=1, device="cuda") as peer:
        assert peer.version == "cuda"
        assert json.loads(peer.description)["numbers"] == WATER.numbers.tolist()


def test_a_peer_ends_with_its_context(water_peer: Callable[..., Peer]) -> None:
    with water_peer(start='say({"version": os.getpid(), "description": ""})') as peer:
        os.kill(int(peer.version), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(peer.version), 0)


@pytest.mark.parametrize(("call", "message"), [
    ('sys.exit("out of luck")', "mace: ended with code 1: out of luck"),
    ("os.kill(os.getpid(), 9)", "mace: was killed by SIGKILL: probably out of memory"),
    ("os.close(1); time.sleep(60)", "mace: closed its output"),
    ('print("garbage", flush=True)', "mace: answered 'garbage', which is not what was asked for"),
    ("say([1.0])", r"mace: answered '\[1.0\]', which is not what"),
    ('say({"seconds": 1.0})', "mace: answered '.*', not seconds and forces"),
    ('say({"seconds": 0.0, "forces": positions})', "mace: took 0.0 s, which is no time"),
    ('say({"seconds": 1.0, "forces": positions[1:]})', r"mace: gave forces of shape \(2, 3\), not finite ones"),
    ('say({"seconds": 1.0, "forces": [[float("nan")] * 3] * 3})', "not finite ones"),
    ('say({"error": "ValueError: two\\n lines"})', "mace: ValueError: two lines$"),
])  # fmt: skip
def test_a_call_that_fails_says_how(
    water_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, call: str, message: str
) -> None:
    monkeypatch.setattr(peer_module, "END_SECONDS", 0.3)
    with water_peer(call=call) as peer, pytest.raises(PeerError, match=message):
        peer.energy_forces(WATER.positions)


@pytest.mark.parametrize(("start", "message"), [
    ('sys.exit("no such option")', "mace: ended with code 1: no such option"),
    ('say({"version": "1.2"})', "mace: answered '.*', not its version and what it evaluates"),
    ('print("Welcome!", flush=True)', "mace: answered 'Welcome!', which is not what was asked for"),
])  # fmt: skip
def test_a_start_that_fails_says_how(water_peer: Callable[..., Peer], start: str, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        water_peer(start=start)


def test_an_interpreter_that_is_missing_is_named() -> None:
    with pytest.raises(PeerError, match="mace: cannot run '/nowhere/python': No such file or directory"):
        Peer(PeerSpec("mace", "/nowhere/python"), WATER, threads=1)


def test_a_package_that_is_missing_is_named() -> None:
    name = next((name for name in PEER_NAMES if find_spec(name) is None), None)
    if name is None:
        pytest.skip("all peers are installed here")
    with pytest.raises(PeerError, match=f"{name}: ModuleNotFoundError: No module named '{name}"):
        Peer(PeerSpec(name, sys.executable), WATER, threads=1)


@pytest.mark.parametrize(("limit", "parts"), [
    ("START_SECONDS", {"start": "time.sleep(60)"}), ("CALL_SECONDS", {"call": "time.sleep(60)"}),
])  # fmt: skip
def test_a_peer_that_hangs_is_stopped(
    water_peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch, limit: str, parts: dict[str, str]
) -> None:
    monkeypatch.setattr(peer_module, limit, 0.4)
    with pytest.raises(PeerError, match=r"mace: gave no answer within 0\.4 s"), water_peer(**parts) as peer:
        peer.energy_forces(WATER.positions)


@pytest.mark.parametrize(("text", "message"), [
    ("gap=python", "no peer 'gap': choose from mace, nequip, torchani"),
    ("mace", "a peer is NAME=PYTHON, such as mace=/opt/mace/bin/python; got 'mace'"),
    ("mace=", "a peer is NAME=PYTHON"),
])  # fmt: skip
def test_senseless_peers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeerSpec.parse(text)


def test_an_interpreter_may_have_any_path() -> None:
    assert PeerSpec.parse("nequip=/a=b/python") == PeerSpec("nequip", "/a=b/python")


def test_peers_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="peers must be different ones, got mace, mace"):
        ComparisonCase(case(), ("baseline",), (PeerSpec("mace", "a"), PeerSpec("mace", "b")))


def test_peers_take_part_in_every_round_at_the_same_positions(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def listed(name: str, *arguments: Any) -> Contestant:
        own = contestant(name, *arguments)

        def forces(positions: Any) -> Any:
            with log.open("a") as file:
                print(name, positions.tolist(), file=file)
            return own.energy_forces(positions)

        return replace(own, energy_forces=forces)

    monkeypatch.setattr(comparison_module, "contestant", listed)
    monkeypatch.setattr(comparison_module, "SHORT_MS", 0.0)
    call = f"print('mace', positions, file=open({str(log)!r}, 'a'), flush=True); {CALL}"
    measure_comparison(ComparisonCase(case(repeats=3), ("baseline",), (fake(call=call),)))
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()][-6:]
    assert [name for name, _ in lines] == ["baseline", "mace"] * 3
    positions = [place for _, place in lines]
    assert positions[::2] == positions[1::2]
    assert len(set(positions)) == 3


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    """Three peers: one well, one whose process ends in the third round, one that is not there."""
    folder = tmp_path_factory.mktemp("peers")
    dying = fake_peer(folder, "nequip", call=f"{CALL} if count < 8 else sys.exit('tired')")
    peers = (fake_peer(folder), dying, PeerSpec("torchani", "/nowhere/python"))
    return run_comparison_in_subprocess(ComparisonCase(case(repeats=4), ("baseline",), peers), memory_of=())


def test_the_run_goes_on_without_peers_that_fail(result: ComparisonResult) -> None:
    assert [one.label for one in result.contenders] == ["baseline", "mace 1.2"]
    assert result.missing == {
        "nequip": "nequip: ended with code 1: tired",
        "torchani": "torchani: cannot run '/nowhere/python': No such file or directory",
    }
    mace = result.of("mace")
    assert mace is not None
    assert (mace.samples, mace.description, mace.force_difference) == ((250.0,) * 4, "fake of mace", None)


def test_ratios_are_medians_over_rounds(result: ComparisonResult) -> None:
    own = result.of("baseline")
    assert own is not None
    assert result.times_faster("baseline", "mace") == np.median(250.0 / np.array(own.samples))
    assert result.times_faster("baseline", "nequip") is None


def test_a_result_with_peers_survives_json(result: ComparisonResult) -> None:
    assert ComparisonResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


class Counted(EMT):
    """Counts what it computes."""

    calls = 0

    def calculate(self, *arguments: Any) -> None:
        type(self).calls += 1
        super().calculate(*arguments)


def requests(*scales: float) -> Iterator[str]:
    """The structure, and lines with scaled positions."""
    atoms = {"numbers": WATER.numbers.tolist(), "positions": WATER.positions.tolist(), "pbc": [False] * 3}
    yield json.dumps({"peer": "emt", "atoms": atoms, "threads": 1, "device": "cpu", "seed": 0})
    yield from (json.dumps({"positions": (scale * WATER.positions).tolist()}) for scale in scales)


def answered(lines: Iterable[str], build: Callable[[Any, str], Built]) -> list[dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        return list(answers(lines, {"emt": build}))


def test_the_worker_computes_anew_at_the_positions_given() -> None:
    Counted.calls = 0
    first, *called = answered(requests(1.1, 1.1, 1.2), lambda atoms, device: Built(Counted(), "3", "metals"))
    assert first == {"version": "3", "description": "metals"}
    assert Counted.calls == 3
    expected = WATER.copy()
    expected.calc = EMT()
    expected.positions *= 1.2
    assert np.array_equal(called[-1]["forces"], expected.get_forces())
    assert all(answer["seconds"] > 0 for answer in called)


def test_the_worker_reports_an_error_and_ends() -> None:
    (answer,) = answered(requests(1.0), lambda atoms, device: Built(Counted(), "3", device.missing))
    assert answer == {"error": "AttributeError: 'str' object has no attribute 'missing'"}


def test_the_worker_ends_with_its_input() -> None:
    assert list(answers(iter(()))) == []


def test_what_libraries_print_does_not_reach_the_answers() -> None:
    code = "import os, peer_worker as p; c = p.own_channel(); print('Hi'); os.system('echo Hi'); c.write('answer')"
    folder = Path(peer_worker.__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "answer"


def test_the_worker_needs_nothing_but_ase_and_numpy_and_python_of_some_years_ago() -> None:
    tree = ast.parse(Path(peer_worker.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"ase", "numpy"}
