"""LMDB files of OMol25 and OC20 become the numbers that are in them, and no code in them is run."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db.row import atoms2dict
from ase.io.jsonio import encode

from e2former_calc.potentials.training.dataset import DatasetError
from e2former_calc.potentials.training.readers import read_dataset

lmdb = pytest.importorskip("lmdb", reason="needs the extra lmdb")

Encoder = Callable[[Any], bytes]
WRITERS_OF_ROWS = {
    "marked arrays": lambda row: encode(row),
    "plain lists": lambda row: encode({key: np.asarray(value).tolist() for key, value in row.items()}),
}


def write_lmdb(path: Path, entries: Mapping[str, bytes]) -> Path:
    """A single-file environment without its lock file."""
    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment, environment.begin(write=True) as writing:
        for key, value in entries.items():
            writing.put(key.encode(), value)
    path.with_name(f"{path.name}-lock").unlink()
    return path


def labelled(k: int = 0, **results: Any) -> Atoms:
    """A periodic molecule with random results; no two `k` give the same numbers."""
    generator = np.random.default_rng(k)
    atoms = Atoms("OHH", generator.normal(size=(3, 3)), cell=5.0 * np.eye(3), pbc=True)
    default = {"energy": -10.0 - k, "forces": generator.normal(size=(3, 3)), "stress": generator.normal(size=6)}
    atoms.calc = SinglePointCalculator(atoms, **{**default, **results})
    return atoms


def row(atoms: Atoms, layout: str = "marked arrays", **data: Any) -> bytes:
    """The entry of a structure in an ASE database."""
    columns = {**atoms2dict(atoms), "cell": atoms.cell.array, "data": data}
    constraints = columns.pop("constraints", None)
    text = WRITERS_OF_ROWS[layout](columns)
    if constraints:
        text = text[:-1] + f', "constraints": {encode(constraints)}}}'
    return zlib.compress(text.encode())


def write_rows(path: Path, frames: list[bytes]) -> Path:
    """An ASE database; ids count from 1."""
    counters = {"nextid": zlib.compress(b"%d" % (len(frames) + 1)), "metadata": zlib.compress(b"{}")}
    return write_lmdb(path, {**{str(k): frame for k, frame in enumerate(frames, 1)}, **counters})


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stand-ins for the classes of PyG that can be pickled under their names, until the test ends."""
    modules = {name: types.ModuleType(f"torch_geometric.data.{name}") for name in ("data", "storage")}
    classes = {"Data": "data", "DataEdgeAttr": "data", "GlobalStorage": "storage"}
    for name, module in classes.items():
        stand_in = type(name, (), {"__module__": f"torch_geometric.data.{module}"})
        setattr(modules[module], name, stand_in)
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", types.ModuleType("torch_geometric.data"))
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(**{name: getattr(modules[module], name) for name, module in classes.items()})


def fields(k: int = 0, **changes: Any) -> dict[str, Any]:
    """An OC20 record of structure `k`; None removes a field."""
    atoms = labelled(k)
    default = {
        "pos": torch.from_numpy(atoms.positions).float(),
        "atomic_numbers": torch.tensor([8.0, 1.0, 1.0]),
        "cell": torch.from_numpy(atoms.cell.array).float()[None],
        "y": atoms.calc.results["energy"],
        "force": torch.from_numpy(atoms.calc.results["forces"]),
        "natoms": 3,
        "fixed": torch.tensor([1.0, 0.0, 0.0]),
        "tags": torch.tensor([0, 1, 2]),
        "sid": k,
        "fid": np.int64(k),
        "edge_index": None,
    }
    return {name: value for name, value in {**default, **changes}.items() if value is not None}


def old_layout(graph: types.SimpleNamespace, content: dict[str, Any]) -> Any:
    """A record as PyG 1 pickled it."""
    data = graph.Data()
    data.__dict__.update(content)
    return data


def new_layout(graph: types.SimpleNamespace, content: dict[str, Any]) -> Any:
    """A record as PyG 2 pickles it: the store refers to its parent."""
    data, store = graph.Data(), graph.GlobalStorage()
    store.__dict__.update(_mapping=content, _parent=data)
    data.__dict__.update(_edge_attr_cls=graph.DataEdgeAttr, _store=store)
    return data


