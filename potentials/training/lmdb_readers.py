"""Labelled structures from LMDB files: rows of ASE databases (OMol25, OMat24) and pickled records of OC20 and OC22.

Pickles can run any code when they are loaded. Here they are taken apart by a reader that knows the few
names that such records consist of, replaces each of them by an inert stand-in and refuses all others.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.io.jsonio import decode
from numpy.typing import NDArray

from e2former_calc.potentials.training.dataset import DatasetError

SUFFIXES = (".lmdb", ".aselmdb")
"""Names of the files that a folder is searched for."""

_PICKLE = b"\x80"
"""First byte of every pickle since protocol 2; zlib streams begin with 0x78."""


def is_lmdb(path: Path) -> bool:
    """Whether `path` is a folder, or a file with the suffix of an LMDB file."""
    return path.is_dir() or path.suffix in (*SUFFIXES, ".mdb")


def read_atoms(path: Path, chosen: slice) -> Generator[Atoms, None, None]:
    """Structures of an LMDB file, or of all LMDB files of a folder in the order of their names.

    Only the chosen frames are decoded. The files are opened without a lock, and nothing is written beside them.
    Frames are the entries with integer keys in ascending order: "length" is one too small in some files.

    Rows of ASE databases give calculator results, and their data as `atoms.info`. Records of OC20 give
    `pos`, `atomic_numbers`, `cell`, `y` (or `energy`), `force` (or `forces`), `stress`, `pbc`, `charge` and `spin`;
    without `pbc` they are periodic along every lattice vector. Forces on atoms that were held `fixed` in a
    relaxation are labels like the others. Energies are those of the file: total energies, or adsorption energies
    if it was made with references. Units are eV and Å.

    Args:
        path: file or folder.
        chosen: which frames, counted through all files.

    Yields:
        Structures with a calculator that holds the stored results.

    Raises:
        DatasetError: if a file is not whole or not LMDB, or an entry cannot be decoded or is refused; or if the
            package lmdb is missing.
    """
    files = _files(path)
    keys = [_keys(file) for file in files]
    starts = np.cumsum([0, *(len(of_file) for of_file in keys)])
    if not starts[-1]:
        raise DatasetError(f"{path.name} holds no structures: no entry has an integer as its key")
    owner = {frame: int(np.searchsorted(starts, frame, side="right")) - 1 for frame in range(starts[-1])[chosen]}
    for number, frames in groupby(owner, key=owner.__getitem__):
        with _transaction(files[number]) as transaction:
            for frame in frames:
                key = keys[number][frame - int(starts[number])]
                yield _decoded(transaction.get(key), f"{files[number].name}, entry {key.decode()}")


def atoms_of_row(row: AtomsRow) -> Atoms:
    """Structure of a row of an ASE database; key-value pairs and data become `atoms.info`."""
    atoms: Atoms = row.toatoms()
    # A row's own attributes (charge: of the calculation) hide key-value pairs of that name.
    atoms.info = {**row.data, **{key: vars(row).get(key, row[key]) for key in row.key_value_pairs}}
    return atoms


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / "data.mdb").is_file():
        return [path / "data.mdb"]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise DatasetError(
            f"the folder {path.name} holds no {' or '.join(SUFFIXES)} file: give a file, or the folder with these files"
        )
    return files


def _keys(file: Path) -> list[bytes]:
    """Keys of the frames; the others are counters and metadata."""
    with _transaction(file) as transaction:
        return sorted(filter(bytes.isdigit, transaction.cursor().iternext(keys=True, values=False)), key=int)


@contextmanager
def _transaction(file: Path) -> Iterator[Any]:
    """Read access to a file that has been found whole."""
    lmdb = _lmdb(file)
    if file.stat().st_size == 0:
        raise DatasetError(f"{file.name} is empty: no structure to read")
    try:
        with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment:
            # The file is mapped into memory: a page that is missing at its end kills the process.
            expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if file.stat().st_size < expected:
                raise DatasetError(
                    f"{file.name} is truncated: it has {file.stat().st_size} bytes of {expected}; copy it again, "
                    "or if it is the original, compact it with `mdb_copy -c`"
                )
            with environment.begin() as transaction:
                yield transaction
    except lmdb.Error as error:
        raise DatasetError(f"{file.name} is not a readable LMDB file ({error}): copy it again") from None


def _lmdb(file: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise DatasetError(
            f'{file.name} is read with the package lmdb, which is missing: pip install "e2former_calc[lmdb]"'
        ) from None
    return lmdb


def _decoded(value: bytes, where: str) -> Atoms:
    try:
        if value.startswith(_PICKLE):
            return _atoms_of_fields(_fields(value))
        row: Any = decode(zlib.decompress(value).decode())
        # Constraints change no label, and their classes come and go between versions of ASE.
        row.pop("constraints", None)
        return atoms_of_row(AtomsRow(row))
    except Exception as error:  # a damaged or foreign entry can fail in any way
        raise DatasetError(
            f"{where} cannot be read as a row of an ASE database or a record of OC20 ({type(error).__name__}: {error})"
        ) from None


def _atoms_of_fields(fields: Mapping[str, Any]) -> Atoms:
    """Structure of an OC20 record.

    Raises:
        ValueError: if a field is missing or is not an array of numbers of the right shape.
    """
    missing = [name for name in ("pos", "atomic_numbers") if fields.get(name) is None]
    if missing:
        raise ValueError(f"no {' and '.join(missing)} among the fields {sorted(fields)}")
    energy, forces = _first(fields, "y", "energy"), _first(fields, "force", "forces")
    if energy is None and forces is None and fields.get("y_relaxed") is not None:
        raise ValueError("an IS2RE record has the energy of another structure and no forces: train on S2EF records")
    atoms = _structure(fields)
    results = {"energy": None if energy is None else energy.reshape(()), "forces": forces}
    atoms.calc = SinglePointCalculator(atoms, **results, stress=_first(fields, "stress"))
    atoms.info = {name: _first(fields, name) for name in ("charge", "spin")}
    return atoms


def _structure(fields: Mapping[str, Any]) -> Atoms:
    positions, numbers = _numbers("pos", fields["pos"]), _numbers("atomic_numbers", fields["atomic_numbers"])
    natoms, cell, pbc = (_first(fields, name) for name in ("natoms", "cell", "pbc"))
    if positions.shape != (numbers.size, 3):
        raise ValueError(f"`pos` {positions.shape} and `atomic_numbers` {numbers.shape} do not belong together")
    if natoms is not None and natoms.sum() != numbers.size:
        raise ValueError(f"`natoms` is {natoms.tolist()} but there are {numbers.size} atomic numbers")
    if (numbers != np.rint(numbers)).any():
        raise ValueError(f"`atomic_numbers` must be integers, got {numbers.tolist()}")
    cell = np.zeros((3, 3)) if cell is None else cell.reshape(3, 3)
    periodic = np.abs(cell).sum(1) > 0 if pbc is None else np.broadcast_to(pbc.reshape(-1), 3).astype(bool)
    return Atoms(numbers.reshape(-1).astype(int), positions.astype(np.float64), cell=cell, pbc=periodic)


def _first(fields: Mapping[str, Any], *names: str) -> NDArray[Any] | None:
    """The first of the fields that there is, as numbers."""
    name = next((name for name in names if fields.get(name) is not None), None)
    return None if name is None else _numbers(name, fields[name])


def _numbers(name: str, value: Any) -> NDArray[Any]:
    array = value.array() if isinstance(value, _Tensor | _Array) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must be numbers, got {value!r}")
    return array


def _fields(value: bytes) -> Mapping[str, Any]:
    """Attributes of a pickled graph; since PyG 2 they lie in its `_store`."""
    record = _InertUnpickler(io.BytesIO(value)).load()
    if isinstance(record, _Record) and isinstance(record.state.get("_store"), _Record):
        record = record.state["_store"]
        return dict(record.state["_mapping"])
    if not isinstance(record, _Record):
        raise ValueError(f"the entry is of type {type(record).__name__}, not a graph")
    return record.state


class _Record:
    """Stands for any object of PyG: its state, and nothing else."""

    state: Mapping[str, Any]

    def __init__(self, *_: object) -> None:
        self.state = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)


@dataclass(frozen=True)
class _Tensor:
    """A torch tensor that is not made before it is asked for: most fields of a record are never used."""

    storage: bytes
    offset: int
    size: Sequence[int]
    stride: Sequence[int]

    def array(self) -> NDArray[Any]:
        storage = torch.load(io.BytesIO(self.storage), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.TypedStorage):
            raise ValueError(f"the storage of a tensor is of type {type(storage).__name__}")
        flat = torch.empty(0, dtype=storage.dtype).set_(storage)
        tensor = flat.as_strided(self.size, self.stride, self.offset)
        return np.array((tensor.double() if tensor.is_floating_point() else tensor).numpy())

    def __setstate__(self, _: object) -> NoReturn:
        raise pickle.UnpicklingError("a tensor has no state to be set")


class _Dtype:
    """A numpy dtype of plain numbers; the state of a real one can be forged."""

    def __init__(self, code: str, *_: object) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biuf":
            raise pickle.UnpicklingError(f"arrays of dtype {code!r} are not numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A numpy array from its shape and bytes."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = np.frombuffer(raw, dtype.value).reshape(shape, order="F" if fortran else "C")

    def array(self) -> NDArray[Any]:
        return self.value.copy()


class _InertUnpickler(pickle.Unpickler):
    """Knows the names in records of OC20 and imports none of them.

    The functions among the stand-ins are methods, because a pickle can set the defaults of a plain function.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in for a global name.

        Raises:
            UnpicklingError: for every name that is not part of a structure.
        """
        known: dict[str, Any] = {
            "_codecs.encode": self._encode,
            "collections.OrderedDict": dict,
            "numpy.dtype": _Dtype,
            "numpy.ndarray": _Array,
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch.storage._load_from_bytes": self._storage,
            "torch_geometric.data.data.Data": _Record,
            "torch_geometric.data.data.DataEdgeAttr": _Record,
            "torch_geometric.data.data.DataTensorAttr": _Record,
            "torch_geometric.data.storage.GlobalStorage": _Record,
        }
        try:
            return known[f"{module}.{name}".replace("numpy._core.", "numpy.core.")]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused: the entry asks for {module}.{name}, which is no part of a structure; nothing was executed"
            ) from None

    def _encode(self, text: str, encoding: str) -> bytes:
        return text.encode(encoding)

    def _scalar(self, dtype: _Dtype, raw: bytes) -> Any:
        return np.frombuffer(raw, dtype.value)[0]

    def _from_buffer(
        self, raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: Any, *_: object
    ) -> Any:
        return np.frombuffer(raw, dtype.value).reshape(shape, order=order)

    def _storage(self, raw: bytes) -> bytes:
        return raw

    def _tensor(self, storage: bytes, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> _Tensor:
        return _Tensor(storage, offset, size, stride)