def write_records(path: Path, records: list[Any], protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    """An OC20 file, with the `length` that some converters write: one too small."""
    entries = {str(k): pickle.dumps(record, protocol) for k, record in enumerate(records)}
    return write_lmdb(path, {**entries, "length": pickle.dumps(len(records) - 1, protocol)})


class Attack:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("layout", list(WRITERS_OF_ROWS))
def test_rows_of_ase_databases_keep_structures_and_labels(tmp_path: Path, layout: str) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled(k), layout) for k in range(12)])
    dataset = read_dataset(path)
    expected = labelled(10)
    assert dataset.energy.tolist() == [-10.0 - k for k in range(12)]  # in the order of numbers, not of strings
    np.testing.assert_array_equal(dataset.systems[10].positions, expected.positions)
    np.testing.assert_array_equal(dataset.systems[10].cell[0], expected.cell)
    np.testing.assert_array_equal(dataset.forces[10], expected.calc.results["forces"])
    np.testing.assert_array_equal(dataset.stress[10][0, 0], expected.calc.results["stress"][0])
    assert (dataset.systems[10].numbers.tolist(), dataset.systems[10].pbc.tolist()) == ([8, 1, 1], [[True] * 3])


def test_databases_written_by_ase_are_read(tmp_path: Path) -> None:
    pytest.importorskip("ase_db_backends", reason="needs ase-db-backends, the writer of .aselmdb files")
    with ase.db.connect(tmp_path / "a.aselmdb") as database:
        for k in range(4):
            database.write(labelled(k), data={"charge": -k, "spin": k + 1})
        database.delete([2])
    dataset = read_dataset(tmp_path / "a.aselmdb")
    assert dataset.energy.tolist() == [-10.0, -12.0, -13.0]
    assert [(int(s.charge), int(s.spin)) for s in dataset.systems] == [(0, 1), (-2, 3), (-3, 4)]
    np.testing.assert_array_equal(dataset.forces[1], labelled(2).calc.results["forces"])


@pytest.mark.parametrize("layout", list(WRITERS_OF_ROWS))
def test_charge_and_multiplicity_of_rows_are_in_their_data(tmp_path: Path, layout: str) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled(), layout, charge=-2, spin=3, source="somewhere")])
    system = read_dataset(path).systems[0]
    assert (system.charge.tolist(), system.spin.tolist()) == ([-2], [3])


def test_labels_in_the_data_of_rows_are_found(tmp_path: Path) -> None:
    atoms = labelled()
    results, atoms.calc = atoms.calc.results, None
    path = write_rows(tmp_path / "a.aselmdb", [row(atoms, energy=-4.0, forces=results["forces"])])
    dataset = read_dataset(path)
    assert dataset.energy.tolist() == [-4.0]
    np.testing.assert_array_equal(dataset.forces[0], results["forces"])


def test_forces_on_constrained_atoms_of_rows_are_not_zeroed(tmp_path: Path) -> None:
    atoms = labelled()
    atoms.set_constraint(FixAtoms([1]))
    path = write_rows(tmp_path / "a.aselmdb", [row(atoms)])
    np.testing.assert_array_equal(read_dataset(path).forces[0], atoms.calc.results["forces"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("layout", [old_layout, new_layout])
def test_records_of_oc20_keep_structures_and_labels(
    tmp_path: Path, graph: types.SimpleNamespace, layout: Callable[..., Any], protocol: int
) -> None:
    records = [layout(graph, fields(k)) for k in range(12)]
    dataset = read_dataset(write_records(tmp_path / "a.lmdb", records, protocol))
    expected = labelled(11)
    assert dataset.energy.tolist() == [-10.0 - k for k in range(12)]
    np.testing.assert_array_equal(dataset.systems[11].positions, expected.positions.astype(np.float32))
    np.testing.assert_array_equal(dataset.systems[11].cell[0], expected.cell)
    np.testing.assert_array_equal(dataset.forces[11], expected.calc.results["forces"])
    assert (dataset.systems[11].numbers.tolist(), dataset.systems[11].pbc.tolist()) == ([8, 1, 1], [[True] * 3])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_records_of_numpy_arrays_are_read(tmp_path: Path, graph: types.SimpleNamespace, protocol: int) -> None:
    forces = np.asfortranarray(np.arange(9.0, dtype=">f4").reshape(3, 3))
    record = old_layout(graph, fields(y=None, force=None, energy=np.float32(-2.5), forces=forces))
    dataset = read_dataset(write_records(tmp_path / "a.lmdb", [record], protocol))
    assert dataset.energy.tolist() == [-2.5]
    np.testing.assert_array_equal(dataset.forces[0], forces)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_records_keep_tensors_that_are_views(tmp_path: Path, graph: types.SimpleNamespace, dtype: torch.dtype) -> None:
    forces = torch.arange(24.0).to(dtype).reshape(4, 6)[:, 2:5].T[:, 1:]
    dataset = read_dataset(write_records(tmp_path / "a.lmdb", [old_layout(graph, fields(force=forces))]))
    assert torch.equal(dataset.forces[0], forces.double())


@pytest.mark.parametrize(
    ("changes", "pbc"),
    [
        ({"cell": torch.diag(torch.tensor([4.0, 4.0, 0.0]))}, [True, True, False]),
        ({"cell": None}, [False] * 3),
        ({"pbc": torch.tensor([True, False, True])}, [True, False, True]),
        ({"pbc": torch.tensor([[False, False, False]])}, [False] * 3),
    ],
)
def test_records_without_pbc_are_periodic_along_their_cell(
    tmp_path: Path, graph: types.SimpleNamespace, changes: dict[str, Any], pbc: list[bool]
) -> None:
    path = write_records(tmp_path / "a.lmdb", [old_layout(graph, fields(**changes))])
    assert read_dataset(path).systems[0].pbc.tolist() == [pbc]


def test_records_have_charge_spin_and_stress_if_they_say_so(tmp_path: Path, graph: types.SimpleNamespace) -> None:
    stress = torch.arange(9.0).reshape(1, 3, 3)
    record = new_layout(graph, fields(charge=torch.tensor([-1]), spin=2, stress=stress))
    dataset = read_dataset(write_records(tmp_path / "a.lmdb", [record]))
    assert (dataset.systems[0].charge.tolist(), dataset.systems[0].spin.tolist()) == ([-1], [2])
    np.testing.assert_array_equal(dataset.stress[0], stress[0])


@pytest.mark.parametrize(
    "wrap", [lambda graph, attack: attack, lambda graph, attack: old_layout(graph, fields(y=attack))]
)
def test_code_in_a_record_is_refused_and_not_run(
    tmp_path: Path, graph: types.SimpleNamespace, wrap: Callable[..., Any]
) -> None:
    trace = tmp_path / "trace"
    path = write_records(tmp_path / "a.lmdb", [wrap(graph, Attack(os.system, f"touch {trace}"))])
    with pytest.raises(DatasetError, match=rf"a.lmdb, entry 0 .*refused: .* asks for {os.name}.system"):
        read_dataset(path)
    assert not trace.exists()


def test_code_in_the_storage_of_a_tensor_is_refused_and_not_run(tmp_path: Path, graph: types.SimpleNamespace) -> None:
    trace = tmp_path / "trace"
    storage = Attack(torch.storage._load_from_bytes, pickle.dumps(Attack(os.system, f"touch {trace}"), 2))
    forces = Attack(torch._utils._rebuild_tensor_v2, storage, 0, (3, 3), (3, 1), False, {})
    path = write_records(tmp_path / "a.lmdb", [old_layout(graph, fields(force=forces))])
    with pytest.raises(DatasetError, match=r"a.lmdb, entry 0 cannot be read"):
        read_dataset(path)
    assert not trace.exists()


@pytest.mark.parametrize("function", [eval, getattr, torch.load, np.load, pickle.loads, np.zeros])
def test_harmless_looking_functions_are_refused_too(
    tmp_path: Path, graph: types.SimpleNamespace, function: Callable[..., Any]
) -> None:
    path = write_records(tmp_path / "a.lmdb", [old_layout(graph, fields(y=Attack(function, "1")))])
    with pytest.raises(DatasetError, match=rf"refused: .*\.{function.__name__}, which is no part of a structure"):
        read_dataset(path)


def test_tensors_cannot_reach_beyond_their_storage(tmp_path: Path, graph: types.SimpleNamespace) -> None:
    storage = torch.zeros(4)._typed_storage()
    forces = Attack(torch._utils._rebuild_tensor_v2, storage, 0, (3, 3), (3, 1), False, {})
    path = write_records(tmp_path / "a.lmdb", [old_layout(graph, fields(force=forces))])
    with pytest.raises(DatasetError, match="out of bounds for storage"):
        read_dataset(path)


def test_a_folder_is_one_data_set_in_the_order_of_names(tmp_path: Path) -> None:
    for name, frames in {"data0001": [3, 4], "data0000": [0, 1, 2]}.items():
        write_rows(tmp_path / f"{name}.aselmdb", [row(labelled(k)) for k in frames])
    (tmp_path / "metadata.npz").write_text("no structures")
    dataset = read_dataset(tmp_path)
    assert dataset.energy.tolist() == [-10.0 - k for k in range(5)]
    assert dataset.source == tmp_path.name


@pytest.mark.parametrize(
    ("index", "expected"), [("1:4", [1, 2, 3]), ("::2", [0, 2, 4]), ("-1", [4]), ("::-2", [4, 2, 0])]
)
def test_index_counts_through_the_files_of_a_folder(tmp_path: Path, index: str, expected: list[int]) -> None:
    for name, frames in {"a": [0, 1, 2], "b": [3, 4]}.items():
        write_rows(tmp_path / f"{name}.lmdb", [row(labelled(k)) for k in frames])
    assert read_dataset(tmp_path, index=index).energy.tolist() == [-10.0 - k for k in expected]


def test_the_folder_of_one_environment_is_read(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "train"), map_size=2**20) as environment, environment.begin(write=True) as writing:
        writing.put(b"1", row(labelled(7)))
    assert read_dataset(tmp_path / "train").energy.tolist() == [-17.0]


def test_only_chosen_frames_are_decoded(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [b"damaged", row(labelled(1)), b"damaged", row(labelled(3))])
    assert read_dataset(path, index="1::2").energy.tolist() == [-11.0, -13.0]
    with pytest.raises(DatasetError, match=r"a.aselmdb, entry 1 cannot be read as a row .*error"):
        read_dataset(path)


def test_reading_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled())])
    before = path.read_bytes()
    read_dataset(tmp_path)
    assert ([file.name for file in tmp_path.iterdir()], path.read_bytes()) == (["a.aselmdb"], before)


def test_a_file_can_be_read_again_after_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled(0)), row(labelled(1, forces=None))])
    with pytest.raises(DatasetError) as kept:
        read_dataset(path)
    assert len(read_dataset(path, index="0")) == 1, kept


@pytest.mark.parametrize("missing", ["energy", "forces"])
def test_missing_labels_are_named_with_their_frame(tmp_path: Path, missing: str) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled(0)), row(labelled(1, **{missing: None}))])
    with pytest.raises(DatasetError, match=f"a.aselmdb, frame 1: no {missing};"):
        read_dataset(path)


def test_labels_that_are_not_finite_are_refused(tmp_path: Path, graph: types.SimpleNamespace) -> None:
    records = [old_layout(graph, fields(0)), old_layout(graph, fields(1, force=torch.full((3, 3), torch.nan)))]
    with pytest.raises(DatasetError, match=r"a.lmdb, frame 1: forces not finite"):
        read_dataset(write_records(tmp_path / "a.lmdb", records))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"force": None}, "a.lmdb, frame 0: no forces;"),
        ({"pos": None, "atomic_numbers": None}, r"entry 0 .*no pos and atomic_numbers among the fields \['cell'"),
        ({"pos": torch.zeros(2, 3)}, r"`pos` \(2, 3\) and `atomic_numbers` \(3,\) do not belong together"),
        ({"force": torch.zeros(2, 3)}, r"a.lmdb, frame 0: forces have shape \(2, 3\), expected \(3, 3\)"),
        ({"natoms": 4}, "`natoms` is 4 but there are 3 atomic numbers"),
        ({"atomic_numbers": torch.tensor([8.0, 1.0, 1.5])}, "`atomic_numbers` must be integers, got .*1.5"),
        ({"force": "many"}, "`force` must be numbers, got 'many'"),
        ({"cell": torch.eye(2)}, "cannot reshape"),
        ({"y": torch.zeros(2)}, "cannot reshape"),
        ({"spin": 0}, "a.lmdb, frame 0: `spin` is the multiplicity .* got 0"),
        ({"y": None, "force": None, "y_relaxed": -3.0}, "IS2RE record .* train on S2EF records"),
    ],
)
def test_damaged_records_are_refused(
    tmp_path: Path, graph: types.SimpleNamespace, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset(write_records(tmp_path / "a.lmdb", [new_layout(graph, fields(**changes))]))


def test_pickles_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"entry 0 .*of type dict, not a graph"):
        read_dataset(write_records(tmp_path / "a.lmdb", [{"pos": 1}]))


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, part: float) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled(k), noise=os.urandom(9).hex()) for k in range(80)])
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DatasetError, match=rf"a.aselmdb is truncated: it has \d+ bytes of {len(content)}"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "a.lmdb is empty"), (b"some words", "not a readable LMDB file"), (bytes(9000), "not a readable LMDB file")],
)
def test_files_of_other_content_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.lmdb").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize("index", [":", "0"])
def test_files_without_structures_are_refused(tmp_path: Path, index: str) -> None:
    with pytest.raises(DatasetError, match=r"a.lmdb holds no structures"):
        read_dataset(write_lmdb(tmp_path / "a.lmdb", {"length": pickle.dumps(0)}), index=index)


def test_folders_without_lmdb_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(DatasetError, match=r"holds no \.lmdb or \.aselmdb file: give a file"):
        read_dataset(tmp_path)


def test_without_the_extra_its_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.aselmdb", [row(labelled())])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DatasetError, match=r'pip install "e2former_calc\[lmdb\]"'):
        read_dataset(path)
